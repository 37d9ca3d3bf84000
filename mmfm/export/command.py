"""`mmfm export`: opens a run and hands it to what writes the target, into a folder that is whole or not there."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from mmfm.config import UserError, Vit, require
from mmfm.export.folder import ABOUT, export_folder, refuse, write_json
from mmfm.export.open_source import open_model, whole
from mmfm.inference.bundle.contents import is_trunk
from mmfm.inference.interface import Interface
from mmfm.models.towers import EmbeddedText


def export(
    run: str | Path,
    to: str,
    out: str | Path,
    *,
    modalities: Sequence[str] = (),
    step: int | None = None,
    force: bool = False,
    part: Literal["", "trunk"] = "",
    ema: bool = False,
) -> Path:
    """Writes `out` and returns it. `modalities`: empty for all that the model has; `step`: None for the last; `part`:
    "trunk" for the language model alone, as transformers' own Llama or Qwen; `ema`: the weights' moving average.

    UserError: `out` exists and `force` is not given, the run has no such modality, or the target cannot hold it.
    """
    out = Path(out)
    require(to in ("hf", "peft", *TARGETS), f"--to {to} is not known; there are hf, peft, {', '.join(TARGETS)}")
    require(to == "hf" or not part, f"--part {part} is for --to hf; leave it out")
    if to == "hf" and (part == "trunk" or is_trunk(run)):
        return _trunk(run, out, step, force, ema)
    refuse(out, force)
    if to == "peft":
        return _peft(run, out, step, force, ema)
    model = open_model(run, step, ema)
    chosen = chosen_of(model, modalities)
    if to == "hf":
        from mmfm.export.bundle import save_bundle

        whole(model, to)
        return save_bundle(model, out, chosen, force=force)
    with export_folder(out, force) as folder:
        about = {"to": to, "run": model.run.name, "modalities": list(chosen)} | TARGETS[to](model, to, folder, chosen)
        write_json(folder / ABOUT, about)
    return out


def _trunk(run: str | Path, out: Path, step: int | None, force: bool, ema: bool) -> Path:
    from mmfm.export.language import write

    with export_folder(out, force) as folder:
        write_json(folder / ABOUT, {"to": "hf"} | write(run, folder, step, ema))
    return out


def _peft(run: str | Path, out: Path, step: int | None, force: bool, ema: bool) -> Path:
    from mmfm.export.peft import write

    with export_folder(out, force) as folder:
        write_json(folder / ABOUT, {"to": "peft"} | write(run, folder, step, ema))
    return out


def chosen_of(model: Interface, modalities: Sequence[str]) -> tuple[str, ...]:
    """Those that were asked for, in the model's order."""
    for name in modalities:
        have = ", ".join(model.modalities)
        require(name in model.modalities, f"--modality {name}: this model has no such tower; it has {have}")
    return tuple(name for name in model.modalities if name in modalities or not modalities)


def _tensors(model: Interface, to: str, folder: Path, modalities: Sequence[str]) -> dict[str, Any]:
    language = "take --to hf --part trunk for the language model"
    require(bool(modalities), f"--to {to} writes what towers read, and this model has none; {language}")
    if "text" in modalities and isinstance(model.core.towers["text"], EmbeddedText):
        others = " ".join(name for name in model.modalities if name != "text")
        told = f"--to {to}: the trunk's own table reads this model's text, which is no graph of its own"
        raise UserError(f"{told}; {f'give --modality {others}, or ' if others else ''}{language}")
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as why:
        told = f"--to {to} needs {why.name}, which is not installed"
        raise UserError(f"{told}; pip install 'mmfm[export]'") from None
    from mmfm.export.tensors import write_tensors

    return write_tensors(model, to, folder, modalities)


def _open_clip(model: Interface, to: str, folder: Path, modalities: Sequence[str]) -> dict[str, Any]:
    whole(model, to)
    both = {"image", "text"} & set(model.modalities) <= set(modalities)
    require(both, "--to open_clip holds images and texts together; leave out --modality")
    from mmfm.export.open_clip import write

    return write(model, folder)


def _timm(model: Interface, to: str, folder: Path, modalities: Sequence[str]) -> dict[str, Any]:
    vit = model.config.image
    told = "--to timm holds an image tower that is built here (a Vit)"
    require(set(modalities) in ({"image"}, set(model.modalities)), f"{told} and nothing else; leave out --modality")
    if not isinstance(vit, Vit):
        raise UserError(f"{told}, and this model has none; take --to onnx")
    from mmfm.export.timm import write

    return {"modalities": ["image"]} | write(vit, model.core.towers["image"], folder)


Write = Callable[[Interface, str, Path, Sequence[str]], dict[str, Any]]
TARGETS: dict[str, Write] = {
    "open_clip": _open_clip,
    "timm": _timm,
    "onnx": _tensors,
    "torch_export": _tensors,
}
