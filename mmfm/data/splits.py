"""What scores are taken from: "SHARDS", "NAME=SHARDS", or "SHARDS+MORE" to search among MORE too; and its name.

A split without a name of its own is called after the folder that holds all of its shards. Standard library only.
"""

import glob
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mmfm.config import Run, require
from mmfm.data.shard_specs import is_here, parts_of, patterns
from mmfm.data.urls import folder_of, shown

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def is_remote(spec: str) -> bool:
    """Whether any of the parts, joined by commas, has a scheme; also one that `check_scheme` refuses."""
    return any(SCHEME.match(part) and not is_here(part) for part in parts_of(spec))


def reads_remote(run: Run) -> bool:
    """Whether any shards that the run names have a scheme."""
    splits = [shards_of(item) for item in (run.data.val, *run.eval.splits)]
    return any(map(is_remote, (*splits, *(source.shards for source in run.data.train))))


def asked_and_more(spec: str) -> tuple[str, str]:
    """ "A+B" as A and B; a path that exists as it is has no B, whatever its name, and of a URL B is one too.

    Errors:
        UserError: nothing stands before or after the +.
    """
    if is_remote(spec):
        asking, more = [*re.split(r"\+(?=[A-Za-z][A-Za-z0-9.-]*://)", spec, maxsplit=1), ""][:2]
    else:
        asking, sign, more = (spec, "", "") if Path(spec).exists() else spec.partition("+")
        told = f"{spec!r} has no shards on one side of its +; give SHARDS+MORE, or SHARDS alone"
        require(not sign or bool(asking and more), told)
    return asking, more


def shards_of(item: str) -> str:
    """The shards of "SHARDS" or "NAME=SHARDS"."""
    name, sign, spec = item.partition("=")
    return spec if sign and name and not set("/:\\") & set(name) else item


def named(item: str) -> tuple[str, str]:
    """Name and shards of "NAME=SHARDS"; else the name of the folder of the shards, and these.

    Errors:
        UserError: the shards lie in no folder with a name.
    """
    if (spec := shards_of(item)) != item:
        return item.partition("=")[0], spec
    found = _name_of(asked_and_more(item)[0])
    told = f"{shown(item)!r} has no folder to be called after; give it a name: NAME={shown(item)}"
    require(bool(found), told)
    return found, item


def named_splits(data: Sequence[str]) -> dict[str, str]:
    """Name -> shards of several splits.

    Errors:
        UserError: two have one name.
    """
    splits: dict[str, str] = {}
    for item in data:
        name, spec = named(item)
        told = f"two splits are called {name!r}: {splits.get(name)} and {spec}; name one NAME={spec}"
        require(name not in splits, told)
        splits[name] = spec
    return splits


def splits_of(run: Run) -> dict[str, str]:
    """The splits that a run names, by name: its validation data first, then `eval.splits`."""
    return named_splits(list(dict.fromkeys([*([run.data.val] if run.data.val else []), *run.eval.splits])))


def _name_of(spec: str) -> str:
    """The last name of the folder that all of the shards lie in, whether or not they are there."""
    return _last([(_remote_folder if is_remote(pattern) else _folder)(pattern) for pattern in patterns(spec)])


def _folder(pattern: str) -> tuple[str, ...]:
    path = Path(pattern).expanduser().resolve()
    if not path.is_dir() and path.suffix == ".tar":
        path = path.parent
    while not path.is_dir() and glob.has_magic(path.name):
        path = path.parent
    return path.parts


def _remote_folder(url: str) -> tuple[str, ...]:
    folder, _ = folder_of(url)
    parts = urlsplit(folder)
    return (parts.netloc.rpartition("@")[2], *(unquote(name) for name in parts.path.split("/") if name))


def _last(folders: Sequence[tuple[str, ...]]) -> str:
    """The last name that all of them begin with, or end with."""
    ends = {folder[-1] for folder in folders}
    if len(ends) == 1:
        return ends.pop().strip("/")
    shared = [names[0] for names in zip(*folders, strict=False) if len(set(names)) == 1]
    apart = next((at for at, names in enumerate(zip(*folders, strict=False)) if len(set(names)) > 1), len(shared))
    return shared[apart - 1].strip("/") if apart else ""
