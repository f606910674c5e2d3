"""Fine-tune an LLM on sessions and let it recommend the next item, always from your catalog.

The public names are imported when they are first used, so `import seqrec_prompt` is fast.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "Catalog": "data.catalog",
    "Sessions": "data.sessions",
    "Split": "data.sessions",
    "Dataset": "data.dataset",
    "PrepareConfig": "data.prepare",
    "prepare": "data.prepare",
    "TemplateConfig": "prompting.templates",
    "compile_template": "prompting.prompter",
    "Candidates": "data.lists",
    "Clusters": "embeddings.clusters",
    "lessons": "prompting.cases",
    "questions": "prompting.cases",
    "ValidateConfig": "finetuning.validate",
    "validate": "finetuning.validate",
    "PairsConfig": "finetuning.pairs",
    "pairs": "finetuning.pairs",
    "compile_trie": "decoding.trie",
    "search": "decoding.search",
    "decode_lists": "decoding.lists",
    "HuggingFaceEngine": "engines.huggingface",
    "EmbeddingTable": "embeddings.table",
    "EmbedConfig": "engines.embed",
    "embed": "engines.embed",
    "ReduceConfig": "embeddings.reduce",
    "Reduction": "embeddings.reduce",
    "fit_reduction": "embeddings.reduce",
    "FinetuneConfig": "finetuning.finetune",
    "finetune": "finetuning.finetune",
    "PreferConfig": "recommenders.llm.prefer",
    "prefer": "recommenders.llm.prefer",
    "Recommendations": "recommenders.base",
    "Recommender": "recommenders.base",
    "MostPopular": "recommenders.popularity",
    "LastItemRepeat": "recommenders.popularity",
    "TransitionCounts": "recommenders.markov",
    "SKNN": "recommenders.nearest.neighbors",
    "SSKNN": "recommenders.nearest.neighbors",
    "SFSKNN": "recommenders.nearest.neighbors",
    "VSKNN": "recommenders.nearest.neighbors",
    "NeighborsConfig": "recommenders.settings",
    "FitConfig": "recommenders.fit",
    "fit": "recommenders.fit",
    "SASRec": "recommenders.sequential.recommender",
    "BERT4Rec": "recommenders.sequential.recommender",
    "GRU4Rec": "recommenders.sequential.recommender",
    "SequentialConfig": "recommenders.sequential.settings",
    "TuneConfig": "recommenders.tune",
    "tune": "recommenders.tune",
    "LLMSeqPrompt": "recommenders.llm.prompt",
    "LLMSeqPromptGenList": "recommenders.llm.variants",
    "LLMSeqPromptClassify": "recommenders.llm.variants",
    "LLMSeqPromptRank": "recommenders.llm.variants",
    "SimilarityConfig": "recommenders.nearest.similarity",
    "LLMSeqSim": "recommenders.nearest.similarity",
    "EmbeddingNeighborsConfig": "recommenders.nearest.embedding_neighbors",
    "EmbeddingSKNN": "recommenders.nearest.embedding_neighbors",
    "BlendConfig": "recommenders.settings",
    "Blend": "recommenders.hybrids",
    "SwitchConfig": "recommenders.settings",
    "Switch": "recommenders.hybrids",
    "RecommendConfig": "recommenders.recommend",
    "recommend": "recommenders.recommend",
    "Grounder": "prompting.grounding",
    "GroundConfig": "recommenders.llm.ground",
    "ground": "recommenders.llm.ground",
    "DistillConfig": "recommenders.llm.distill",
    "distill": "recommenders.llm.distill",
    "PlanConfig": "planning.plan",
    "plan": "planning.plan",
    "ServeConfig": "serving.serve",
    "serve": "serving.serve",
    "DemoConfig": "serving.demo",
    "demo": "serving.demo",
    "EvaluateConfig": "evaluation.evaluate",
    "evaluate": "evaluation.evaluate",
    "ReproduceConfig": "reproduction.reproduce",
    "reproduce": "reproduction.reproduce",
    "SeqrecError": "errors",
}
__all__ = sorted(_PUBLIC)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'seqrec_prompt' has no attribute '{name}'")
    return getattr(importlib.import_module(f"seqrec_prompt.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
