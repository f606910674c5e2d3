"""`seqrec-prompt VERB`: every verb is a config class and a function; this file only looks them up."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from seqrec_prompt.console import SWITCHES, Switches, speaking, take_switches
from seqrec_prompt.errors import SeqrecError, met_limit

if TYPE_CHECKING:
    from seqrec_prompt.config import Config

EXIT_OK, EXIT_BUG, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130
EXIT_CODES = {
    EXIT_OK: "done",
    EXIT_BUG: "a bug: please report the traceback",
    EXIT_ERROR: "a problem that the message explains",
    EXIT_INTERRUPTED: "interrupted: run the same command again to go on",
}


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code, one of EXIT_CODES."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return EXIT_OK
    if " ".join(words[:2]) in VERBS:
        words[:2] = [" ".join(words[:2])]
    elif group := [verb for verb in VERBS if verb.startswith(f"{words[0]} ")]:
        if words[1:] in ([], ["-h"], ["--help"]):
            print(_overview(group))
            return EXIT_OK
        print(f"error: '{' '.join(words[:2])}' is no verb. Verbs: {', '.join(group)}", file=sys.stderr)
        return EXIT_ERROR
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"seqrec-prompt {version('seqrec_prompt')}")
        return EXIT_OK
    if words[0] not in VERBS:
        from seqrec_prompt.config import did_you_mean

        known = did_you_mean(words[0], VERBS) or f". Verbs: {', '.join(VERBS)}. See seqrec-prompt --help"
        print(f"error: unknown verb '{words[0]}'{known}", file=sys.stderr)
        return EXIT_ERROR
    return run(words[0], words[1:])


def run(verb: str, argv: Sequence[str] | None = None) -> int:
    """Parse the arguments of `verb` (default: this process's), call it, and turn errors into an exit code."""
    # A polite stop (kill, a shutdown) ends like Ctrl-C: clean, and to be gone on with.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    words, switches = take_switches(sys.argv[1:] if argv is None else argv)
    try:
        from seqrec_prompt.config import parse

        entry = VERBS[verb]
        if entry.positional and words and not words[0].startswith("-"):
            words.insert(0, f"--{entry.positional}")
        module = importlib.import_module(entry.module)
        config = parse(
            getattr(module, entry.config),
            words,
            verb=verb,
            description=_sentence(entry.summary),
            example=entry.example,
            switches=SWITCHES,
        )
        if switches.dry_run:
            return _dry_run(config, verb, switches)
        with speaking(switches):
            made = getattr(module, verb.split()[-1])(config)
        if switches.json:
            from seqrec_prompt.dry_run import outcome

            _print_json({"verb": verb, **outcome(config, made)})
    except SeqrecError as error:
        return _failed(verb, str(error), switches, EXIT_ERROR)
    except OSError as error:  # a full disk, a place that may not be written to
        return _failed(verb, f"{error.filename or verb}: {error.strerror or error}", switches, EXIT_ERROR)
    except KeyboardInterrupt:
        print("interrupted. Run the same command again to go on.", file=sys.stderr)
        if switches.json:
            _print_json({"verb": verb, "error": "interrupted"})
        return EXIT_INTERRUPTED
    except Exception as error:
        if (limit := met_limit(error)) is None:
            raise
        return _failed(verb, f"{verb}: {limit}", switches, EXIT_ERROR)
    return EXIT_OK


def _dry_run(config: Config, verb: str, switches: Switches) -> int:
    from seqrec_prompt.dry_run import dry_run, plan, would_run

    lines = plan(config, verb)
    if switches.json:
        _print_json({"verb": verb, "config": config.resolved(), "plan": lines})
    else:
        print(dry_run(config, verb), end="")
    return EXIT_OK if would_run(lines) else EXIT_ERROR


def _failed(verb: str, message: str, switches: Switches, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    if switches.json:
        _print_json({"verb": verb, "error": message})
    return code


def _print_json(value: object) -> None:
    if os.environ.get("RANK", "0") != "0":  # of several processes, as `accelerate launch` starts them, one speaks
        return
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def _overview(verbs: Sequence[str] = tuple(VERBS)) -> str:
    width = max(map(len, verbs))
    lines = [f"  {name:<{width}}  {VERBS[name].summary}" for name in verbs]
    return "\n".join(
        [
            "usage: seqrec-prompt VERB [--config FILE] [--key value ...]",
            "",
            "Fine-tune an LLM on sessions and let it recommend the next item, always from your catalog.",
            "",
            *lines,
            "",
            "Each verb reads what the one before it wrote. seqrec-prompt VERB --help lists its settings.",
            "",
            "with every verb:",
            *(f"  {name:<{width}}  {meaning}" for name, meaning in SWITCHES.items()),
            "",
            "exit codes:",
            *(f"  {code:<{width}}  {meaning}" for code, meaning in EXIT_CODES.items()),
        ]
    )


def _sentence(summary: str) -> str:
    return summary[0].upper() + summary[1:] + "."


if __name__ == "__main__":
    raise SystemExit(main())
