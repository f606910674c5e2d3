"""Reading recommendation files so that they may stand in one table: same data, same sessions, same seen filter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seqrec_prompt.artifacts import hash_file
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.sessions import Holdout
from seqrec_prompt.errors import DataError
from seqrec_prompt.recommenders.base import Recommendations
from seqrec_prompt.recommenders.files import RecommendationFile, read, read_file_manifest

SHOWN_IDS = 3


@dataclass(frozen=True, eq=False)
class Row:
    """One recommender of the comparison, its lists in the order of the holdout.

    path and sha256: the file it came from, None for a baseline. manifest: how 'recommend' made it, {} for others; only
    such a file tells which lists are proven exact.
    """

    name: str
    lists: Recommendations
    path: Path | None = None
    sha256: str | None = None
    manifest: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Recommenders over the same test sessions; `exclude_seen` tells whether their lists leave out seen items."""

    holdout: Holdout
    rows: list[Row]
    exclude_seen: bool


def load_comparison(paths: Sequence[Path], data: Path, dataset: Dataset, taken_names: Iterable[str]) -> Comparison:
    """Read all files and bring their lists into the order of the test part, without padding or dropping any.

    data: the directory of `dataset`, for messages. taken_names: names that no file's row may have. Raises
    ArtifactError for a file that cannot be read; DataError when files were made from other data, hold sessions that
    are no test sessions, repeat an item in a list, or differ in their sessions or in exclude_seen.
    """
    _check_data(paths, data, dataset)
    files = [read(path, dataset.catalog) for path in paths]
    test_ids = dataset.split.test.prompts.ids
    problems = [p for file in files for p in _problems(file, dataset.catalog, test_ids, data)]
    if problems:
        raise DataError(problems, f"Make the file again with: seqrec-prompt recommend --data {data}")
    _check_same_sessions(files)
    exclude_seen = _exclude_seen(files)

    position = {session_id: i for i, session_id in enumerate(test_ids)}
    where = [np.array([position[session_id] for session_id in file.lists.session_ids]) for file in files]
    names = row_names(paths, taken_names)
    rows = [
        Row(name, file.lists.take(np.argsort(order)), file.path, hash_file(file.path), file.manifest)
        for name, file, order in zip(names, files, where, strict=True)
    ]
    return Comparison(dataset.split.test.take(np.sort(where[0])), rows, exclude_seen)


def row_names(paths: Sequence[Path], taken: Iterable[str] = ()) -> list[str]:
    """Name each file by its stem, or by as many parent folders and the stem as it takes to tell it from the others."""
    bare = [path.resolve().with_suffix("") for path in paths]
    stems = Counter(bare)
    # x.parquet and x.pq in one folder differ by nothing but their suffix.
    full = [(b if stems[b] == 1 else path.resolve()).parts for b, path in zip(bare, paths, strict=True)]
    depths = [1] * len(full)
    while True:
        names = ["/".join(parts[-depth:]) for parts, depth in zip(full, depths, strict=True)]
        uses = Counter([*names, *taken])
        deeper = [min(d + (uses[name] > 1), len(parts)) for name, d, parts in zip(names, depths, full, strict=True)]
        if deeper == depths:
            return names
        depths = deeper


def _check_data(paths: Sequence[Path], data: Path, dataset: Dataset) -> None:
    repeated = [str(path) for path, uses in Counter(path.resolve() for path in paths).items() if uses > 1]
    if repeated:
        raise DataError([f"{path}: given more than once" for path in repeated])
    manifests = {path: read_file_manifest(path) or {} for path in paths}
    trained = [path for path, made in manifests.items() if made.get("config", {}).get("part") == "train"]
    if trained:
        raise DataError(
            [f"{path}: lists for train sessions, made with --part train" for path in trained],
            "Only test sessions have a target to compare with. Make the file again without --part.",
        )
    found = {path: made.get("inputs", {}).get("data") for path, made in manifests.items()}
    other = [
        f"{path}: made from other data ({made_from[:12]}…; {data} is {dataset.hash[:12]}…)"
        for path, made_from in found.items()
        if made_from is not None and made_from != dataset.hash
    ]
    if other:
        raise DataError(other, "Give the --data directory it was made from, or run 'seqrec-prompt recommend' again.")


def _problems(file: RecommendationFile, catalog: Catalog, test_ids: npt.NDArray[np.object_], data: Path) -> list[str]:
    problems = []
    lists = file.lists
    if not len(lists):
        problems.append(f"{file.path}: holds no sessions")
    known = set(test_ids)
    strangers = [session_id for session_id in lists.session_ids if session_id not in known]
    if strangers:
        problems.append(
            f"{file.path}: {len(strangers):,} of {len(lists):,} sessions are not in the test part of {data}: "
            + _first(strangers)
        )
    rows = np.repeat(np.arange(len(lists)), np.diff(lists.offsets))
    pairs, uses = np.unique(rows * len(catalog) + lists.items, return_counts=True)
    repeated = pairs[uses > 1]
    if len(repeated):
        session_id = lists.session_ids[repeated[0] // len(catalog)]
        item_id = catalog.ids[repeated[0] % len(catalog)]
        where = len(np.unique(repeated // len(catalog)))
        problems.append(
            f"{file.path}: {where:,} of {len(lists):,} lists repeat an item, "
            f"for example session '{session_id}' has item '{item_id}' more than once"
        )
    return problems


def _check_same_sessions(files: Sequence[RecommendationFile]) -> None:
    first = set(files[0].lists.session_ids)
    problems = []
    for file in files[1:]:
        own = set(file.lists.session_ids)
        if own == first:
            continue
        missing = [i for i in files[0].lists.session_ids if i not in own]
        extra = [i for i in file.lists.session_ids if i not in first]
        differences = [
            f"{len(ids):,} only in the {which}: {_first(ids)}"
            for which, ids in (("first", missing), ("second", extra))
            if ids
        ]
        problems.append(
            f"{files[0].path} ({len(first):,} sessions) and {file.path} ({len(own):,} sessions) "
            f"cover different sessions; {'; '.join(differences)}"
        )
    if problems:
        raise DataError(
            problems,
            "Only lists of the same sessions compare: make the files for the same sessions, or evaluate apart.",
        )


def _exclude_seen(files: Sequence[RecommendationFile]) -> bool:
    """Return what the files say; a file that does not say goes along, and no file saying means False."""
    said = {file.path: file.manifest.get("config", {}).get("exclude_seen") for file in files}
    values = {bool(value) for value in said.values() if value is not None}
    if len(values) > 1:
        raise DataError(
            [f"{path}: made with exclude_seen = {value}" for path, value in said.items() if value is not None],
            "Lists with and without the session's own items do not compare: make them with the same --exclude-seen.",
        )
    return values == {True}


def _first(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN_IDS]) + (", …" if len(ids) > SHOWN_IDS else "")
