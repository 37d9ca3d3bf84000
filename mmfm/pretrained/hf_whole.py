"""What a whole model of transformers itself says of one picture or sound and one text: by its forward, which is another
way than that of its halves, so that a class whose `get_image_features` and the like are something else is found out.
"""

import inspect
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from mmfm.pretrained import architecture_schema
from mmfm.pretrained.encoder import Resolved, architecture
from mmfm.pretrained.hf_encoders import HfEncoder, build

Given = dict[str, tuple[HfEncoder, tuple[Tensor, ...]]]  # the encoder of each modality, and what it is given


class OwnOutputs(NamedTuple):
    """embeds: by modality, those that it gives by name. logits: of the pair, where it gives one."""

    embeds: dict[str, Float[Tensor, "1 dim"]]
    logits: float | None


def examples(halves: Mapping[str, Resolved]) -> Given:
    """Each half with its weights, and an input."""
    found = {}
    for name, half in halves.items():
        encoder = build(half.blueprint).eval()
        assert isinstance(encoder, HfEncoder)
        encoder.load_state_dict(half.weights or {}, assign=True)
        found[name] = encoder, encoder.example()
    return found


@torch.no_grad()
def own_outputs(halves: Mapping[str, Resolved], given: Given) -> OwnOutputs:
    """Of the inputs of `examples`."""
    model = _whole(halves)
    inputs: dict[str, Tensor] = {"is_longer": torch.zeros(1, 1, dtype=torch.bool)}
    for name, (encoder, (x, *keep)) in given.items():
        inputs |= {encoder.key: x} | ({"attention_mask": keep[0].long()} if name == "text" else {})
    takes = inspect.signature(model.forward).parameters
    out = model(**{name: x for name, x in inputs.items() if name in takes})
    embeds = {name: x for name in halves if isinstance(x := out.get(f"{name}_embeds"), Tensor)}
    logits = [x for name in halves if name != "text" and isinstance(x := out.get(f"logits_per_{name}"), Tensor)]
    return OwnOutputs(embeds, float(logits[0]) if logits and logits[0].numel() == 1 else None)


def _whole(halves: Mapping[str, Resolved]) -> PreTrainedModel:
    """The model with the weights of its halves, and what it learned beside them."""
    first = next(iter(halves.values()))
    config = architecture_schema.hf_config(architecture(first.blueprint)["config"], "a whole model")
    model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False).eval()
    state = {name.removeprefix("trunk."): x for half in halves.values() for name, x in (half.weights or {}).items()}
    for name, parameter in model.named_parameters():
        if name in first.scalars:
            state[name] = torch.full_like(parameter, first.scalars[name])
    model.load_state_dict(state, strict=False)
    return model
