"""What `mmfm export` writes: a folder that is there whole or not at all, and says in export.json what it is."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmfm.config import require
from mmfm.runtime.files import output_folder

ABOUT = "export.json"


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
    ours = out.is_dir() and ((out / ABOUT).is_file() or not any(out.iterdir()))
    require(ours, f"{out} holds no {ABOUT}, so it is no export and is not replaced; name another folder")
    require(force, f"{out} exists; name another folder, or --force replaces it")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
