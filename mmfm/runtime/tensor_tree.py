"""A tree of dicts, lists, numbers, texts and tensors as strict JSON and named tensors, and back."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Tree = Any


def split(tree: Tree, path: str = "") -> tuple[Tree, dict[str, Tensor]]:
    """A tree of dicts, lists, numbers, texts and tensors as JSON and tensors by their paths; `join` is the inverse."""
    if isinstance(tree, Tensor):
        return {"tensor": path}, {path: tree}
    if isinstance(tree, Mapping):
        parts = [(key, *split(value, f"{path}/{key}")) for key, value in tree.items()]
        return {"map": [[key, value] for key, value, _ in parts]}, _merge([found for *_, found in parts])
    if isinstance(tree, list | tuple):
        pairs = [split(value, f"{path}/{i}") for i, value in enumerate(tree)]
        return {"list": [value for value, _ in pairs]}, _merge([found for _, found in pairs])
    if tree is None or isinstance(tree, bool | int | float | str):
        return {"value": tree}, {}
    raise TypeError(f"{path}: a {type(tree).__name__} cannot be kept in a checkpoint")


def join(tree: Tree, read: Callable[[str], Any]) -> Tree:
    """The tree of what `split` gave as JSON; `read` gives what is to stand for the tensor of a path."""
    ((kind, value),) = tree.items()
    match kind:
        case "tensor":
            return read(value)
        case "map":
            return {key: join(part, read) for key, part in value}
        case "list":
            return [join(part, read) for part in value]
        case _:
            return value


def _merge(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor for part in parts for name, tensor in part.items()}
