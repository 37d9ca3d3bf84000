"""FLOPs of a training step, by formula, from what the model has read (`ReadCounts`).

They are the model's own, by real tokens: neither padding nor what activation checkpointing computes again is among them
(as in the MFU of PaLM, arXiv 2204.02311, appendix B).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import nn

from mmfm.models.adapters import LoraLinear
from mmfm.models.conformer import Subsample
from mmfm.models.layers import Attention
from mmfm.models.mel import KaldiMel, LogMel
from mmfm.models.model import UnifiedModel
from mmfm.models.projectors import PerceiverLayer, Projector
from mmfm.models.read_counts import ITEMS, PAIRS, TOKENS, WANTED

BACKWARD = 3  # a forward and a backward are three forwards: gradients of inputs and of weights take one each


class Cost(NamedTuple):
    """FLOPs of a part's forward. token: for each; pair: for each two tokens of a sentence, in attention; wanted: for
    each token whose state is used, beside `token`; once: for each token, and never in a backward; item: for each
    picture, sound or text. passes: whether gradients go through it; learned: the share of its products whose weights
    learn, all but none where it is locked under low-rank adapters."""

    token: float
    pair: float
    wanted: float = 0.0
    once: float = 0.0
    item: float = 0.0
    passes: bool = True
    learned: float = 1.0

    def flops(self, counts: Mapping[str, int]) -> float:
        products = self.token * counts[TOKENS] + self.wanted * counts[WANTED] + self.item * counts[ITEMS]
        pairs = self.pair * counts[PAIRS] * (BACKWARD if self.passes else 1)
        return float(products * (1 + self.passes + self.learned) + pairs + self.once * counts[TOKENS])


def costs_of(model: UnifiedModel) -> list[tuple[str, Cost]]:
    """Of each tower and each connector, by its modality, and of the trunk."""
    towers = [(name, _trained(_tower(tower), tower, _learns(tower))) for name, tower in model.towers.items()]
    connectors = [(name, _trained(_connector(part), part, _learns(part))) for name, part in model.connectors.items()]
    return [*towers, *connectors, ("trunk", _trained(_trunk(model), model.trunk, _learns(model)))]


def _trained(cost: Cost, part: nn.Module, passes: bool) -> Cost:
    """passes: whether it, or what it reads, learns."""
    whole = _products([part])
    return cost._replace(passes=passes, learned=_products([part], learned=True) / whole if whole else 0.0)


def step_flops(model: UnifiedModel, counts: Mapping[str, Mapping[str, int]], embeddings: int) -> float:
    """Forward and backward of what was read. counts: by part, "target" those of tokens that were written. embeddings:
    how many products of two embeddings the contrasts took. Codecs are not counted."""
    parts = sum(cost.flops(counts[name]) for name, cost in costs_of(model))
    table = 2 * model.output_weight.numel() * counts["target"][TOKENS]
    written = table * (1 + _learns(model) + model.output_weight.requires_grad)
    return float(parts + written + BACKWARD * 2 * model.embed_dim * embeddings)


def _products(modules: Sequence[nn.Module], learned: bool = False) -> int:
    """FLOPs for a token that passes each linear map and each convolution of stride one once; `learned`: of those alone
    whose weights learn. A packed weight has as many numbers as it stands for, and an adapter is two maps beside it."""
    total = 0
    for m in (m for module in modules for m in module.modules()):
        if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d) and (m.weight.requires_grad or not learned):
            total += 2 * (m.in_features * m.out_features if isinstance(m, nn.Linear) else m.weight.numel())
        if isinstance(m, LoraLinear):
            total += 2 * (m.lora_a.numel() + m.lora_b.numel())
    return total


def _trunk(model: UnifiedModel) -> Cost:
    """Of the last block only keys, values and queries are made of all tokens."""
    blocks = list(model.trunk.blocks)
    if not blocks:
        return Cost(0, 0)
    last = _products(blocks[-1:])
    of_all = sum(_products([part.qkv]) for part in blocks[-1].modules() if isinstance(part, Attention))
    pair = _pairs(blocks, model.trunk.width)
    return Cost(_products(blocks[:-1]) + of_all, pair, last - of_all)


def _connector(part: nn.Module) -> Cost:
    """A projector reads all tokens of its tower, or maps only those that it gives."""
    if not isinstance(part, Projector):
        return Cost(_products([part]), 0)
    # of a picture, positions are made once for all pictures
    places = _products([part.places]) if part.cfg.places and part.picture is None else 0
    if part.cfg.kind != "resampler":
        each = _products([part.enter, part.out]) + places
        if part.cfg.grid:
            return Cost(0, 0, item=each * (part.cfg.grid**2 + 1))
        return Cost(each / max(1, part.cfg.pixel_shuffle) ** 2, 0)
    queries, layers = part.cfg.queries, [m for m in part.modules() if isinstance(m, PerceiverLayer)]
    read = sum(2 * layer.kv.weight.numel() + 4 * layer.q.out_features * queries for layer in layers)
    asked = _products([part.resampler, part.out]) + sum(4 * layer.q.out_features * queries for layer in layers)
    return Cost(_products([part.enter]) + places + read, 0, item=queries * asked)


def _tower(tower: nn.Module) -> Cost:
    lists = [list(m.children()) for m in tower.modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
    blocks = max(lists, key=_products, default=[])  # where most of it is computed
    inner = {part for block in blocks for part in block.modules()}
    rest = [part for part in tower.modules() if part not in inner]
    linear = sum(2 * m.weight.numel() for m in rest if isinstance(m, nn.Linear))
    token = _products(blocks) + linear + _stem(rest)
    return Cost(token, _pairs(blocks, cast(int, tower.width)), once=_mel(tower))


def _pairs(blocks: Sequence[nn.Module], width: int) -> int:
    """Scores and what they weigh: two products for each pair. Another library's heads are as wide as its tokens."""
    own = [part for block in blocks for part in block.modules() if isinstance(part, Attention)]
    return sum(4 * part.heads * part.dim for part in own) if own else 4 * width * len(blocks)


def _stem(modules: Sequence[nn.Module]) -> int:
    """Convolutions one after the other, by token: each has as many places as the strides behind it make one of."""
    total, places = 0, 1
    bands = next((m.out.in_features // m.conv2.out_channels for m in modules if isinstance(m, Subsample)), 1)
    for conv in reversed([m for m in modules if isinstance(m, nn.Conv1d | nn.Conv2d)]):
        total += 2 * conv.weight.numel() * places * bands
        places *= torch.Size(conv.stride).numel()
    return total


def _mel(tower: nn.Module) -> int:
    """The filter bank of the frames of a token, which has no gradient."""
    mel = next((m for m in tower.modules() if isinstance(m, LogMel | KaldiMel)), None)
    if mel is None:
        return 0
    convs = [m for m in tower.modules() if isinstance(m, Subsample)]
    return 2 * mel.banks.numel() * (4 if convs else 1)


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
