"""`mmfm export`: opens a run and hands it to what writes the target, into a folder that is whole or not there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmfm.checkpoint import load_model
from mmfm.config import require
from mmfm.export.folder import ABOUT, refuse, whole_folder, write_json
from mmfm.interface import Interface

GRAPHS = ("onnx", "torch_export")


def export(
    run: str | Path,
    to: str,
    out: str | Path,
    *,
    modalities: Sequence[str] = (),
    step: int | None = None,
    force: bool = False,
) -> Path:
    """Writes `out` and returns it. `modalities`: empty for all that the model has; `step`: None for the last.

    UserError: `out` exists and `force` is not given, the run has no such modality, or the target cannot hold it.
    """
    out = Path(out)
    require(to in GRAPHS, f"--to {to} is not known; there are {', '.join(GRAPHS)}")
    refuse(out, force)
    model = load_model(run, step)
    chosen = chosen_of(model, modalities)
    with whole_folder(out, force) as folder:
        about = {"to": to, "run": model.run.name, "modalities": list(chosen)} | _write(model, to, folder, chosen)
        write_json(folder / ABOUT, about)
    return out


def chosen_of(model: Interface, modalities: Sequence[str]) -> tuple[str, ...]:
    """Those that were asked for, in the model's order."""
    for name in modalities:
        have = ", ".join(model.modalities)
        require(name in model.modalities, f"--modality {name}: this model has no such tower; it has {have}")
    return tuple(name for name in model.modalities if name in modalities or not modalities)


def _write(model: Interface, to: str, folder: Path, modalities: Sequence[str]) -> dict[str, Any]:
    from mmfm.export.tensors import write_tensors

    return write_tensors(model, to, folder, modalities)
