"""Encoders in a folder, with a proof that they are what they were when they were written.

`contents` says what is in it, `save` and `load` write and read it, `starting` begins another model with its weights.
"""

from typing import TYPE_CHECKING

from mmfm.config import MODALITIES, Model, Run, Tower
from mmfm.inference.bundle.contents import check_weights, is_bundle, is_run

if TYPE_CHECKING:
    from pathlib import Path

    from mmfm.models.model import UnifiedModel
    from mmfm.preprocessing.tokenizer import Tokenizer
    from mmfm.pretrained import Resolved

__all__ = ["check_start", "check_weights", "reader_of", "resolve", "start", "start_whole"]


def start(core: "UnifiedModel", cfg: Model) -> None:
    """The weights of those parts of `cfg` that name a bundle or a run, into a fresh model. UserError where they do not
    fit."""
    parts = {name: getattr(cfg, name) for name in (*MODALITIES, "trunk")}
    named = [name for name, part in parts.items() if not isinstance(part, Tower) and getattr(part, "weights", "")]
    if named:
        from mmfm.inference.bundle.initialize import start_parts

        start_parts(core, cfg, named)


def start_whole(core: "UnifiedModel", run: Run, tokenizer: "Tokenizer") -> tuple[str, ...]:
    """All weights of `run.start`, a run or a bundle, that have a place in the model; what is to be said of it."""
    from mmfm.inference.bundle.initialize import start_whole

    return start_whole(core, run, tokenizer)


def check_start(run: Run) -> None:
    """Raises UserError where `run.start` is not here, is no whole model, or was trained with another tokenizer."""
    from mmfm.inference.bundle.initialize import check_start

    check_start(run)


def reader_of(folder: str) -> "Path":
    """The tokenizer.json of a text tower that has its own, in a bundle or a run."""
    from mmfm.inference.bundle.initialize import reader_of

    return reader_of(folder)


def resolve(tower: Tower, modality: str) -> "Resolved":
    """`encoders.resolve`, whose sources may be bundles and runs too."""
    if is_bundle(tower.source) or is_run(tower.source):
        from mmfm.inference.bundle.initialize import resolved

        return resolved(tower, modality)
    from mmfm.pretrained import resolve

    return resolve(tower, modality)
