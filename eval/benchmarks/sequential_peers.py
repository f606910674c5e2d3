"""RecTools' and RePlay's sequential models, for sequential.py: run in an environment of their own, which it names.

python sequential_peers.py rectools|replay DATA SETTINGS USERS, with SETTINGS as JSON; prints one JSON line a model.
A training step is timed over STEPS steps after WARM ones: what a step costs does not depend on which sessions it has.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch

STEPS, WARM, K = 12, 3, 20


def interactions(file: Path) -> pd.DataFrame:
    """user_id, item_id and place, one row an interaction."""
    sessions = pq.read_table(file).to_pandas()
    lengths = sessions["items"].map(len)
    return pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(len(sessions)), lengths),
            "item_id": np.concatenate(sessions["items"].to_numpy()),
            "place": np.concatenate([np.arange(length) for length in lengths]),
        }
    )


def show(name: str, step: float, users: float) -> None:
    """Print a row of the table."""
    print(json.dumps({"name": name, "step": step, "users": users}), flush=True)


def clock(base: type) -> Any:
    """A callback of Lightning that notes the CPU time at the end of every step."""

    class Clock(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.ends: list[float] = []

        def on_train_batch_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.process_time())

        @property
        def step(self) -> float:
            return (self.ends[-1] - self.ends[WARM - 1]) / (len(self.ends) - WARM)

    return Clock()


def rectools(data: Path, settings: dict[str, Any], users: int) -> None:
    """RecTools' SASRec and BERT4Rec with the softmax loss."""
    from pytorch_lightning import Callback, Trainer
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import BERT4RecModel, SASRecModel

    def frame(file: str) -> pd.DataFrame:
        found = interactions(data / file)
        found[Columns.Weight] = 1.0
        found[Columns.Datetime] = pd.Timestamp("2020-01-01") + pd.to_timedelta(found.pop("place"), unit="D")
        return found.rename(columns={"user_id": Columns.User, "item_id": Columns.Item})

    train, prompts = Dataset.construct(frame("train.parquet")), frame("test.parquet")
    prompts = prompts[prompts[Columns.User] < users]
    for name, model_class in (("SASRec", SASRecModel), ("BERT4Rec", BERT4RecModel)):
        trainer = Trainer(
            max_epochs=1,
            limit_train_batches=STEPS + WARM,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[clock(Callback)],
        )
        model = model_class(
            n_factors=settings["dim"],
            n_blocks=settings["layers"],
            n_heads=settings["heads"],
            dropout_rate=settings["dropout"],
            session_max_len=settings["max_items"],
            batch_size=settings["batch_size"],
            loss="softmax",
            get_trainer_func=lambda trainer=trainer: trainer,
            recommend_torch_device="cpu",
        )
        model.fit(train)
        known = Dataset.construct(pd.concat([frame("train.parquet").iloc[:0], prompts]))
        started = time.process_time()
        model.recommend(prompts[Columns.User].unique(), known, K, filter_viewed=True, on_unsupported_targets="ignore")
        rate = prompts[Columns.User].nunique() / (time.process_time() - started)
        timer = next(one for one in model.fit_trainer.callbacks if hasattr(one, "ends"))  # the trainer was copied
        show(f"RecTools {name}", timer.step, rate)


def replay(data: Path, settings: dict[str, Any], users: int) -> None:
    """RePlay's SASRec with cross-entropy, on batches padded to the longest session; its data loading is not counted."""
    from replay.data import FeatureHint, FeatureSource, FeatureType
    from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema
    from replay.nn.sequential import SasRec

    train, prompts = interactions(data / "train.parquet"), interactions(data / "test.parquet")
    n_items, length = int(pq.read_metadata(data / "catalog.parquet").num_rows), settings["max_items"]
    feature = TensorFeatureInfo(
        "item_id",
        is_seq=True,
        feature_type=FeatureType.CATEGORICAL,
        embedding_dim=settings["dim"],
        padding_value=n_items,
        cardinality=n_items,
        feature_hint=FeatureHint.ITEM_ID,
        feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
    )
    model = SasRec.from_params(
        TensorSchema([feature]),
        embedding_dim=settings["dim"],
        num_heads=settings["heads"],
        num_blocks=settings["layers"],
        max_sequence_length=length,
        dropout=settings["dropout"],
        hidden_dim=4 * settings["dim"],
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def padded(frame: pd.DataFrame, width: int) -> torch.Tensor:
        lists = frame.groupby("user_id")["item_id"].apply(lambda items: items.to_numpy()[-width:])
        grid = np.full((len(lists), width), n_items)
        for row, items in zip(grid, lists, strict=True):
            row[width - len(items) :] = items
        return torch.from_numpy(grid)

    whole, ends = padded(train, length + 1), []
    whole = whole[(whole[:, -2] != n_items)]
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    for which in torch.split(order, settings["batch_size"])[: STEPS + WARM]:
        inputs, labels = whole[which, :-1], whole[which, 1:, None]
        real = inputs != n_items
        loss = model({"item_id": inputs}, real, positive_labels=labels, target_padding_mask=real[..., None])["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ends.append(time.process_time())
    step = (ends[-1] - ends[WARM - 1]) / (len(ends) - WARM)
    inputs = padded(prompts[prompts["user_id"] < users], length)
    model.eval()
    started = time.process_time()
    with torch.no_grad():
        for part in torch.split(inputs, 512):
            logits = model({"item_id": part}, part != n_items)["logits"]
            seen = torch.cat([logits, logits[:, :1]], dim=1).scatter_(1, part, -torch.inf)[:, :n_items]
            seen.topk(K, dim=1)
    show("RePlay SASRec", step, len(inputs) / (time.process_time() - started))


def main() -> None:
    """Measure the models of one peer."""
    peer, data, settings, users = sys.argv[1:]
    torch.set_num_threads(1)
    {"rectools": rectools, "replay": replay}[peer](Path(data), json.loads(settings), int(users))


if __name__ == "__main__":
    main()
