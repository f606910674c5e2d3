"""Recommenders kept in a directory: which ones there are, how they are written and read.

DIR/manifest.json says which recommender it is, with which settings and from which data; DIR/arrays.safetensors holds
what it learned. A hybrid keeps copies of its parts' directories in DIR/parts.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from seqrec_prompt.artifacts import MANIFEST, hash_file, hash_json, read_manifest, write_json
from seqrec_prompt.config import Config
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.embeddings.reduce import ARRAYS
from seqrec_prompt.errors import ArtifactError
from seqrec_prompt.recommenders.base import Fitted
from seqrec_prompt.recommenders.hybrids import Blend, Switch
from seqrec_prompt.recommenders.markov import TransitionCounts
from seqrec_prompt.recommenders.nearest.embedding_neighbors import EmbeddingNeighborsConfig, EmbeddingSKNN
from seqrec_prompt.recommenders.nearest.neighbors import SFSKNN, SKNN, SSKNN, VSKNN
from seqrec_prompt.recommenders.nearest.similarity import LLMSeqSim, SimilarityConfig
from seqrec_prompt.recommenders.nearest.transitions import Transitions
from seqrec_prompt.recommenders.popularity import MostPopular
from seqrec_prompt.recommenders.sequential.recommender import BERT4Rec, GRU4Rec, SASRec, Sequential
from seqrec_prompt.recommenders.sequential.settings import SequentialConfig
from seqrec_prompt.recommenders.settings import (
    SECTIONS,
    BlendConfig,
    HybridConfig,
    NeighborsConfig,
    SwitchConfig,
    TransitionsConfig,
)

PARTS = "parts"
Kept = Fitted | LLMSeqSim | EmbeddingSKNN | Sequential | Blend | Switch
# Most learn from train sessions; LLMSeqSim is made from embeddings, EmbeddingSKNN from both, the sequential models may
# use both, and the last two are made of others.
RECOMMENDERS: dict[str, Any] = {
    "most-popular": MostPopular,
    "transition-counts": TransitionCounts,
    "transitions": Transitions,
    "sknn": SKNN,
    "s-sknn": SSKNN,
    "sf-sknn": SFSKNN,
    "v-sknn": VSKNN,
    "llm-seq-sim": LLMSeqSim,
    "embedding-sknn": EmbeddingSKNN,
    "sasrec": SASRec,
    "bert4rec": BERT4Rec,
    "gru4rec": GRU4Rec,
    "blend": Blend,
    "switch": Switch,
}
SETTINGS: dict[str, type[Config]] = {
    "transitions": TransitionsConfig,
    "neighbors": NeighborsConfig,
    "similarity": SimilarityConfig,
    "embedding_neighbors": EmbeddingNeighborsConfig,
    "sequential": SequentialConfig,
    "blend": BlendConfig,
    "switch": SwitchConfig,
}  # section → what it holds


def save(directory: Path, recommender: Kept, manifest: dict[str, Any], parts: Sequence[Path] = ()) -> None:
    """Write both files into an existing directory, and copies of `parts`; `manifest` is of the stage 'fit'."""
    for i, part in enumerate(parts):
        shutil.copytree(part, directory / PARTS / str(i))
    save_file({name: np.ascontiguousarray(array) for name, array in recommender.arrays().items()}, directory / ARRAYS)
    write_json(directory / MANIFEST, manifest)


def load(directory: Path, data: Dataset) -> tuple[Kept, str]:
    """Read what `save` wrote: the recommender and a hash of its arrays and settings.

    Raises ArtifactError when `fit` did not make the directory, made it from other data than `data`, or it is damaged.
    """
    made = read_manifest(directory, "fit")
    if made["inputs"].get("data") != data.hash:
        raise ArtifactError(
            f"{directory} was fitted on other data ('{made['config'].get('data')}'). Give --data of that directory, or "
            "run 'seqrec-prompt fit' on this one."
        )
    name = made["config"].get("recommender")
    if name not in RECOMMENDERS:
        raise ArtifactError(f"{directory} holds a '{name}'; known are {', '.join(RECOMMENDERS)}. Run 'fit' again.")
    section = SECTIONS.get(name)
    settings = SETTINGS[section].model_validate(made["config"][section]) if section else None
    try:
        arrays = load_file(directory / ARRAYS)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{directory / ARRAYS} is missing or damaged ({error}). Run 'fit' again.") from None
    identity = [hash_file(directory / ARRAYS), name, settings.resolved() if settings else None]
    if isinstance(settings, HybridConfig):
        parts, hashes = load_parts([directory / PARTS / str(i) for i in range(len(settings.parts))], data)
        identity[2] = settings.model_copy(update={"parts": ()}).resolved()  # where they lay is not what they are
        return RECOMMENDERS[name].of_parts(parts, arrays, settings), hash_json([*identity, hashes])
    return RECOMMENDERS[name].from_arrays(arrays, len(data.catalog), settings), hash_json(identity)


def load_parts(directories: Sequence[Path], data: Dataset) -> tuple[tuple[Kept, Kept], list[str]]:
    """Read the two parts of a hybrid and their hashes, as `load` does."""
    (one, first), (other, second) = (load(directory, data) for directory in directories)
    return (one, other), [first, second]
