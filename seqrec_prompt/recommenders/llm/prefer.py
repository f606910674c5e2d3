"""`prefer`: a second stage of training, on what the model would recommend instead of what came (DPO).

The verb stands here because it reads recommendations; the training is a room below.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from seqrec_prompt.artifacts import hash_file, manifest, refuse_inputs_inside
from seqrec_prompt.errors import ConfigError, DataError, ModelError
from seqrec_prompt.finetuning.training import TrainingConfig, losses, require_reporter, run
from seqrec_prompt.locks import locked
from seqrec_prompt.prompting.templates import TemplateConfig
from seqrec_prompt.ragged import places

if TYPE_CHECKING:
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.data.sessions import Sessions
    from seqrec_prompt.finetuning.preferences import Preferences

HINT = "Make the file with: seqrec-prompt recommend --part train"


class PreferConfig(TrainingConfig):
    """Settings of `prefer`."""

    adapter: Path = Field(description="adapter made by 'finetune': where training starts, and its reference")
    negatives: Path = Field(
        description="recommendations made by 'recommend --part train': what stands in a session's list and did not "
        "come is rejected; best from the same adapter"
    )
    negatives_per_session: int = Field(3, ge=1, description="pairs a session at most, from the top of its list")
    beta: float = Field(0.1, gt=0, description="how dear it is to leave the reference; the smaller, the farther")
    learning_rate: float = Field(5e-5, gt=0, description="peak learning rate (AdamW)")


@locked
def prefer(config: PreferConfig) -> Path:
    """Train an adapter on by direct preference optimisation (Rafailov et al., 2023); returns its directory.

    A pair is a train session without its last item, that item's title, which is chosen, and the title of an item of
    its list, which is rejected. The loss is −log σ(β·((log π − log π₀)(chosen) − (log π − log π₀)(rejected))), π₀ the
    adapter as it came. The directory is like that of `finetune`, runs are gone on with alike.

    Raises DataError when the file holds no lists for train sessions of this data or no pair comes of it, ModelError
    when the adapter is a whole model or of another base.
    """
    from seqrec_prompt.data.dataset import Dataset

    refuse_inputs_inside(
        config.out,
        {"data": config.data, "model": config.model, "adapter": config.adapter, "negatives": config.negatives},
    )
    require_reporter(config)
    data = Dataset.load(config.data)  # before the heavy imports: a wrong path is told at once

    from seqrec_prompt.engines.models import model_hash, trained_adapter
    from seqrec_prompt.finetuning.preferences import build_preference_trainer
    from seqrec_prompt.finetuning.setup import train_and_holdout

    base = model_hash(config.model, config.revision)
    trained, made = trained_adapter(config.adapter, config.model, base)
    if trained["config"].get("method") == "full":
        raise ModelError(f"{config.adapter} is a whole model, no adapter. Run 'finetune' with another --method first.")
    template = TemplateConfig.model_validate(trained["config"]["template"])
    if template.name != "GenItem":
        raise ConfigError(f"{config.adapter} was trained as {template.name}; 'prefer' compares titles, as of GenItem.")
    train, holdout = train_and_holdout(data, config)
    preferences, facts = read_preferences(config, data, train)
    inputs = {
        "data": data.hash,
        "catalog": data.catalog.hash,
        "model": base,
        "adapter": made,
        "negatives": hash_file(config.negatives),
    }
    # The template goes along: whoever decodes with this adapter takes it from there.
    wanted = manifest("prefer", config.resolved() | {"template": template.resolved()}, inputs)

    def build() -> tuple[Any, dict[str, Any]]:
        print(f"{facts['pairs']:,} pairs from {facts['sessions']:,} sessions")
        return build_preference_trainer(
            config, data, preferences, holdout, template, config.adapter, config.beta
        ), dict(facts)

    def summary(facts: dict[str, Any]) -> str:
        margin, right = (" → ".join(f"{value:.2f}" for value in facts[name]) for name in ("margin", "right"))
        return f"adapter: {config.out}  ({losses(facts, 'nats a pair')}; margin {margin}, chosen preferred {right})"

    return run(config, wanted, build, summary)


def read_preferences(config: PreferConfig, data: Dataset, train: Sessions) -> tuple[Preferences, dict[str, Any]]:
    """Pair the last item of each session of `train` that has a list with the first items of that list that differ.

    An item with the title of the one that came is no other. Returns pairs, in the order of the file, and figures.
    """
    from seqrec_prompt.finetuning.preferences import Preferences
    from seqrec_prompt.recommenders import files

    file = files.read(config.negatives, data.catalog)
    if file.manifest and file.manifest.get("config", {}).get("part") != "train":
        raise DataError([f"{config.negatives}: these are lists for test sessions"], f"{HINT}.")
    if file.manifest and file.manifest.get("inputs", {}).get("data") != data.hash:
        raise DataError(
            [f"{config.negatives}: made from other data than {config.data}"], f"{HINT} --data {config.data}."
        )
    position = {name: row for row, name in enumerate(data.split.train.ids.tolist())}
    strange = [name for name in file.lists.session_ids.tolist() if name not in position]
    if strange:
        raise DataError(
            [
                f"{config.negatives}: {len(strange):,} of {len(file.lists):,} sessions are not in the train part of "
                f"{config.data}, for example '{strange[0]}'"
            ],
            f"{HINT} --data {config.data}.",
        )
    usable = train.take(train.lengths >= 2)
    row_of = {name: row for row, name in enumerate(usable.ids.tolist())}
    listed = np.array([row for row, name in enumerate(file.lists.session_ids.tolist()) if name in row_of], np.int64)
    lists = file.lists.take(listed)
    sessions = usable.take(np.array([row_of[name] for name in lists.session_ids.tolist()], np.int64))
    _, title = np.unique(data.catalog.texts(), return_inverse=True)
    row = np.repeat(np.arange(len(lists)), np.diff(lists.offsets))
    target = sessions.items[sessions.offsets[1:] - 1]
    wrong = title[lists.items] != title[target[row]]
    kept = np.bincount(row[wrong], minlength=len(lists))
    first = places(kept) < config.negatives_per_session
    row, rejected = row[wrong][first], lists.items[wrong][first]
    if not len(row):
        raise DataError([f"{config.negatives}: no train session has a list with an item that did not come"], f"{HINT}.")
    facts = {"pairs": len(row), "sessions": len(np.unique(row)), "listed_sessions": len(file.lists)}
    return Preferences(sessions.take(row), rejected), facts
