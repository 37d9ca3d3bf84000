"""What needs the optional packages pyarrow and datasets: Parquet files and Hugging Face `datasets`, as rows.

A row of a dataset is read by the process that writes its shard; pictures and sounds are taken as they are stored, never
decoded and encoded again. Nothing is downloaded.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import datasets
import pyarrow
import pyarrow.parquet

from mmfm.compat.datasets import fingerprint
from mmfm.config import UserError, require
from mmfm.datasets.build_messages import is_talk
from mmfm.datasets.build_rows import Columns, Row, Rows, key_of, row_number
from mmfm.datasets.build_tables import choose, from_records, row_of, told_captions, told_columns


@dataclass(frozen=True, kw_only=True)
class DatasetRows:
    """The rows of a dataset, which is on disk or in memory."""

    dataset: datasets.Dataset
    columns: Columns
    folder: Path
    print: str
    said: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.dataset)

    def keys(self) -> Iterable[str]:
        if not self.columns.key:
            return map(row_number, range(len(self)))
        return (key_of(str(value)) for value in self.dataset.select_columns([self.columns.key])[self.columns.key])

    def part(self, start: int, stop: int) -> Iterable[Row]:
        return _Slice(self.dataset.select(range(start, stop)), self.columns, self.folder, start)


@dataclass(frozen=True)
class _Slice:
    """Some rows of a dataset, of which `first` was the first one's number; read when they are asked for."""

    dataset: datasets.Dataset
    columns: Columns
    folder: Path
    first: int

    def __iter__(self) -> Iterator[Row]:
        labels = _labels(self.dataset)
        for number, given in enumerate(self.dataset, self.first):
            record = cast(dict[str, Any], given)
            named = {name: _name_of(label, record[name]) for name, label in labels.items()}
            yield row_of(number, {**record, **named}, self.columns, self.folder)


def from_dataset(given: Any, columns: Columns, folder: Path = Path()) -> DatasetRows:
    """A `datasets.Dataset`; paths in it are relative to `folder`. Raises UserError for a dictionary of splits."""
    remedy = "give one split, such as dataset['train']"
    require(isinstance(given, datasets.Dataset), f"a {type(given).__name__} is no datasets.Dataset; {remedy}")
    features = dict(given.features)
    nested = {name: kind.feature for name, kind in features.items() if isinstance(kind, datasets.List)}
    kinds = {"image": datasets.Image, "audio": datasets.Audio}
    typed = {role: [n for n, f in features.items() if isinstance(f, kind)] for role, kind in kinds.items()}
    for role, names in typed.items():
        several = len(names) > 1 and not getattr(columns, role)
        require(not several, f"the dataset has several columns of type {role} ({', '.join(names)}); pick one: --{role}")
    raw = given.with_format(None)
    for role, names in typed.items():
        for name in names:
            raw = raw.cast_column(name, kinds[role](decode=False))
        for name in (name for name, kind in nested.items() if isinstance(kind, kinds[role])):
            raw = raw.cast_column(name, datasets.List(kinds[role](decode=False)))
    require(len(raw) > 0, "the dataset has no rows; give one that has")
    chosen = _choose(columns, typed, raw, str(folder))
    others = [name for names in typed.values() for name in names if name not in chosen.chosen().values()]
    kind = features.get(chosen.text)
    several = kind is not None and not isinstance(kind, datasets.Value | datasets.ClassLabel | dict)
    left = (f"not taken: the column {name!r}" for name in others)
    said = (told_columns(chosen), *told_captions(chosen, several), *left)
    told = f"{fingerprint(given)} {features} {chosen}{' of several captions' if several else ''}"
    return DatasetRows(dataset=raw.remove_columns(others), columns=chosen, folder=folder, print=told, said=said)


def _choose(columns: Columns, typed: Mapping[str, list[str]], dataset: datasets.Dataset, where: str) -> Columns:
    """A column of the type Image or Audio needs no usual name."""
    names, first = dataset.column_names, [dataset[0]]
    if columns.chosen() or is_talk(names, first):
        return choose(columns, names, first, f"the dataset {where}")
    found = {role: named[0] for role, named in typed.items() if named}
    rest = [name for name in names if name not in found.values()]
    try:
        other = choose(columns, rest, first, f"the dataset {where}") if rest else Columns()
    except UserError:
        if not found:
            raise
        other = Columns(key=columns.key)
    return Columns(**{**other.chosen(), **found}, key=columns.key)


def from_saved(root: Path, columns: Columns) -> DatasetRows:
    """A folder that `Dataset.save_to_disk` wrote."""
    require(
        not (root / "dataset_dict.json").is_file(),
        f"{root} holds several splits; give the folder of one, such as {root / 'train'}",
    )
    try:
        dataset = datasets.load_from_disk(str(root))
    except (OSError, ValueError, KeyError, pyarrow.ArrowInvalid) as why:
        raise UserError(f"{root} is no folder of save_to_disk ({' '.join(str(why).split())}); save it again") from None
    return from_dataset(dataset, columns, root)


def from_parquet(path: Path, columns: Columns) -> Rows:
    """A Parquet file; paths are relative to its folder, and a cell may hold the bytes themselves."""
    try:
        records = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as why:
        raise UserError(f"{path} is no Parquet file ({' '.join(str(why).split())}); write it again") from None
    with path.open("rb") as file:
        told = hashlib.file_digest(file, "sha256").hexdigest()
    return from_records(records, path, columns, told)


def is_dataset(given: Any) -> bool:
    return isinstance(given, datasets.Dataset | datasets.DatasetDict)


def _name_of(label: datasets.ClassLabel, value: Any) -> Any:
    """A class by its name; -1 and None are no class."""
    return label.int2str(value) if isinstance(value, int) and value >= 0 else None


def _labels(dataset: datasets.Dataset) -> dict[str, datasets.ClassLabel]:
    return {name: kind for name, kind in dataset.features.items() if isinstance(kind, datasets.ClassLabel)}
