"""The folder of a data set that mmfm makes: whether it is what was asked for, and the list of its files."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmfm.config import UserError, require
from mmfm.data.writer import as_json
from mmfm.runtime.files import output_folder, replace_file

PARTIAL = ".partial"  # after the folder's name, until it is whole


def build_folder(
    folder: Path, name: str, arguments: Mapping[str, Any], write: Callable[[Path], tuple[Mapping[str, Any], str]]
) -> None:
    """Write the data set `name` into `folder`, which must be new or empty, or hold just this: then nothing is done.

    `write` fills the folder that it gets, and returns what the manifest says beside `arguments`, and a line of it all.
    """
    if complete(folder, name, arguments):
        print(f"{folder} is complete already; nothing to do")
        return
    with output_folder(folder, PARTIAL) as partial:
        tree, line = write(partial)
        manifest = {"arguments": dict(arguments), **tree}
        replace_file(partial / f"{name}.json", as_json({**manifest, "files": prints(partial)}))
    print(f"{folder} is complete: {line}")


def complete(folder: Path, name: str, wanted: Mapping[str, Any]) -> bool:
    """Whether `folder` is just the set `name` as `wanted`, by its NAME.json; False if there is nothing.

    Raises UserError if it is something else, or if a file is missing or of another size.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    remedy = "choose another folder, or delete this one and build again"
    try:
        manifest = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        found, sizes = dict(manifest["arguments"]), {path: about["bytes"] for path, about in manifest["files"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{folder} exists and is no `{name}` data set; {remedy}") from None
    differing = [f"{key}={found.get(key)}, not {value}" for key, value in wanted.items() if found.get(key) != value]
    require(not differing, f"{folder} was built with {'; '.join(differing)}; {remedy}")
    for path, size in sizes.items():
        whole = (folder / path).is_file() and (folder / path).stat().st_size == size
        require(whole, f"{folder / path} is missing or was changed; {remedy}")
    return True


def prints(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of every file, by its path in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _print_of(path) for path in files}


def _print_of(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
