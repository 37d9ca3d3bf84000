"""Whether weights are those of a configuration, and how a model takes them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mmfm.config import Conformer, Embedded, Model, TextTower, Tower, UserError, Vit, require
from mmfm.models.adapters import is_adapter, plain_state


def adopt(model: torch.nn.Module, found: Mapping[str, Tensor], where: str) -> None:
    """The tensors themselves become the model's weights, in place of those that it was built with."""
    check_shapes(model, found, where)
    model.load_state_dict(found, strict=True, assign=True)


def check_shapes(model: torch.nn.Module, found: Mapping[str, Tensor], where: str) -> None:
    """UserError where a name or a shape differs; of weights without adapters, where they do from the model without."""
    wanted = model.state_dict() if any(map(is_adapter, found)) else plain_state(model)
    for name in (*wanted, *found):
        here, there = (tuple(table[name].shape) if name in table else "none" for table in (wanted, found))
        if (here or (1,)) != (there or (1,)):  # a scalar of an older checkpoint is a vector of one
            raise UserError(
                f"{where} is of another configuration: {name} has shape {there} there and {here} in this model; "
                "use the run.json beside the weights"
            )


def check_size(cfg: Model, found: Mapping[str, Tensor], where: str) -> None:
    """Before a model takes memory: no single matrix that the configuration asks for is larger than all the weights."""
    (matrix, deepest), held = extent(cfg), sum(tensor.numel() for tensor in found.values())
    told, remedy = f"{where} is of another configuration", "use the run.json beside the weights"
    require(matrix <= held, f"{told}: a matrix of {matrix:g} numbers, of {held} in all; {remedy}")
    require(deepest <= len(found), f"{told}: {deepest} layers of {len(found)} tensors; {remedy}")


def extent(cfg: Model) -> tuple[int | float, int]:
    """Numbers of the largest matrix that a configuration asks for, and layers of its deepest part."""
    whole = (cfg.image, cfg.audio, cfg.text, cfg.trunk)
    parts = [part for part in whole if part is not None and not isinstance(part, Tower | Embedded)]
    asked: list[float] = [part.width**2 for part in parts]
    asked += [cfg.trunk.width * n for n in (cfg.embed_dim, cfg.codes("image"), cfg.codes("audio"))]
    asked.append(cfg.trunk.mlp_ratio * cfg.trunk.width**2)
    asked += [part.hidden * part.width for part in parts] + [cfg.trunk.head_dim * cfg.trunk.heads * cfg.trunk.width]
    asked += [max(cfg.text.context, cfg.text.vocabulary) * cfg.text.width] if isinstance(cfg.text, TextTower) else []
    asked += [cfg.image.prefix * cfg.image.width] if isinstance(cfg.image, Vit) else []
    asked += [cfg.audio.kernel * cfg.audio.width] if isinstance(cfg.audio, Conformer) else []
    asked += [cfg.audio.left, cfg.audio.right] if isinstance(cfg.audio, Conformer) else []
    asked += [cfg.image.tokens * cfg.image.width] if isinstance(cfg.image, Vit) else []
    asked += [(one.hidden or cfg.trunk.width) * max(one.hidden, one.queries) for one in cfg.projectors]
    deepest = [one.depth for one in cfg.projectors if one.kind == "resampler"]
    return max(asked), max([part.depth for part in parts] + deepest)
