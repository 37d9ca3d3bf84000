"""Of which weights, data and code results are, and whether a run still has those weights. Standard library only."""

import hashlib
import json
import re
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mmfm.config import Run, require
from mmfm.config.serialization import from_file
from mmfm.evals.records import Origin, Row
from mmfm.evals.suite import Suite, metrics_of
from mmfm.inference.bundle.contents import PARTS, is_bundle, is_trunk, read_bundle, read_manifest

WEIGHTS, MANIFEST = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors"), "manifest.json"
AGAIN = "score it again: mmfm eval"


def origin_of(checkpoint: Path | None, suite: Suite | None = None) -> Origin:
    """Of a checkpoint's folder, or a bundle's."""
    step, weights = (None, "") if checkpoint is None else weights_of(checkpoint) or (None, "")
    weights = bundle_weights(checkpoint) if checkpoint is not None and is_bundle(checkpoint) else weights
    return Origin(step=step, weights=weights, suite="" if suite is None else digest_of(suite), version=version())


def run_of(folder: Path) -> Run:
    """The configuration of a run's folder, or of a whole or a language model's bundle. UserError: it is none."""
    path, told = folder / "run.json", "give the folder that `mmfm train` printed, or that of a whole model's bundle"
    require(folder.is_dir(), f"{folder}: no such folder; give the folder of a run, such as runs/NAME")
    if is_bundle(folder):
        bundle = read_bundle(folder)
        whole = bundle.whole or is_trunk(folder)
        require(whole, f"{folder} holds {bundle.alone}, and no model; give a run, or a whole model's bundle")
        return bundle.run
    require(path.is_file(), f"{folder} holds no run.json, so it is no run; {told}")
    return from_file(path)


def version() -> str:
    """Of mmfm."""
    return str(vars(sys.modules["mmfm"])["__version__"])


def digest_of(suite: Suite) -> str:
    """Equal for suites that ask the same of the same."""
    files = [metric.sha256 for task in suite.tasks for metric in metrics_of(task)]
    told = "\n".join([repr(suite), *files])
    return hashlib.blake2b(told.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def weights_of(checkpoint: Path) -> tuple[int, str] | None:
    """Step and checksum of the weights in a checkpoint's folder, as its manifest has them, or a checksum of checksums
    where they lie in several files; None where there is none."""
    try:
        tree = json.loads((checkpoint / MANIFEST).read_bytes())
        named = sorted((name, int(file["crc32"])) for name, file in tree["files"].items() if WEIGHTS.fullmatch(name))
        sums = [f"{crc32:08x}" for _, crc32 in named]
        return int(tree["step"]), sums[0] if len(sums) < 2 else f"{zlib.crc32(' '.join(sums).encode()):08x}"
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None


def bundle_weights(folder: Path) -> str:
    """A checksum of the checksums of all parts of a bundle, as its manifest has them."""
    files = read_manifest(folder).files
    sums = [f"{name} {files[name].crc32:08x}" for part in PARTS if (name := f"{part}.safetensors") in files]
    return f"{zlib.crc32(' '.join(sums).encode()):08x}"


class Doubt(NamedTuple):
    """Why results are not of the run as it is. `stale`: they are of weights that the run does not have any more."""

    told: str
    stale: bool


def doubt(folder: Path, name: str, rows: Iterable[Row]) -> Doubt | None:
    """What makes the results in the file `name` of a folder, of a run or a bundle, doubtful; None where they are of its
    last weights, and where it holds no checkpoint to compare with."""
    if is_bundle(folder):
        others = {row.weights for row in rows} - {bundle_weights(folder)}
        told = f"{folder / name} is of other weights than {folder} has now; {AGAIN} {folder}"
        return Doubt(told, stale=True) if others else None
    held = sorted(step for path in (folder / "checkpoints").glob("step-*") if (step := step_of(path)) is not None)
    found = sorted({(row.step, row.weights) for row in rows}, key=str)
    if not held or not found:
        return None
    again = f"{AGAIN} {folder}"
    if len(found) > 1:
        return Doubt(f"{folder / name} is of several checkpoints; {again}", stale=True)
    step, weights = found[0]
    if not isinstance(step, int) or not weights:
        return Doubt(f"{folder / name} does not say of which weights it is; {again}", stale=False)
    now = weights_of(folder / "checkpoints" / f"step-{step:08d}")
    if now is None:
        return Doubt(f"{folder / name} is of step {step}, which {folder} does not have any more; {again}", stale=True)
    if now != (step, weights):
        return Doubt(f"{folder / name} is of other weights than step {step} has now; {again}", stale=True)
    if step != held[-1]:
        return Doubt(f"{folder / name} is of step {step}; the last of {folder} is {held[-1]}", stale=False)
    return None


def step_of(checkpoint: Path) -> int | None:
    """The step in the name of a checkpoint's folder; None for another folder's name."""
    match = re.fullmatch(r"step-(\d{8,})", checkpoint.name)
    return int(match[1]) if match else None
