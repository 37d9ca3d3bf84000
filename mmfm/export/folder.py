"""What `mmfm export` writes: a folder that is there whole or not at all, and says in export.json what it is."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmfm.config import UserError, require

ABOUT = "export.json"


@contextmanager
def whole_folder(out: Path, force: bool) -> Iterator[Path]:
    """A temporary folder beside `out`, which becomes `out` when all went well and is removed when not.

    UserError where `out` exists and `force` does not say to replace it, or it is something that no export has written.
    """
    refuse(out, force)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    aside = out.with_name(f".{out.name}.{os.getpid()}.old.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if out.exists():
            os.replace(out, aside)
        os.replace(temporary, out)
    except OSError as why:
        raise UserError(f"could not write {out} ({why.strerror or why}); choose another folder or mend that") from why
    finally:
        for left in (temporary, aside):
            shutil.rmtree(left, ignore_errors=True)


def refuse(out: Path, force: bool) -> None:
    """Before anything is computed: a UserError where this folder may not be written."""
    require(out.name not in ("", ".", ".."), f"{out} cannot be replaced; name a folder to be made")
    if not out.exists():
        return
    require(force, f"{out} exists; name another folder, or --force replaces it")
    ours = out.is_dir() and ((out / ABOUT).is_file() or not any(out.iterdir()))
    require(ours, f"{out} holds no {ABOUT}, so it is no export and is not replaced; name another folder")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
