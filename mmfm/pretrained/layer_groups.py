"""An encoder's parameters as layers, from its input to its output, by the numbers in their names."""

from itertools import groupby

from torch import nn


def layers(encoder: nn.Module) -> list[list[str]]:
    """Names of parameters, in groups: what comes before the first block, each block, and what comes after the last.

    A block is a numbered part ("blocks.3", "encoder.layer.3") of a list of parts of one class; where such a part holds
    a list of its own directly ("stages.2.blocks.5"), the blocks are those. Joined they are all the parameters, once.
    """
    names = [name for name, _ in encoder.named_parameters()]
    return [list(group) for _, group in groupby(names, lambda name: _block(encoder, name))]


def _block(encoder: nn.Module, name: str) -> str:
    """The part of `name` that is its block's, or nothing."""
    parts = name.split(".")
    for i, part in enumerate(parts[:-1]):
        if part.isdigit() and _alike(encoder.get_submodule(".".join(parts[:i]))):
            inner = ".".join(parts[: i + 2])
            deeper = i + 2 < len(parts) - 1 and parts[i + 2].isdigit() and _alike(encoder.get_submodule(inner))
            return ".".join(parts[: i + 3 if deeper else i + 1])
    return ""


def _alike(owner: nn.Module) -> bool:
    """Whether it is a list of parts of one class, and none of them a single operation."""
    children = list(owner.children())
    return len({type(child) for child in children}) == 1 and any(True for child in children[0].children())
