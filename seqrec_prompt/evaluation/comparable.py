"""Reading recommendation files so that they may stand in one table: same data, same sessions, same seen filter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

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
    such a file tells which lists are proven exact. unknown, repeated: places of the lists that hold an id the catalog
    does not have, or an item once more; in `lists` these places hold the size of the catalog.
    """

    name: str
    lists: Recommendations
    path: Path | None = None
    sha256: str | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    unknown: int = 0
    repeated: int = 0


@dataclass(frozen=True, eq=False)
class Comparison:
    """Recommenders over the same test sessions; `exclude_seen` tells whether their lists leave out seen items."""

    holdout: Holdout
    rows: list[Row]
    exclude_seen: bool


def load_comparison(
    paths: Sequence[Path],
    data: Path,
    dataset: Dataset,
    taken_names: Iterable[str] = (),
    invalid: Literal["refuse", "count"] = "refuse",
) -> Comparison:
    """Read all files and bring their lists into the order of the test part, without padding or dropping any.

    data: the directory of `dataset`, for messages. taken_names: names that no file's row may have. invalid: what to do
    with ids that are not in the catalog and items that a list repeats; 'count' makes each a lost place. Raises
    ArtifactError for a file that cannot be read; DataError when files were made from other data, hold sessions that
    are no test sessions, or differ in their sessions or in exclude_seen, and for what is to be refused.
    """
    _check_data(paths, data, dataset)
    lost = len(dataset.catalog)
    files = [read(path, dataset.catalog, lost if invalid == "count" else None) for path in paths]
    test_ids = dataset.split.test.prompts.ids
    repeats = [_repeats(file.lists, lost) for file in files]
    problems = [
        problem
        for file, repeated in zip(files, repeats, strict=True)
        for problem in _problems(file, dataset.catalog, test_ids, data, repeated[: None if invalid == "refuse" else 0])
    ]
    if problems:
        raise DataError(
            problems,
            f"Make the file again with: seqrec-prompt recommend --data {data}"
            + ("\nOr count repeated items as lost places: --invalid count" if any(map(len, repeats)) else ""),
        )
    _check_same_sessions(files)
    exclude_seen = _exclude_seen(files)

    names = row_names(paths, taken_names)
    rows, shared = [], np.zeros(0, np.int64)
    for name, file, repeated in zip(names, files, repeats, strict=True):
        where = _position(test_ids, file.lists.session_ids)
        shared = np.sort(where)
        unknown = int((file.lists.items == lost).sum())
        items = file.lists.items.copy()
        items[repeated] = lost
        lists = replace(file.lists, items=items).take(np.argsort(where))
        rows.append(Row(name, lists, file.path, hash_file(file.path), file.manifest, unknown, len(repeated)))
    return Comparison(dataset.split.test.take(shared), rows, exclude_seen)


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


def _position(of: npt.NDArray[np.object_], ids: npt.NDArray[np.object_]) -> npt.NDArray[np.int64]:
    """(ids,) where each stands in `of`, -1 where it does not."""
    found = pc.index_in(pa.array(ids, pa.string()), value_set=pa.array(of, pa.string()))
    positions: npt.NDArray[np.int64] = found.fill_null(-1).to_numpy().astype(np.int64)
    return positions


def _repeats(lists: Recommendations, lost: int) -> npt.NDArray[np.int64]:
    """Entries of `lists.items` that hold an item which stands in the same list before; lost places do not count."""
    rows = np.repeat(np.arange(len(lists)), np.diff(lists.offsets))
    entries = np.flatnonzero(lists.items != lost)
    _, first = np.unique(rows[entries] * (lost + 1) + lists.items[entries], return_index=True)
    return np.delete(entries, first)


def _problems(
    file: RecommendationFile,
    catalog: Catalog,
    test_ids: npt.NDArray[np.object_],
    data: Path,
    repeated: npt.NDArray[np.int64],
) -> list[str]:
    problems = []
    lists = file.lists
    if not len(lists):
        problems.append(f"{file.path}: holds no sessions")
    strangers = lists.session_ids[_position(test_ids, lists.session_ids) < 0].tolist()
    if strangers:
        problems.append(
            f"{file.path}: {len(strangers):,} of {len(lists):,} sessions are not in the test part of {data}: "
            + _first(strangers)
        )
    if len(repeated):
        rows = np.searchsorted(lists.offsets, repeated, side="right") - 1
        problems.append(
            f"{file.path}: {len(np.unique(rows)):,} of {len(lists):,} lists repeat an item, for example session "
            f"'{lists.session_ids[rows[0]]}' has item '{catalog.ids[lists.items[repeated[0]]]}' more than once"
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
