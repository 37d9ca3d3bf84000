"""Where an evaluation's splits lie and where its files go: told before the work, not after."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmfm.checkpoint import replace_file
from mmfm.config import Run, UserError, require
from mmfm.data.names import expand
from mmfm.evals.split import asked_and_more
from mmfm.strict import from_json

SPLITS = ("val", "test", "test-unseen")


def read_run(folder: Path) -> Run:
    path = folder / "run.json"
    require(path.is_file(), f"{folder} holds no run.json, so it is no run; give the folder that `mmfm train` printed")
    return from_json(path.read_text(encoding="utf-8"), str(path))


def default_splits(run: Run) -> list[str]:
    """The val, test and test-unseen folders beside the run's validation data, else that data.

    What training never met is looked for among all: the galleries of test-unseen hold those of test too.
    """
    require(bool(run.data.val), f"run {run.name!r} has no validation data; say what to evaluate: --data SHARDS")
    folder = Path(run.data.val)
    beside = [folder.parent / name for name in SPLITS if (folder.parent / name).is_dir()]
    wider = {path: f"{path}+{path.parent / 'test'}" for path in beside if path.name == "test-unseen"}
    specs = [wider[path] if path in wider and path.parent / "test" in beside else str(path) for path in beside]
    return specs if folder.is_dir() and specs else [run.data.val]


def named_splits(data: Sequence[str]) -> dict[str, str]:
    """Name -> shards. A name is given as NAME=SHARDS, or else is that of the folder of the shards."""
    splits: dict[str, str] = {}
    for item in data:
        name, sign, spec = item.partition("=")
        if not sign or "/" in name or not name:
            name, spec = expand(asked_and_more(item)[0])[0].resolve().parent.name, item
        require(
            name not in splits, f"two splits are called {name!r}: {splits.get(name)} and {spec}; name one NAME={spec}"
        )
        splits[name] = spec
    return splits


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
    """Whole or not at all."""
    data = json.dumps(tree, indent=indent, allow_nan=False, separators=(",", ": " if indent else ":")).encode()
    try:
        replace_file(path, data)
    except OSError as why:
        raise UserError(f"cannot write {path}: {why.strerror}; free some space or choose a place by --out") from None
