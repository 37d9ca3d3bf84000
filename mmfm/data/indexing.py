"""`mmfm data index`: every tar below a folder gets its index, and every folder of tars its list."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mmfm.config import UserError, require
from mmfm.data import index
from mmfm.data.folder import ticker
from mmfm.data.pool import in_order

NAMED = 5  # damaged tars that the message names; it counts the others


class Done(NamedTuple):
    """What became of one tar: its samples, or why it has no index."""

    path: Path
    samples: int
    error: str = ""


def index_folder(root: Path, *, again: bool = False, workers: int = 0, progress: bool = True) -> None:
    """Indexes for the tars below `root` that lack a valid one (`again`: for all), then shards.json in each folder.

    Raises UserError that names the tars which are damaged, after the others are done; their folders get no list.
    """
    tars = sorted(path for path in root.rglob("*.tar") if path.is_file())
    require(bool(tars), f"there is no .tar below {str(root)!r}; give a folder of shards")
    waiting = [path for path in tars if again or not _valid(path)]
    done = list(_indexed(waiting, workers, progress))
    damaged = [one for one in done if one.error]
    for folder in sorted({path.parent for path in tars} - {one.path.parent for one in damaged}):
        index.write_list(folder)
    samples = sum(one.samples for one in done)
    print(f"{root}: {len(tars):,} tars, {len(done) - len(damaged):,} indexed now ({samples:,} samples)")
    if damaged:
        more = f"; and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
        told = "; ".join(one.error for one in damaged[:NAMED])
        raise UserError(f"{len(damaged)} of {len(tars)} tars cannot be indexed: {told}{more}")


def _indexed(paths: list[Path], workers: int, progress: bool) -> Iterator[Done]:
    with ticker("index", len(paths), progress, "tars") as tick:
        for one in in_order(_index, paths, min(workers, len(paths)) if workers else 1 if len(paths) < 2 else 0):
            tick(one.path.name)
            yield one


def _index(path: Path) -> Done:
    try:
        return Done(path, len(index.write(path)))
    except UserError as why:
        index.index_path(path).unlink(missing_ok=True)  # one of another tar would be worse than none
        return Done(path, 0, str(why))


def _valid(path: Path) -> bool:
    try:
        index.load(path, path.stat().st_size)
    except (UserError, FileNotFoundError):
        return False
    return index.index_path(path).stat().st_mtime_ns >= path.stat().st_mtime_ns
