"""A folder that is there whole or not at all; `mmfm export` says in its export.json what it wrote for other tools."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmfm.config import require
from mmfm.inference.bundle.contents import FILES
from mmfm.runtime.files import output_folder

ABOUT = "export.json"
MARKS = (ABOUT, FILES, "bundle.json")  # of what `mmfm export` and `mmfm import` write, or did in an earlier format


@contextmanager
def export_folder(out: Path, force: bool) -> Iterator[Path]:
    """`output_folder`, with a UserError where `out` exists and `force` does not say to
    replace it, or where `out` is something that no export has written."""
    refuse(out, force)
    with output_folder(out) as folder:
        yield folder


def refuse(out: Path, force: bool) -> None:
    """Before anything is computed: a UserError where this folder may not be written."""
    require(out.name not in ("", ".", ".."), f"{out} cannot be replaced; name a folder to be made")
    if not out.exists():
        return
    ours = out.is_dir() and (any((out / mark).is_file() for mark in MARKS) or not any(out.iterdir()))
    require(ours, f"{out} is no folder that mmfm exported or imported, and is not replaced; name another folder")
    require(force, f"{out} exists; name another folder, or --force replaces it")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
