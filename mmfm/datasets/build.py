"""`mmfm data build`: a folder, a table or a Hugging Face dataset as shards; what was stopped goes on where it was.

Which rows make which shard is settled before any is read, so several processes, or a second start after a stop, write
the same bytes. Each finished shard leaves a record beside; a row that cannot be read is left out and listed.
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from mmfm.config import UserError, require
from mmfm.data import index
from mmfm.data.process_pool import in_order
from mmfm.data.progress import ticker
from mmfm.data.writer import Item, as_json, write_shard
from mmfm.datasets.build_check import Check, check_item, read_row
from mmfm.datasets.build_rows import TABLES, Columns, Row, Rows, from_folder, from_items, metadata_of
from mmfm.datasets.build_tables import from_metadata, from_table
from mmfm.datasets.shard_folder import LEFT_OUT, ShardFolder, record_path
from mmfm.preprocessing import BadSample
from mmfm.runtime.files import replace_file

FORMAT = 1  # raised when the same input gives other bytes
MANIFEST = "build.json"
MISSING = "missing_file"
NAMED = 3  # missing files that the message names; left_out.jsonl has all
INPUTS = "a folder, a .csv, .tsv, .jsonl, .json or .parquet, or a folder of datasets' save_to_disk"
PACKAGES = "pip install 'mmfm[data]'"


@runtime_checkable
class Source(Protocol):
    """Rows to be written: build_rows and build_hf have them."""

    @property
    def print(self) -> str: ...
    @property
    def said(self) -> tuple[str, ...]: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def keys(self) -> Iterable[str]: ...
    def part(self, start: int, stop: int) -> Iterable[Row]: ...


class LeftOut(NamedTuple):
    """A row that is in no shard; `code` is one of BadSample's, or MISSING."""

    key: str
    code: str
    why: str


class Job(NamedTuple):
    """One shard to be written."""

    rows: Iterable[Row]
    path: Path
    check: Check
    max_seconds: float


class Record(NamedTuple):
    """What became of a shard's rows. `bytes` is 0 where none was left."""

    samples: int
    bytes: int
    left_out: tuple[LeftOut, ...]


def build(
    source: Any,
    out: str | Path,
    *,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    classes: bool = False,
    prefix: str = "shard",
    samples_per_shard: int = 1_000,
    check: Check = "decode",
    max_seconds: float = 3_600.0,
    allow_missing: bool = False,
    workers: int = 1,
    progress: bool = True,
) -> None:
    """Write shards of `source` into `out`: INPUTS by its path, a `datasets.Dataset`, or Items.

    `out` must be new or empty, or hold the same build: then it goes on, or is kept. Raises UserError at the end where
    files are missing. With several `workers` (0: all cores) a script must call it under `if __name__ == "__main__"`.
    """
    require(samples_per_shard > 0, f"samples_per_shard={samples_per_shard} must be greater than 0")
    require(prefix.replace("-", "").replace("_", "").isalnum(), f"the prefix {prefix!r} must be of letters and digits")
    out = Path(out)
    within = isinstance(source, str | Path) and out.resolve().is_relative_to(Path(source).expanduser().resolve())
    require(not within, f"{out} lies in {source}, which is read; choose a folder outside of it")
    if progress and isinstance(source, str | Path) and Path(source).exists():
        print(f"reading the names in {source}", file=sys.stderr, flush=True)
    rows = _open(source, columns, classes)
    options = {"format": FORMAT, "samples_per_shard": samples_per_shard, "prefix": prefix, "check": check}
    plan = _fingerprint(rows, options | {"max_seconds": max_seconds})
    folder = ShardFolder(out, MANIFEST, options | {"plan": plan}, "build")
    if folder.complete():
        return
    for line in rows.said:
        print(line)
    with folder.writing():
        jobs = [
            Job(
                rows.part(start, min(start + samples_per_shard, len(rows))),
                out / f"{prefix}-{number:06d}.tar",
                check,
                max_seconds,
            )
            for number, start in enumerate(range(0, len(rows), samples_per_shard))
        ]
        _finish(folder, rows, _run(jobs, len(rows), workers, progress, out.name), allow_missing)


# What it is built from


def _open(source: Any, columns: Columns, classes: bool) -> Source:
    """The rows, and a check that no key comes twice."""
    rows = _rows_of(source, columns, classes)
    seen: set[str] = set()
    for key in rows.keys():  # noqa: SIM118 (a method of ours)
        require(key not in seen, f"two samples have the key {key!r}; rename one (in keys / becomes - and . becomes _)")
        seen.add(key)
    return rows


def _rows_of(source: Any, columns: Columns, classes: bool) -> Source:
    if not isinstance(source, str | Path):
        return from_items(source) if isinstance(source, list | tuple) else _optional().from_dataset(source, columns)
    path = Path(source).expanduser()
    require(path.exists(), f"there is no {str(source)!r}; give {INPUTS}")
    saved = path.is_dir() and any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
    own = None if path.is_file() or saved else metadata_of(path)
    table = path.is_file() or saved or own is not None
    what = f"{own} says what its files are" if own else f"{path} is none"
    require(not (classes and table), f"--classes folders is for a folder of files, and {what}; leave it out")
    require(table or columns == Columns(), f"{path} is a folder and has no columns; leave out --image, --audio, ...")
    if saved:
        return _optional().from_saved(path, columns)
    if own is not None:
        return _described(own, columns)
    return from_folder(path, classes=classes) if path.is_dir() else _tabled(path, columns)


def _tabled(path: Path, columns: Columns) -> Rows:
    if path.suffix.lower() == ".parquet":
        return _optional().from_parquet(path, columns)
    require(path.suffix.lower() in (*TABLES, ".json"), f"{path} is of no known kind; give {INPUTS}")
    return from_table(path, columns)


def _described(table: Path, columns: Columns) -> Rows:
    """A folder with a table of its own, such as Hugging Face's metadata.csv."""
    try:
        return from_metadata(table, _tabled(table, columns))
    except UserError as why:
        raise UserError(f"{why}; or take {table.name} away, and the folder's files alone are read") from None


def _optional() -> Any:
    try:
        from mmfm.datasets import build_hf
    except ModuleNotFoundError as why:
        raise UserError(f"the package {why.name} is not installed; install it with: {PACKAGES}") from None
    return build_hf


def _fingerprint(rows: Source, wanted: dict[str, Any]) -> str:
    text = repr((rows.print, len(rows), rows.classes, sorted(wanted.items())))
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


# The shards


def _run(jobs: list[Job], rows: int, workers: int, progress: bool, name: str) -> list[Record]:
    """The records of all shards; those that were there count as done."""
    records = [_found(job) for job in jobs]
    waiting = [job for job, record in zip(jobs, records, strict=True) if record is None]
    if len(waiting) < len(jobs):
        print(f"going on: {len(jobs) - len(waiting)} of {len(jobs)} shards are written")
    with ticker(name, rows, progress) as tick:
        for record in records:
            tick("", _rows_in(record) if record else 0)
        fresh = in_order(write_job, waiting, min(workers, len(waiting)) if workers else 0)
        for place, record in enumerate(records):
            if record is None:
                records[place] = made = next(fresh)
                tick(jobs[place].path.name, _rows_in(made))
    return [record for record in records if record is not None]


def _rows_in(record: Record) -> int:
    return record.samples + len(record.left_out)


def write_job(job: Job) -> Record:
    """Write one shard, its index and its record."""
    left_out: list[LeftOut] = []
    samples = write_shard(job.path, _readable(job, left_out))
    if not samples:
        for path in (job.path, index.index_path(job.path)):
            path.unlink(missing_ok=True)
    record = Record(samples, job.path.stat().st_size if samples else 0, tuple(left_out))
    replace_file(record_path(job.path), as_json(record._asdict()))
    return record


def _readable(job: Job, left_out: list[LeftOut]) -> Iterator[Item]:
    for row in job.rows:
        try:
            item = read_row(row)
            check_item(item, job.check, job.max_seconds)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as why:
            left_out.append(LeftOut(row.key, MISSING, str(why.filename)))
        except BadSample as why:
            left_out.append(LeftOut(row.key, why.code, str(why)))
        else:
            yield item


def _found(job: Job) -> Record | None:
    """The record of a shard that was finished and lacks no file. Its index must be whole and be that of this tar."""
    try:
        tree = json.loads(record_path(job.path).read_text(encoding="utf-8"))
        record = Record(tree["samples"], tree["bytes"], tuple(LeftOut(*line) for line in tree["left_out"]))
        if record.samples and len(index.load(job.path, job.path.stat().st_size)) != record.samples:
            return None
        same = not record.samples or job.path.stat().st_size == record.bytes
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return record if same and not any(line.code == MISSING for line in record.left_out) else None


def _finish(folder: ShardFolder, rows: Source, records: list[Record], allow_missing: bool) -> None:
    """The lists of what is there and what is not. Only then is the build complete."""
    out, left_out = folder.out, [line for record in records for line in record.left_out]
    folder.write_left_out([line._asdict() for line in left_out])
    samples = sum(record.samples for record in records)
    require(samples > 0, f"none of {len(rows)} samples could be read; {out / LEFT_OUT} says why of each")
    missing = [line.why for line in left_out if line.code == MISSING]
    if missing and not allow_missing:
        named = f"{', '.join(missing[:NAMED])}{', ...' if len(missing) > NAMED else ''}"
        remedy = "put them there and repeat the command, or leave them out with --allow-missing"
        raise UserError(f"{len(missing)} of {len(rows)} samples lack a file: {named}; {remedy}")
    if rows.classes:
        replace_file(out / "classnames.txt", "".join(f"{name}\n" for name in rows.classes))
    counts = dict(sorted(Counter(line.code for line in left_out).items()))
    shards = sum(record.samples > 0 for record in records)
    folder.finish(samples=samples, shards=shards, left_out=counts)
    why = f" ({', '.join(f'{code} {count}' for code, count in counts.items())}; see {LEFT_OUT})" if counts else ""
    print(f"{out} is complete: {samples:,} samples in {shards:,} shards, {len(left_out):,} left out{why}")
