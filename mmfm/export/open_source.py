"""What is exported: the model of a run, of one of its checkpoints, or of a bundle; or the tower that a bundle holds."""

from pathlib import Path

from mmfm.config import require
from mmfm.inference.bundle.contents import is_bundle, read_bundle
from mmfm.inference.bundle.load import from_pretrained, load_encoder
from mmfm.inference.interface import Interface
from mmfm.inference.load import load_model


def open_model(run: str | Path, step: int | None = None, ema: bool = False) -> Interface:
    """`step`: of a run's folder; None for the last. `ema`: its weights' moving average. UserError for what is none of
    the three.

    Of a tower alone there is no embedding: its core has no heads.
    """
    if not is_bundle(Path(run)):
        return load_model(run, step, ema=ema)
    require(step is None, f"{run} is a bundle, which has no steps; leave out --step")
    require(not ema, f"{run} is a bundle, which keeps no moving average; leave out --ema")
    bundle = read_bundle(Path(run))
    if bundle.whole or not bundle.modalities:
        return from_pretrained(run)
    (modality,) = bundle.modalities
    encoder = load_encoder(modality, run)
    return Interface(encoder.core, encoder.run, encoder.tokenizer).eval()


def whole(model: Interface, to: str) -> None:
    """A UserError for a tower alone."""
    told = "holds a tower alone, which has no embedding; train a model with it, or take --to onnx or torch_export"
    require(len(model.core.heads) > 0, f"--to {to} needs a model, and this bundle {told}")
