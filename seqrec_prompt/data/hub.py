"""Hugging Face datasets: a folder written by `save_to_disk`, a dataset folder, or a name on the hub."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seqrec_prompt.artifacts import hash_file, hash_json
from seqrec_prompt.data.tables import NO_TIMES, Table, as_text_table
from seqrec_prompt.data.times import TimeColumn
from seqrec_prompt.errors import DataError

ROWS = 1 << 16  # read at a time


class HuggingFaceData:
    """One split of a dataset, named `PLACE[:config][:split]`; PLACE is a folder or `owner/name` on the hub.

    A single word after the colon is a configuration if the dataset has one of that name, else a split. A dataset with
    only one split needs no split named.
    """

    def __init__(self, location: str) -> None:
        self.name = location
        place, *words = location.split(":")
        if not place or len(words) > 2:
            raise DataError([f"{location}: expected a file, a folder, or owner/name[:config][:split]."])
        self._folder = Path(place) if Path(place).is_dir() else None
        self._data = self._pick(*self._load(place, words))
        self.columns: list[str] = self._data.column_names

    def read(self, wanted: Sequence[str], times: Mapping[str, TimeColumn] = NO_TIMES) -> Table:
        """Read the wanted columns."""

        def batches(columns: list[str]) -> Iterable[Any]:
            return self._data.select_columns(columns).with_format("arrow").iter(ROWS)  # type: ignore[no-any-return]

        return as_text_table(self.name, wanted, times, batches)

    def digest(self) -> str:
        """SHA-256 of the folder's files, or of the files that the hub's dataset was unpacked to."""
        if self._folder is not None:
            return hash_file(self._folder)
        return hash_json([hash_file(Path(file["filename"])) for file in self._data.cache_files])

    def _load(self, place: str, words: list[str]) -> tuple[Any, str | None]:
        """Return everything that was loaded and the split asked for."""
        import datasets
        import datasets.exceptions

        saved = self._folder and any((self._folder / f).exists() for f in ("state.json", "dataset_dict.json"))
        try:
            if saved:
                return datasets.load_from_disk(place), words[-1] if words else None
            if len(words) == 1:
                words = [words[0], ""] if words[0] in datasets.get_dataset_config_names(place) else ["", words[0]]
            config, split = words or ("", "")
            return datasets.load_dataset(place, config or None), split or None
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            here = "" if self._folder else f" There is no file or folder '{place}' here either."
            advice = "Check the name, and that this machine can reach the hub (private data: 'hf auth login')."
            raise DataError(
                [f"{self.name}: the datasets library says: {error}"], advice + here if not self._folder else ""
            ) from None

    def _pick(self, loaded: Any, split: str | None) -> Any:
        import datasets

        if isinstance(loaded, datasets.Dataset):
            return loaded
        names = list(loaded)
        if split is None and len(names) == 1:
            return loaded[names[0]]
        if split in names:
            return loaded[split]
        stem = self.name.removesuffix(f":{split}")
        asked = f"no split '{split}'" if split else "several splits"
        raise DataError([f"{self.name}: {asked}; it has {', '.join(names)}. Name one, like {stem}:{names[0]}"])
