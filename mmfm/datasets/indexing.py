"""`mmfm data index`: every tar below a folder gets its index, and every folder of tars its list."""

import os
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mmfm.config import UserError, require
from mmfm.data import index, shard_list
from mmfm.data.member_names import How
from mmfm.data.process_pool import in_order
from mmfm.data.progress import ticker
from mmfm.data.token_counts import add_tokens
from mmfm.preprocessing.tokenizer import load_tokenizer

NAMED = 5  # damaged tars that the message names; it counts the others


class Job(NamedTuple):
    """A tar, how its names are read (None: as before), and whose tokens of its texts are counted ("": none)."""

    path: Path
    how: How | None
    tokenizer: str = ""


class Done(NamedTuple):
    """What became of one tar: its samples, the documents among them and one's name, or why it has no index."""

    path: Path
    samples: int
    error: str = ""
    documents: int = 0
    document: str = ""


def index_folder(
    root: Path,
    *,
    again: bool = False,
    how: How | None = None,
    tokenizer: str = "",
    workers: int = 0,
    progress: bool = True,
) -> None:
    """Indexes for the tars below `root` that lack a valid one (`again`: for all), then shards.json in each folder.

    Where a folder cannot be written they lie in this user's cache, where every run looks too, and there is no list.
    `how`: their names are read so; None: as before. tokenizer: "bytes" or a tokenizer.json, whose tokens of each
    sample's texts are counted too. Raises UserError that names the tars which are damaged, after the
    others are done; their folders get no list.
    """
    tars = sorted(_tars(root))
    require(bool(tars), f"there is no .tar below {str(root)!r}; give a folder of shards")
    counted = load_tokenizer(tokenizer).fingerprint if tokenizer else ""
    waiting = tars if again else list(_invalid(tars, how, counted, progress))
    done = list(_indexed([Job(path, how, tokenizer) for path in waiting], workers, progress))
    damaged = [one for one in done if one.error]
    folders = sorted({path.parent for path in tars} - {one.path.parent for one in damaged})
    bare = [folder for folder in folders if shard_list.write_list(folder) is None]
    samples = sum(one.samples for one in done)
    print(f"{root}: {len(tars):,} tars, {len(done) - len(damaged):,} indexed now ({samples:,} samples)")
    for line in _notes(root, [one for one in done if not one.error], bare):
        print(line)
    if damaged:
        for folder in {one.path.parent for one in damaged}:
            with suppress(PermissionError):
                (folder / shard_list.LIST).unlink(missing_ok=True)  # one that vouches for them would be worse than none
        more = f"; and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
        told = "; ".join(one.error for one in damaged[:NAMED])
        raise UserError(f"{len(damaged)} of {len(tars)} tars cannot be indexed: {told}{more}")


def _notes(root: Path, done: list[Done], bare: list[Path]) -> Iterator[str]:
    """What a person may not expect."""
    if empty := [one.path.name for one in done if not one.samples]:
        yield f"without any sample: {', '.join(empty[:NAMED])}{', ...' if len(empty) > NAMED else ''}"
    if documents := sum(one.documents for one in done):
        one = next(one for one in done if one.documents)
        told = f"{documents:,} samples are documents of counted parts, such as {one.document!r} of {one.path.name}"
        remedy = f"mmfm data index --again --last-dot {shlex.quote(str(root))}"
        yield f"{told}; if each of these parts is a sample of its own (a frame, say): {remedy}"
    if bare:
        yield f"{bare[0]} cannot be written: its indexes are in {index.cache_folder()}, without a list"


def _tars(root: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """Below a folder, and below those that are linked there, but for links to a folder around them."""
    about = root.stat() if root.is_dir() else None
    if about is None or (about.st_dev, about.st_ino) in above:
        return
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _tars(root / entry.name, (*above, (about.st_dev, about.st_ino)))
            elif entry.name.endswith(".tar") and entry.is_file():
                yield root / entry.name


def _invalid(tars: list[Path], how: How | None, counted: str, progress: bool) -> Iterator[Path]:
    with ticker("look", len(tars), progress, "tars") as tick:
        for path in tars:
            if not _valid(path, how, counted):
                yield path
            tick(path.name)


def _indexed(jobs: list[Job], workers: int, progress: bool) -> Iterator[Done]:
    with ticker("index", len(jobs), progress, "tars") as tick:
        for one in in_order(_index, jobs, min(workers, len(jobs)) if workers else 1 if len(jobs) < 2 else 0):
            tick(one.path.name)
            yield one


def _index(job: Job) -> Done:
    try:
        found = index.write(job.path, job.how)
        if job.tokenizer:
            add_tokens(job.path, load_tokenizer(job.tokenizer))
        return Done(job.path, len(found), "", *found.documents())
    except UserError as why:
        for path in (index.index_path(job.path), index.aside(job.path)):
            with suppress(PermissionError):
                path.unlink(missing_ok=True)  # one of another tar would be worse than none
        return Done(job.path, 0, str(why))


def _valid(path: Path, how: How | None, counted: str) -> bool:
    try:
        found = index.load(path, path.stat().st_size)
    except (UserError, FileNotFoundError):
        return False
    where = index.found_path(path)
    new = where is not None and where.stat().st_mtime_ns >= path.stat().st_mtime_ns
    return new and (how is None or found.how == how) and counted in ("", found.tokenizer)
