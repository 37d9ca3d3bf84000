"""Two towers of CLIP's shape and their projections as a plain open_clip folder, which needs nothing of ours.

`layouts.convert` makes our towers of open_clip's; a tower has no projection, so the three tensors that join the two
(HEADS) are given beside them. What is written loads by open_clip.create_model_and_transforms("local-dir:OUT").
"""

from collections.abc import Mapping
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmfm.config import TextTower, Vit, require
from mmfm.export.folder import write_json
from mmfm.export.open_clip import CONFIG, RESIZE, WEIGHTS
from mmfm.models.mappings import Converted
from mmfm.models.mappings.to_open_clip import to_open_clip

HEADS = ("visual.proj", "text_projection", "logit_scale")
BIAS = "logit_bias"  # of a model of the sigmoid loss


def write_clip(image: Converted, text: Converted, heads: Mapping[str, Tensor], folder: Path) -> None:
    """Fills `folder`. heads: open_clip's state of HEADS, and BIAS where there is one.

    The tokenizer is open_clip's own of CLIP. UserError: towers that open_clip's CLIP has no place for, or that do not
    fit each other or the heads.
    """
    missing = sorted(set(HEADS) - set(heads))
    require(not missing, f"no {', '.join(missing)} given; a CLIP joins its towers by {', '.join(HEADS)}")
    require(isinstance(image.part, Vit) and isinstance(text.part, TextTower), "give an image tower and a text tower")
    assert isinstance(image.part, Vit)
    (left, visual), (right, words) = to_open_clip(image.part, image.weights), to_open_clip(text.part, text.weights)
    one = left.architecture["quick_gelu"] == right.architecture["quick_gelu"]
    require(one, "one tower has QuickGELU and the other GELU; open_clip's CLIP has one for both")
    model = {**left.architecture, **right.architecture, "embed_dim": heads["visual.proj"].shape[1]}
    model |= {"init_logit_bias": 0.0} if BIAS in heads else {}
    state = {**{f"visual.{name}": value for name, value in visual.items()}, **words}
    state |= {name: heads[name] for name in (*HEADS, BIAS) if name in heads}
    _fits(model, state)
    pixels = image.part.pixels
    how = {"interpolation": pixels.interpolation, "resize_mode": RESIZE[pixels.resize_mode]}
    colours = {name: list(values * (3 // len(values))) for name, values in (("mean", pixels.mean), ("std", pixels.std))}
    size = [pixels.height_px, pixels.width_px]
    write_json(folder / CONFIG, {"model_cfg": model, "preprocess_cfg": {"size": size, **colours, **how}})
    save_file({name: value.detach().contiguous().clone() for name, value in state.items()}, folder / WEIGHTS)


def _fits(model: Mapping[str, object], state: Mapping[str, Tensor]) -> None:
    """Built as open_clip builds it, but without memory."""
    with torch.device("meta"):
        theirs = open_clip.CLIP(**model).state_dict()  # pyright: ignore[reportArgumentType]
    for name in sorted(theirs.keys() | state.keys()):
        here, there = (tuple(table[name].shape) if name in table else "none" for table in (state, theirs))
        require(here == there, f"{name} has shape {here}, and {there} in open_clip's CLIP of these towers and heads")
