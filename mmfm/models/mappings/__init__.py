"""Tables of names: how other libraries call the tensors that our own modules hold, read in both directions.

converted = convert(Foreign(library="hf", architecture=config, modality="image"), weights)
VisionTransformer(converted.part).load_state_dict(converted.weights)
theirs.load_state_dict(give_back(foreign, converted.part, converted.weights, shapes_of(theirs)))
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmfm.config import Trunk, UserError, require
from mmfm.models.mappings import audio, image, language, text
from mmfm.models.mappings.language import language_config, place_embeddings
from mmfm.models.mappings.mapping import Foreign, Layout, Part, checked, foreign, hf_kind, renamed, returned
from mmfm.models.mappings.table import Weights

__all__ = [
    "Converted",
    "Foreign",
    "Layout",
    "Part",
    "convert",
    "find",
    "foreign",
    "give_back",
    "language_config",
    "place_embeddings",
    "shapes_of",
]
LAYOUTS = (*image.LAYOUTS, *text.LAYOUTS, *audio.LAYOUTS, *language.LAYOUTS)


@dataclass(frozen=True, kw_only=True)
class Converted:
    """One of our parts, and all its weights under its names.

    embedding, output: of a language model, the table of its words and, where they are not tied, that of its output;
    `place_embeddings` makes a vocabulary's of each.
    """

    part: Part
    weights: Weights
    embedding: Tensor | None = None
    output: Tensor | None = None


def find(foreign: Foreign) -> Layout | None:
    """The layout of this family. That it has one does not mean that every choice of the family has a place here."""
    kind = kind_of(foreign)
    fits = (foreign.library, foreign.modality)
    return next((found for found in LAYOUTS if (found.library, found.modality) == fits and kind in found.kinds), None)


def kind_of(foreign: Foreign) -> str:
    """What tells families of a library apart."""
    match foreign.library:
        case "hf":
            return hf_kind(foreign)
        case "timm":
            return image.timm_kind(foreign)
        case "open_clip":
            within = "timm_model_name" in foreign.architecture.get("vision_cfg", {}) and foreign.modality == "image"
            return image.timm_kind(foreign) if within else ""
        case "torchaudio":
            return "Conformer" if "depthwise_conv_kernel_size" in foreign.architecture else ""
    return ""


def convert(foreign: Foreign, weights: Mapping[str, Tensor]) -> Converted:
    """The same function in our own modules. UserError: no layout, no such choice here, a tensor too many or too few."""
    layout = find(foreign)
    if layout is None:
        raise UserError(
            f"no layout for {foreign.library}'s {kind_of(foreign) or 'model'}; import it wrapped, as a Tower"
        )
    part = layout.part(foreign)
    found = layout.fit(part, renamed(layout, weights), foreign)
    if not isinstance(part, Trunk):
        return Converted(part=part, weights=checked(part, found))
    embedding, output = found.pop("embedding.weight", None), found.pop("output.weight", None)
    return Converted(
        part=part, weights=checked(part, found), embedding=embedding, output=_output(part, embedding, output)
    )


def shapes_of(module: nn.Module) -> dict[str, torch.Size]:
    """Of all tensors that it saves."""
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def give_back(foreign: Foreign, part: Part, weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> Weights:
    """The inverse of `convert`: the weights of one of our parts as those of the library's module of these shapes.

    Names are those of a tower alone. UserError: no layout, or the two have not the same tensors.
    """
    layout = find(foreign)
    require(layout is not None, f"no layout for {foreign.library}'s {kind_of(foreign) or 'model'}")
    assert layout is not None
    return returned(layout, part, weights, shapes)


def _output(part: Trunk, embedding: Tensor | None, output: Tensor | None) -> Tensor | None:
    if not part.tie_embeddings:
        return output  # None, of a model without a head
    same = output is None or (embedding is not None and torch.equal(output, embedding))
    require(same, "the configuration ties input and output, but the weights hold two tables; say tie_word_embeddings")
    return None
