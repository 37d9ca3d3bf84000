"""How far from the end of its tower or trunk each parameter lies, for rates that fall layer by layer towards the input.

Layer 0 is what comes before the blocks, and 1 to depth are the blocks, the last with what comes after it; the rate of
layer i is decay^(depth - i) of that of the last (BEiT, arXiv 2106.08254), as timm's `param_groups_layer_decay` has it
of a model without a classifier.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, cast

from torch import nn

from mmfm.config import UserError
from mmfm.models.imported import ImportedTower

Layers = tuple[dict[str, int], int]  # of each parameter, and the last
BEFORE, BEHIND = "embedding.weight", "output.weight"  # tables of a language model, around its trunk's blocks


def distances(model: nn.Module, names: Collection[str]) -> dict[str, int]:
    """Of those of these parameters that belong to a tower or to the trunk: layers between theirs and the last.

    UserError: a part whose layers cannot be told apart.
    """
    found = dict[str, int]()
    for where in dict.fromkeys(part_of(name) for name in names):
        if where:
            layers, last = _layers(where, model.get_submodule(where))
            found |= {f"{where}.{name}": last - layer for name, layer in layers.items()}
    if BEFORE in names:
        _, found[BEFORE] = _layers("trunk", model.get_submodule("trunk"))
    return found | ({BEHIND: 0} if BEHIND in names else {})


def part_of(name: str) -> str:
    """towers.image, trunk, or nothing of what is of neither."""
    first, second, *_ = [*name.split("."), ""]
    return f"{first}.{second}" if first == "towers" else first if first == "trunk" else ""


def _layers(where: str, part: nn.Module) -> Layers:
    return _by_timm(part) or _by_blocks(where, part)


def _by_timm(part: nn.Module) -> Layers | None:
    """By the order that a model of timm itself gives; None: it is of another library."""
    trunk: Any = part.encoder.trunk if isinstance(part, ImportedTower) else None
    if trunk is None or not hasattr(trunk, "group_matcher"):
        return None
    from mmfm.compat.timm import group_parameters

    layers = cast(dict[str, int], group_parameters(trunk, trunk.group_matcher(coarse=False), reverse=True))
    last = max(int(layer) for layer in layers.values())
    return {f"encoder.trunk.{name}": int(layers[name]) for name, _ in trunk.named_parameters()}, last


def _by_blocks(where: str, part: nn.Module) -> Layers:
    """By the list of modules that holds most of the part; its parameters' order says what comes before and after."""
    lists = {name: module for name, module in part.named_modules() if isinstance(module, nn.ModuleList | nn.Sequential)}
    sizes = {name: sum(weight.numel() for weight in module.parameters()) for name, module in lists.items()}
    if not any(sizes.values()):
        raise UserError(
            f"optim.param_groups: the layers of {where} cannot be told apart, as layer_decay asks; set it to 1, and "
            "give its parts groups of their own"
        )
    stack = max(sizes, key=lambda name: sizes[name])
    order = [name for name, _ in lists[stack].named_children()]
    return dict(_numbered(part, f"{stack}.", order)), len(order)


def _numbered(part: nn.Module, stack: str, order: Sequence[str]) -> Iterator[tuple[str, int]]:
    passed = False
    for name, _ in part.named_parameters():
        inside = name.startswith(stack)
        passed = passed or inside
        block = name.removeprefix(stack).partition(".")[0]
        yield name, 1 + order.index(block) if inside else len(order) * passed
