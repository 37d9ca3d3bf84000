"""Encoders of transformers as modules, and how they are built from a blueprint: tokens are `last_hidden_state` of the
part of a model that reads the modality, or one token, the embedding that the whole model makes of it.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from mmfm.compat.transformers import output_lengths
from mmfm.config import EncoderSpec, require
from mmfm.data.batch import Tokens
from mmfm.pretrained import architecture_schema
from mmfm.pretrained.encoder import Encoder, all_real, architecture, fit_keep, flat, one_token
from mmfm.pretrained.hf_preprocessors import extract, rebuild

PARTS = {
    "image": ("vision_model", "vision_tower", "visual", "image_model"),
    "text": ("text_model", "language_model"),
    "audio": ("audio_model", "audio_tower", "speech_encoder"),
}
INPUTS = {"image": ("pixel_values",), "text": ("input_ids",), "audio": ("input_features", "input_values")}
Lengths = Callable[[Int[Tensor, " batch"]], Int[Tensor, " batch"]]


class HfEncoder(Encoder):
    """`method`: of the trunk, what gives its embedding; empty: it gives tokens. `takes`: its arguments. `key`: which of
    them is the input."""

    def __init__(self, blueprint: EncoderSpec, trunk: nn.Module) -> None:
        super().__init__(blueprint, trunk)
        kind = blueprint.modality
        self.method = f"get_{kind}_features" if "parts" in architecture(blueprint) else ""
        reader = trunk_of(trunk, kind, type(trunk).__name__) if self.method else trunk
        self.takes = frozenset(inspect.signature(getattr(trunk, self.method or "forward")).parameters)
        self.key = input_of(reader)

    def outputs(self, x: Tensor, **more: object) -> Any:
        run = getattr(self.trunk, self.method) if self.method else self.trunk
        return run(**{self.key: x}, **{name: value for name, value in more.items() if name in self.takes})

    def last(self, x: Tensor, **more: object) -> Tensor:
        out = self.outputs(x, **more)
        return one_token(getattr(out, "pooler_output", out), type(self.trunk).__name__) if self.method else out[0]


class HfImages(HfEncoder):
    def forward(self, x: Float[Tensor, "batch channels height width"], keep: Tensor | None = None) -> Tokens:
        out = self.last(x, interpolate_pos_encoding=True)
        return all_real(flat(out, out.shape[1]))


class HfText(HfEncoder):
    def forward(self, x: Int[Tensor, "batch time"], keep: Bool[Tensor, "batch time"] | None = None) -> Tokens:
        assert keep is not None and self.blueprint.words is not None
        ids = x.masked_fill(~keep, self.blueprint.words.pad)
        out = self.last(ids, attention_mask=keep.long(), use_cache=False)
        return all_real(out) if self.method else Tokens(out, keep)

    def fills(self) -> bool:
        """A model whose pool reads the last place, though it is padding, was trained without padding (SigLIP)."""
        ids = torch.ones(1, 4, dtype=torch.long)
        out = self.outputs(ids, attention_mask=torch.tensor([[1, 1, 0, 0]]))
        pooled = getattr(out, "pooler_output", None)
        if pooled is None or getattr(out, "last_hidden_state", None) is None:
            return False
        (slope,) = torch.autograd.grad(pooled.square().sum(), out.last_hidden_state, allow_unused=True)
        return slope is not None and (slope[0].abs().sum(-1) > 0).tolist() == [False, False, False, True]


class HfSound(HfEncoder):
    """`masked`: whether its extractor says that the model was trained with a mask; others see the padding."""

    def __init__(self, blueprint: EncoderSpec, trunk: nn.Module) -> None:
        super().__init__(blueprint, trunk)
        assert blueprint.sound is not None
        self.extractor = rebuild(blueprint.sound)
        self.masked = bool(getattr(self.extractor, "return_attention_mask", False))
        self.lengths: Lengths | None = output_lengths(trunk)
        rule = architecture(blueprint).get("lengths")  # of a blueprint that was made before, the method is taken
        if rule is not None:
            self.lengths = Counted(stride=int(rule[0]), more=int(rule[1]))

    def features(
        self, waves: Float[Tensor, "batch samples"], keep: Bool[Tensor, "batch samples"]
    ) -> tuple[Tensor, Bool[Tensor, "batch time"]]:
        assert self.blueprint.sound is not None
        return extract(self.extractor, self.blueprint.sound, waves, keep, self.key)

    def forward(self, x: Tensor, keep: Bool[Tensor, "batch time"] | None = None) -> Tokens:
        assert keep is not None
        more: dict[str, Tensor] = {"attention_mask": keep.long()} if self.masked else {}
        out = self.last(x, is_longer=torch.zeros(x.shape[0], 1, dtype=torch.bool, device=x.device), **more)
        out = flat(out, out.shape[1])
        return all_real(out) if self.method else Tokens(out, fit_keep(keep, out.shape[1], self.lengths))


KINDS: dict[str, type[HfEncoder]] = {"image": HfImages, "text": HfText, "audio": HfSound}


def trunk_of(model: nn.Module, modality: str, name: str) -> nn.Module:
    """The part that reads the modality: one that is named for it, else the encoder of two halves, else the model."""
    children = dict(model.named_children())
    trunk = next((children[part] for part in PARTS[modality] if part in children), None)
    if trunk is None:
        halves = {"encoder", "decoder"} <= children.keys()  # what an encoder saved alone says of itself may differ
        trunk = cast(PreTrainedModel, model).get_encoder() if halves else model
    found = input_of(cast(nn.Module, trunk))
    require(
        found in INPUTS[modality],
        f"{name} cannot be the {modality} tower: its {type(trunk).__name__} reads {found or 'nothing by name'}, "
        f"and {modality} comes as {' or '.join(INPUTS[modality])}; give another source",
    )
    return cast(nn.Module, trunk)


def input_of(module: nn.Module) -> str:
    """What it reads: the one input that its forward takes, else what its class says, which some leave as text's."""
    known = [name for names in INPUTS.values() for name in names]
    taken = [name for name in inspect.signature(module.forward).parameters if name in known]
    return taken[0] if len(taken) == 1 else str(getattr(module, "main_input_name", ""))


def build(blueprint: EncoderSpec) -> Encoder:
    config = architecture_schema.hf_config(architecture(blueprint)["config"], "a blueprint of transformers")
    model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    parts, modality = architecture(blueprint).get("parts"), blueprint.modality
    if parts is None:
        return KINDS[modality](blueprint, trunk_of(model, modality, config.model_type))
    for part in parts_of(model).keys() - set(map(str, parts)):
        delattr(model, part)
    return KINDS[modality](blueprint, model)


def parts_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of each of a model's children, and each that is its own."""
    own = {name: [parameter] for name, parameter in model.named_parameters(recurse=False)}
    return own | {name: list(child.parameters()) for name, child in model.named_children()}


class Counted(NamedTuple):
    """Of n inputs there are floor((n + more) / stride) tokens, as of any stack of convolutions."""

    stride: int
    more: int
    holds: bool = True

    def __call__(self, inputs: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        return (inputs + self.more).div(self.stride, rounding_mode="floor")


@torch.no_grad()
def measured(encoder: HfSound) -> Counted | None:
    """How many tokens there are of how many inputs, all of them real. None where all inputs are of one length."""
    assert encoder.blueprint.sound is not None
    waves = torch.sin(torch.arange(encoder.blueprint.sound.rate_hz) * 0.1)[None]
    x, keep = encoder.features(waves, torch.ones_like(waves, dtype=torch.bool))
    if encoder.blueprint.sound.window_seconds or keep.shape[1] == 1:
        return None
    full = int(keep.sum())
    axis = next((axis for axis in range(1, x.ndim) if x.shape[axis] == keep.shape[1]), None)
    if axis is None:
        return None

    def count(inputs: int) -> int:
        return encoder(x.narrow(axis, 0, inputs), keep[:, :inputs]).x.shape[1]

    def first(tokens: int) -> int:
        """The fewest inputs that have so many tokens."""
        low, high = full // 3, full
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if count(middle) >= tokens else (middle, high)
        return high

    most, least = count(full), count(full // 2)
    if most == least:
        return Counted(1, 0, holds=False)
    one, other = first(most), first(least)
    stride = round((one - other) / (most - least))
    rule = Counted(max(1, stride), stride * most - one)
    tried = {full, full - 1, full // 2, full // 2 + 1, one, one - 1, other, other - 1, (2 * full) // 3}
    right = all(count(n) == int(rule(torch.tensor([n]))) for n in sorted(tried))
    return rule._replace(holds=right)
