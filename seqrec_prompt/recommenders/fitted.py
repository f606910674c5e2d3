"""Recommenders kept in a directory: which ones there are, how they are written and read.

DIR/manifest.json says which recommender it is, with which settings and from which data; DIR/arrays.safetensors holds
what it learned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from seqrec_prompt.artifacts import MANIFEST, hash_file, hash_json, read_manifest, write_json
from seqrec_prompt.config import Config
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.errors import ArtifactError
from seqrec_prompt.recommenders.base import Fitted
from seqrec_prompt.recommenders.markov import TransitionCounts
from seqrec_prompt.recommenders.neighbors import SFSKNN, SKNN, SSKNN, VSKNN
from seqrec_prompt.recommenders.popularity import MostPopular
from seqrec_prompt.recommenders.sequential.recommender import BERT4Rec, GRU4Rec, SASRec, Sequential
from seqrec_prompt.recommenders.sequential.settings import SequentialConfig
from seqrec_prompt.recommenders.settings import SECTIONS, NeighborsConfig
from seqrec_prompt.recommenders.similarity import LLMSeqSim, SimilarityConfig

ARRAYS = "arrays.safetensors"
Kept = Fitted | LLMSeqSim | Sequential
# All learn from train sessions, but for LLMSeqSim, which is made from embeddings; the last three may use both.
RECOMMENDERS: dict[str, Any] = {
    "most-popular": MostPopular,
    "transition-counts": TransitionCounts,
    "sknn": SKNN,
    "s-sknn": SSKNN,
    "sf-sknn": SFSKNN,
    "v-sknn": VSKNN,
    "llm-seq-sim": LLMSeqSim,
    "sasrec": SASRec,
    "bert4rec": BERT4Rec,
    "gru4rec": GRU4Rec,
}
SETTINGS: dict[str, type[Config]] = {
    "neighbors": NeighborsConfig,
    "similarity": SimilarityConfig,
    "sequential": SequentialConfig,
}  # section → what it holds


def save(directory: Path, recommender: Kept, manifest: dict[str, Any]) -> None:
    """Write both files into an existing directory; `manifest` is of the stage 'fit'."""
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
    recommender = RECOMMENDERS[name].from_arrays(arrays, len(data.catalog), settings)
    return recommender, hash_json([hash_file(directory / ARRAYS), name, settings.resolved() if settings else None])
