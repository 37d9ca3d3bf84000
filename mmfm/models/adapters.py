"""Low-rank adapters in place of linear layers: y = W x + b + s B A x, of which A and B alone learn (LoRA, arXiv
2106.09685). W keeps its name, so that checkpoints, bundles and conversions find it; beside it are `lora_a` and
`lora_b`, and `lora_m` of DoRA (arXiv 2402.09353): the lengths of the rows of W + s B A.
"""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmfm.config import require
from mmfm.config.adapters import Lora
from mmfm.models.dropout import Dropout, DropoutKey
from mmfm.models.quantised import FORMATS, dense, kept, locked_linear, nf4_codebook

OWN = ("lora_a", "lora_b", "lora_m")


class AdapterDropout(Dropout):
    """Of what an adapter reads. Numbered after all others, which keep the numbers that they have without adapters."""

    def forward(self, x: Float[Tensor, "*any width"], noise: DropoutKey | None) -> Float[Tensor, "*any width"]:
        return F.dropout(x, self.chance, self.training) if noise is None else super().forward(x, noise)


class LoraLinear(nn.Linear):
    """A linear layer that rests, in fewer bits if its adapter says so, and its adapter.

    It loads an ordinary layer's weights as they are, and keeps them in its own way.
    """

    lora_m: nn.Parameter | None

    def __init__(self, linear: nn.Linear, cfg: Lora, name: str) -> None:
        nn.Module.__init__(self)
        self.cfg, self.name = cfg, name
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, width = linear.weight.detach(), linear.in_features
        if cfg.base in FORMATS:
            block = FORMATS[cfg.base].block
            told = f'{name} has rows of {width} numbers, and base="{cfg.base}" takes multiples of {block}'
            require(width % block == 0, f'{told}; take base="int8"')
        if cfg.base == "q4_1":  # no fresh weights are such; -1 is no number in fp16, so that what is not loaded shows
            size = FORMATS[cfg.base].row_bytes(width)
            packed = torch.full((len(weight), size), 255, dtype=torch.uint8, device=weight.device)
        else:
            packed = kept(weight, cfg.base, name)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = linear.bias
        a = weight.new_empty(cfg.rank, width)
        self.lora_a = nn.Parameter(nn.init.kaiming_uniform_(a, a=math.sqrt(5)))
        self.lora_b = nn.Parameter(weight.new_zeros(len(weight), cfg.rank))
        self.register_parameter("lora_m", nn.Parameter(weight.norm(dim=1)) if cfg.dora else None)
        self.lora_dropout = AdapterDropout(cfg.dropout) if cfg.dropout else None
        self.codebook = nn.Buffer(nf4_codebook(), persistent=False) if cfg.base == "nf4" else None

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "*any width"], noise: DropoutKey | None = None
    ) -> Float[Tensor, "*any out"]:
        out = locked_linear(x, self.weight, None if self.cfg.dora else self.bias, self.cfg.base, self.codebook)
        read = x if self.lora_dropout is None else self.lora_dropout(x, noise)
        out = out + F.linear(F.linear(read, self.lora_a) * self.cfg.factor, self.lora_b)
        if self.lora_m is None:
            return out
        out = out * (self.lora_m / self._lengths()).to(out.dtype)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    @torch.no_grad()
    def _lengths(self) -> Float[Tensor, " out"]:
        """Of the rows of W + s B A, which are taken for constants (section 4.3 of the paper)."""
        return (self.base_weight() + self.update()).norm(dim=1).to(self.lora_a)

    def _apply(self, fn: Any, recurse: bool = True) -> "LoraLinear":
        """Another device, but not another dtype for what is kept in half of one."""
        super()._apply(fn, recurse)
        if self.cfg.base == "bf16" and self.weight.dtype != torch.bfloat16:
            self.weight.data = self.weight.data.to(torch.bfloat16)
        return self

    def base_weight(self) -> Float[Tensor, "out width"]:
        """In fp32, or better."""
        return dense(self.weight, self.cfg.base, self.codebook)

    def update(self) -> Float[Tensor, "out width"]:
        """What the adapter adds to the weight."""
        a, b = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (self.lora_a, self.lora_b))
        return self.cfg.factor * (b @ a)

    @torch.no_grad()
    def merged_weight(self) -> Float[Tensor, "out width"]:
        whole = self.base_weight() + self.update()
        return whole if self.lora_m is None else whole * (self.lora_m / whole.norm(dim=1))[:, None]

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer that gives the same."""
        whole = self.merged_weight()
        made = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta", dtype=whole.dtype)
        made.weight = nn.Parameter(whole)
        made.bias = self.bias
        return made.train(self.training)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """An ordinary layer's weight is packed, and leaves the adapter as it is."""
        given = state_dict.get(f"{prefix}weight")
        if given is not None and given.dtype != torch.uint8 and tuple(given.shape) == (
            self.out_features, self.in_features,
        ):  # fmt: skip
            state_dict[f"{prefix}weight"] = kept(given, self.cfg.base, self.name)
            mine = {name: getattr(self, name) for name in OWN if f"{prefix}{name}" not in state_dict}
            if mine.get("lora_m") is not None:
                mine["lora_m"] = given.float().norm(dim=1)
            state_dict.update({f"{prefix}{name}": value.detach() for name, value in mine.items() if value is not None})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def through(linear: nn.Module, x: Float[Tensor, "*any width"], noise: DropoutKey | None) -> Tensor:
    """A linear map whose adapter, if it has one, drops what this key says."""
    return linear(x, noise) if isinstance(linear, LoraLinear) else linear(x)


def adapt(model: nn.Module, adapters: Sequence[Lora]) -> None:
    """Puts adapters into a model that is built. UserError: a pattern that matches no linear layer, or two of one."""
    if not adapters:
        return
    linears = {name: part for name, part in model.named_modules() if type(part) is nn.Linear and _read(part)}
    chosen = dict[str, Lora]()
    for cfg in adapters:
        matching = [name for name in linears if fnmatchcase(name, cfg.pattern)]
        near = "".join(difflib.get_close_matches(cfg.pattern, linears, n=1, cutoff=0.0))
        require(bool(matching), f"Lora.pattern={cfg.pattern!r} matches no linear layer; the nearest is {near}")
        twice = [name for name in matching if name in chosen]
        if twice:
            told = f"{twice[0]} is matched by {chosen[twice[0]].pattern!r} and by {cfg.pattern!r}"
            require(False, f"Model.adapters: {told}, and a layer has one adapter; narrow a pattern")
        chosen |= dict.fromkeys(matching, cfg)
    for name, cfg in chosen.items():
        owner, _, own = name.rpartition(".")
        setattr(model.get_submodule(owner), own, LoraLinear(linears[name], cfg, name))


def _read(linear: nn.Linear) -> bool:
    """Not of a layer that an encoder of another library has and does not use, whose weights are buffers here."""
    return isinstance(linear.weight, nn.Parameter)


def adapters_of(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The layers that have adapters, by their full names."""
    return ((name, part) for name, part in model.named_modules() if isinstance(part, LoraLinear))


def sizes_of(model: nn.Module) -> dict[str, int]:
    """How many numbers each parameter is, however they are kept."""
    dense = {f"{name}.weight": part.in_features * part.out_features for name, part in adapters_of(model)}
    return {name: p.numel() for name, p in model.named_parameters()} | dense


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is of an adapter."""
    return name.rpartition(".")[2] in OWN


def merge(model: nn.Module) -> None:
    """All adapters become part of the weights that they adapt, in fp32; the layers are plain ones again."""
    for name, part in [*adapters_of(model)]:
        owner, _, own = name.rpartition(".")
        setattr(model.get_submodule(owner), own, part.merged())


def merged_state(state: Mapping[str, Tensor], adapters: Sequence[Lora]) -> dict[str, Tensor]:
    """`merge` of the tensors of a model alone, without it."""
    found = {name: tensor for name, tensor in state.items() if not is_adapter(name)}
    for name in [name.removesuffix(".lora_a") for name in state if name.endswith(".lora_a")]:
        mine = {key.rpartition(".")[2]: state[key] for key in state if key.rpartition(".")[0] == name}
        cfg = next(cfg for cfg in adapters if fnmatchcase(name, cfg.pattern))
        plain = nn.Linear(mine["lora_a"].shape[1], len(mine["lora_b"]), "bias" in mine, device="meta")
        layer = LoraLinear(plain, cfg, name)
        layer.load_state_dict(mine, strict=True, assign=True)
        found[f"{name}.weight"] = layer.merged_weight()
    return found


def part_of(name: str) -> str:
    """The part of a model that a parameter is of: "trunk", "towers.image"; of others the first word."""
    return ".".join(name.split(".")[: 2 if name.startswith("towers.") else 1])


def adapted_parts(model: nn.Module) -> set[str]:
    """Parts that hold adapters, and so rest but for these."""
    return {part_of(name) for name, _ in adapters_of(model)}


def plain_state(model: nn.Module) -> dict[str, Any]:
    """`state_dict` as the model had it without adapters: theirs left out, and packed weights on the meta device, as
    of these the shape alone is asked."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not is_adapter(name)}
    for name, part in adapters_of(model):
        if part.cfg.base in FORMATS:
            state[f"{name}.weight"] = torch.empty(part.out_features, part.in_features, device="meta")
    return state
