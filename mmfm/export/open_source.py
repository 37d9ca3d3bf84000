"""What is exported: the model of a run, of one of its checkpoints, or of a bundle; or the tower that a bundle holds."""

from pathlib import Path

from mmfm.config import require
from mmfm.inference.bundle.contents import is_bundle, read_bundle
from mmfm.inference.bundle.load import load_encoder, open_whole
from mmfm.inference.interface import Interface
from mmfm.inference.merged import plain


def open_model(run: str | Path, step: int | None = None, ema: bool = False) -> Interface:
    """`step`: of a run's folder; None for the last. `ema`: its weights' moving average. Adapters are merged. UserError
    for what is none of the three.

    Of a tower alone there is no embedding: its core has no heads.
    """
    bundle = read_bundle(Path(run)) if is_bundle(Path(run)) else None
    if bundle is None or bundle.whole or not bundle.modalities:
        return plain(open_whole(run, step, ema=ema))
    (modality,) = bundle.modalities
    encoder = load_encoder(modality, run)
    return Interface(encoder.core, encoder.run, encoder.tokenizer).eval()


def whole(model: Interface, to: str) -> None:
    """A UserError for a tower alone."""
    told = "holds a tower alone, which has no embedding; train a model with it, or take --to onnx or torch_export"
    require(len(model.core.heads) > 0, f"--to {to} needs a model, and this bundle {told}")
