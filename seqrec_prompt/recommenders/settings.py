"""Settings of recommenders that are fitted. Apart from the recommenders, so that `--help` need not load numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from seqrec_prompt.config import Config


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str | Path) else value or None


# Directories made by 'embed'; one need not stand in a list, and an empty list is none.
Embeddings = Annotated[tuple[Path, ...] | None, BeforeValidator(_several)]

Decay = Literal[
    "none",
    "constant_linear",
    "scaling_linear",
    "scaling_quadratic",
    "scaling_cubic",
    "log",
    "harmonic",
    "harmonic_squared",
]


class NeighborsConfig(Config):
    """Settings of SKNN, S-SKNN, SF-SKNN and V-SKNN."""

    k_neighbors: int = Field(100, ge=1, description="train sessions whose items are counted")
    similarity: Literal["cosine", "dot", "binary"] = Field(
        "cosine", description="of a prompt and a train session; only 'cosine' and 'binary' mind the latter's length"
    )
    sample: int | None = Field(
        None, ge=1, description="compare with this many train sessions of those that share an item; none: all, exact"
    )
    sampling: Literal["recent", "random"] = Field("recent", description="which ones 'sample' takes")
    idf: float = Field(0, ge=0, description="λ: multiply an item's score by 1 + λ·log(train sessions / those with it)")
    max_items: int = Field(200, ge=1, le=500, description="newest items of a prompt that count")
    seed: int = Field(0, ge=0, description="draws the random samples")

    decay: Decay = Field(
        "scaling_linear", description="v-sknn only: weight of a prompt's items in the similarity, newest first"
    )
    score_decay: Decay = Field(
        "harmonic", description="v-sknn only: weight of a neighbour by the newest item it shares"
    )


class TransitionsConfig(Config):
    """Settings of the weighted transitions."""

    max_items: int = Field(16, ge=1, le=500, description="newest items of a prompt that count")
    decay: Decay = Field("harmonic_squared", description="weight of a prompt's items, newest first")
    backwards: float = Field(
        1, ge=0, description="weight of what went before an item beside what followed it; 0: the latter alone"
    )


class HybridConfig(Config):
    """What the settings of both hybrids begin with."""

    parts: tuple[Path, ...] = Field((), description="two directories made by 'fit', of any recommenders")


class BlendConfig(HybridConfig):
    """Settings of the blend of two recommenders."""

    weight: float | None = Field(
        0.5,
        ge=0,
        le=1,
        description="the second part's share; 'none': the one with the best NDCG@10 on the validation part of the data",
    )
    merge: Literal["rank", "confidence"] = Field(
        "rank", description="what counts of an item: the reciprocal of its rank, or its score, scaled to 0..1 in a list"
    )
    depth: int = Field(100, ge=1, description="items of each part that are merged, and k at least")


class SwitchConfig(HybridConfig):
    """Settings of the switch between two recommenders: the first part is for popular prompts."""

    quantile: float = Field(
        0.5,
        ge=0,
        le=1,
        description="a prompt is popular when so many of the train sessions have less popular items on average",
    )


# Recommender → the section of FitConfig that holds its settings; one that is not here has none.
SECTIONS = {
    "transitions": "transitions",
    "sknn": "neighbors",
    "s-sknn": "neighbors",
    "sf-sknn": "neighbors",
    "v-sknn": "neighbors",
    "llm-seq-sim": "similarity",
    "embedding-sknn": "embedding_neighbors",
    "sasrec": "sequential",
    "bert4rec": "sequential",
    "gru4rec": "sequential",
    "blend": "blend",
    "switch": "switch",
}
