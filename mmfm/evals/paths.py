"""Where an evaluation's splits lie and where its files go: told before the work, not after."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmfm.config import Run, UserError, require
from mmfm.config.serialization import from_file
from mmfm.data.splits import named_splits, splits_of
from mmfm.runtime.files import replace_file


def read_run(folder: Path) -> Run:
    path = folder / "run.json"
    require(path.is_file(), f"{folder} holds no run.json, so it is no run; give the folder that `mmfm train` printed")
    return from_file(path)


def splits_to_score(run: Run, data: Sequence[str]) -> dict[str, str]:
    """Name -> shards of `data`, each SHARDS or NAME=SHARDS; without any, of the splits that the run names."""
    if not data:
        told = "has no validation data and no eval.splits; say what to evaluate: --data SHARDS"
        require(bool(run.data.val or run.eval.splits), f"run {run.name!r} {told}")
    return named_splits(data) if data else splits_of(run)


def check_place(path: Path) -> Path:
    """The same path, if a file can be put there: told before the work, not after."""
    require(
        not path.is_dir(), f"--out {path} is a folder; give the name of a file in it, such as {path / 'results.json'}"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as why:
        raise UserError(f"cannot make {path.parent}: {why.strerror}; choose another place by --out") from None
    require(os.access(path.parent, os.W_OK), f"cannot write in {path.parent}; choose another place by --out")
    return path


def write_json(path: Path, tree: Any, indent: int | None = 1) -> None:
    """Whole or not at all; numbers that are not finite as null, and halves of surrogate pairs as escapes."""
    how = {"indent": indent, "allow_nan": False, "separators": (",", ": " if indent else ":")}
    data = json.dumps(nulled(tree), **how).encode()
    try:
        replace_file(path, data)
    except OSError as why:
        raise UserError(f"cannot write {path}: {why.strerror}; free some space or choose a place by --out") from None


def nulled(tree: Any) -> Any:
    """The same of JSON's kinds, with None for every number that is not finite."""
    if isinstance(tree, dict):
        return {key: nulled(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [nulled(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
