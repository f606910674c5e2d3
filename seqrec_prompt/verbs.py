"""What `seqrec-prompt` can do: every verb is a config class and a function, looked up here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """Where a verb lives: `module` defines the config class and, named as the verb (its last word), the function.

    positional: the setting that a first word without dashes fills.
    """

    module: str
    config: str
    summary: str
    example: str
    positional: str | None = None


VERBS = {
    "quickstart": Verb(
        "seqrec_prompt.quickstart",
        "QuickstartConfig",
        "run the whole way once, on the bundled sample with a small LLM",
        "seqrec-prompt quickstart --out runs/quickstart",
    ),
    "init": Verb(
        "seqrec_prompt.init",
        "InitConfig",
        "look at your own table and write commented settings for it",
        "seqrec-prompt init --interactions events.csv --items items.csv --out seqrec.yaml",
    ),
    "prepare": Verb(
        "seqrec_prompt.data.prepare",
        "PrepareConfig",
        "read interactions and items, check them, split them",
        "seqrec-prompt prepare --interactions events.csv --items items.csv --session-column user_id \\\n"
        "      --time-column timestamp --split temporal --out runs/data",
    ),
    "validate": Verb(
        "seqrec_prompt.finetuning.validate",
        "ValidateConfig",
        "look at titles, prompts and their lengths in tokens before any training",
        "seqrec-prompt validate --data runs/data --model smollm2",
    ),
    "plan": Verb(
        "seqrec_prompt.planning.plan",
        "PlanConfig",
        "time, memory and money of fine-tuning and recommending, here, on another device, or hosted",
        "seqrec-prompt plan --data runs/data --model smollm2 --max-steps 150 --probe",
    ),
    "pairs": Verb(
        "seqrec_prompt.finetuning.pairs",
        "PairsConfig",
        "write prompt-completion pairs as JSON lines, as TRL reads them",
        "seqrec-prompt pairs --data runs/data --out runs/pairs.jsonl",
    ),
    "finetune": Verb(
        "seqrec_prompt.finetuning.finetune",
        "FinetuneConfig",
        "LoRA-fine-tune an LLM on the train sessions",
        "seqrec-prompt finetune --data runs/data --model smollm2 --max-steps 150 --out runs/adapter",
    ),
    "prefer": Verb(
        "seqrec_prompt.recommenders.llm.prefer",
        "PreferConfig",
        "train an adapter on against what it recommends instead of what came (DPO)",
        "seqrec-prompt prefer --data runs/data --model smollm2 --adapter runs/adapter \\\n"
        "      --negatives runs/train.parquet --out runs/preferred",
    ),
    "fit": Verb(
        "seqrec_prompt.recommenders.fit",
        "FitConfig",
        "fit a recommender that asks no LLM: popularity, neighbours, embeddings, SASRec and its like, hybrids",
        "seqrec-prompt fit --data runs/data --recommender v-sknn --out runs/v-sknn",
    ),
    "recommend": Verb(
        "seqrec_prompt.recommenders.recommend",
        "RecommendConfig",
        "decode the top k items of every test session, always from the catalog",
        "seqrec-prompt recommend --data runs/data --model smollm2 --adapter runs/adapter --out runs/recs.parquet",
    ),
    "tune": Verb(
        "seqrec_prompt.recommenders.tune",
        "TuneConfig",
        "search the settings of a recommender that 'fit' knows, by validation",
        "seqrec-prompt tune --data runs/data --space sasrec --trials 50 --out runs/tuned",
    ),
    "ground": Verb(
        "seqrec_prompt.recommenders.llm.ground",
        "GroundConfig",
        "turn what any LLM answered, as text, into recommendations of real items",
        "seqrec-prompt ground --data runs/data --answers answers.csv --out runs/grounded.parquet",
    ),
    "evaluate": Verb(
        "seqrec_prompt.evaluation.evaluate",
        "EvaluateConfig",
        "compare recommendation files and baselines in one table",
        "seqrec-prompt evaluate --data runs/data --recommendations runs/recs.parquet --out runs/evaluation",
    ),
    "report": Verb(
        "seqrec_prompt.evaluation.report",
        "ReportConfig",
        "show an evaluation as one page, with plots, sessions and a model card",
        "seqrec-prompt report --evaluation runs/evaluation --out runs/report",
    ),
    "reproduce": Verb(
        "seqrec_prompt.reproduction.reproduce",
        "ReproduceConfig",
        "make a paper's whole table from raw files, and set it beside what was published",
        "seqrec-prompt reproduce recsys23-beauty --data raw --out runs/recsys23",
        positional="plan",
    ),
    "embed": Verb(
        "seqrec_prompt.engines.embed",
        "EmbedConfig",
        "turn every item into a vector, with the same LLM or another",
        "seqrec-prompt embed --data runs/data --model smollm2 --adapter runs/adapter --out runs/embeddings",
    ),
    "hosted finetune": Verb(
        "seqrec_prompt.finetuning.hosted",
        "HostedFinetuneConfig",
        "fine-tune a model at OpenAI or the like: quote first, pay once",
        "seqrec-prompt hosted finetune --data runs/data --model MODEL --prices prices.yaml \\\n"
        "      --max-cost 5 --out runs/tuned",
    ),
    "hosted attach": Verb(
        "seqrec_prompt.finetuning.attach",
        "AttachConfig",
        "come back to a hosted job that runs already",
        "seqrec-prompt hosted attach ftjob-abc123 --out runs/tuned",
        positional="job",
    ),
    "hosted generate": Verb(
        "seqrec_prompt.recommenders.llm.hosted",
        "HostedGenerateConfig",
        "ask a hosted model for the next item of every session, for 'ground' or 'distill'",
        "seqrec-prompt hosted generate --data runs/data --tuned runs/tuned --prices prices.yaml --n 20 \\\n"
        "      --out runs/answers.parquet",
    ),
    "distill": Verb(
        "seqrec_prompt.recommenders.llm.distill",
        "DistillConfig",
        "turn a teacher's answers to train sessions into data that 'finetune' learns from",
        "seqrec-prompt distill --data runs/data --answers runs/answers.parquet --out runs/distilled",
    ),
    "serve": Verb(
        "seqrec_prompt.serving.serve",
        "ServeConfig",
        "answer over HTTP: fitted recommenders, an LLM, or both",
        "seqrec-prompt serve --data runs/data --recommenders runs/v-sknn --model smollm2 --adapter runs/adapter",
    ),
    "demo": Verb(
        "seqrec_prompt.serving.demo",
        "DemoConfig",
        "a page to build sessions on and see the lists of several recommenders side by side",
        "seqrec-prompt demo --data runs/data --recommenders runs/v-sknn --model smollm2 --adapter runs/adapter",
    ),
    "completion": Verb(
        "seqrec_prompt.completion",
        "CompletionConfig",
        "print a script that completes verbs and flags in your shell",
        "seqrec-prompt completion --shell bash",
    ),
}
