"""Fixtures made offline, once a test run. Treat directories as read-only; copy them to change them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import build_catalog, save_tiny_model

from seqrec_prompt.artifacts import hash_json, manifest
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.sessions import Holdout, Sessions, Split


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Directory of a random two-layer Llama (float32, peaked distributions) and its byte-level ChatML tokenizer.

    Use it wherever a model's name or directory is asked for. Pad is <|endoftext|>, end is <|im_end|>.
    """
    return save_tiny_model(tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture(scope="session")
def tiny_engine(tiny_model):
    """`HuggingFaceEngine` on the tiny model, float32. It keeps state between prefill and extend: one search at once."""
    from seqrec_prompt.engines.huggingface import HuggingFaceEngine

    return HuggingFaceEngine.load(str(tiny_model), dtype="float32")


@pytest.fixture(scope="session")
def tokenizer(tiny_engine):
    """The tiny model's tokenizer, read back from its directory."""
    return tiny_engine.tokenizer


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    """Thirty items: shared prefixes, prefix and duplicate titles, two empty ones, control tokens as text, a title of
    some 300 tokens, emoji, right-to-left. One attribute, `brand`, empty for some.
    """
    return build_catalog()


@pytest.fixture(scope="session")
def dataset_dir(tmp_path_factory, catalog) -> Path:
    """Directory as `prepare` writes it: `catalog`, 30 train sessions of 2 to 9 items, 12 test sessions with a target.

    Sessions walk up the catalog in small steps, so there is something to learn.
    """
    draw = np.random.default_rng(0)

    def sessions(prefix: str, n: int, shortest: int) -> Sessions:
        lengths = draw.integers(shortest, 10, n)
        lists = [
            ((draw.integers(len(catalog)) + np.cumsum(draw.integers(1, 3, size))) % len(catalog)).tolist()
            for size in lengths
        ]
        return Sessions.build([f"{prefix}-{i}" for i in range(n)], lists)

    split = Split(sessions("train", 30, 2), Holdout.of_last_items(sessions("test", 12, 2)))
    directory = tmp_path_factory.mktemp("dataset")
    Dataset(catalog, split, manifest("prepare", {}, {}, {"hash": hash_json("tiny")})).save(directory)
    return directory


@pytest.fixture(scope="session", autouse=True)
def compiled_catalogs(tmp_path_factory):
    """Tests keep compiled catalogs among their own files, not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "seqrec_prompt.decoding.compiled.cache_directory", lambda: tmp_path_factory.getbasetemp() / "cache"
        )
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """torch on one thread: hundreds of tiny forwards are many times slower on two when the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
