"""A table of names that is read in both directions: another library's tensors as ours, and ours as the library's.

A row is (ours, theirs), each the name of a module or of a tensor; `*` is the number of a block. `{q,k,v}` are several
of theirs whose rows lie one under another in ours; ` | ` parts names of other versions; a name that ends in `_` is
followed by `weight` or `bias` without a dot. `a.* ~` squeezes: what is a convolution over one place there is a matrix.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mmfm.config import require

Weights = dict[str, Tensor]
Split = Callable[[Tensor, int], Iterable[Tensor]]
SQUEEZED = " ~"  # behind ours: see above


class Row(NamedTuple):
    """ours: the name. theirs: for each version the names of the tensors that ours is made of, from its first row on."""

    ours: str
    theirs: tuple[tuple[str, ...], ...]
    squeezed: bool = False


class Found(NamedTuple):
    """A tensor of theirs: the row that it belongs to, which of the parts it is, and what our tensor is called."""

    row: Row
    part: int
    name: str


class Table:
    """`ours(weights)` and `theirs(weights, names, split)` undo each other."""

    def __init__(self, *rows: tuple[str, str]) -> None:
        self.rows = [
            Row(ours.removesuffix(SQUEEZED), tuple(map(_parts, theirs.split(" | "))), ours.endswith(SQUEEZED))
            for ours, theirs in rows
        ]
        self._theirs = [
            (re.compile(_pattern(name)), row, part)
            for row in self.rows
            for names in row.theirs
            for part, name in enumerate(names)
        ]
        self._ours = [(re.compile(_pattern(row.ours)), row) for row in self.rows]

    def ours(self, weights: Mapping[str, Tensor]) -> Weights:
        """Under our names; what no row names keeps its own. UserError: two are the same, or a part lacks."""
        parts: dict[str, dict[int, tuple[str, Tensor]]] = {}
        rows: dict[str, Row] = {}
        done: Weights = {}
        for name, tensor in weights.items():
            found = self._found(name)
            if found is None:
                done[name] = tensor
                continue
            slot = parts.setdefault(found.name, {})
            told = f"two tensors are {found.name!r} here, the second {name!r}; give the weights of one model"
            require(found.part not in slot, told)
            slot[found.part], rows[found.name] = (name, tensor), found.row
        for name, slot in parts.items():
            first = min(slot.values())[0]
            missing = set(range(max(map(len, rows[name].theirs)))) - slot.keys()
            told = f"the weights lack a part of what is {name!r} here, beside {first!r}; give all of them"
            require(not missing, told)
            tensors = [_squeezed(slot[at][1]) if rows[name].squeezed else slot[at][1] for at in sorted(slot)]
            done[name] = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        return done

    def theirs(self, weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], split: Split) -> Weights:
        """Under the names that `shapes` has. split: a tensor's rows as so many parts. UserError: no row or no place."""
        done: Weights = {}
        for name, tensor in weights.items():
            names = next((names for names in self.named(name) if names[0] in shapes), ())
            require(bool(names), f"{name} has no place in this model of the other library; take another target")
            parts = split(tensor, len(names)) if len(names) > 1 else (tensor,)
            done |= {own: part.reshape(shapes[own]).contiguous() for own, part in zip(names, parts, strict=True)}
        return done

    def named(self, name: str) -> Iterator[tuple[str, ...]]:
        """What the other library may call the parts of one of our tensors, the newest names first."""
        for pattern, row in self._ours:
            if match := pattern.fullmatch(name):
                number, leaf = match["number"] if "*" in row.ours else "", match["leaf"] or ""
                yield from (tuple(_filled(own, number, leaf) for own in names) for names in row.theirs)

    def _found(self, name: str) -> Found | None:
        for pattern, row, part in self._theirs:
            if match := pattern.fullmatch(name):
                number = match["number"] if "*" in row.ours else ""
                return Found(row, part, _filled(row.ours, number, match["leaf"] or ""))
        return None


def _parts(names: str) -> tuple[str, ...]:
    """a.{q,k}_proj -> a.q_proj, a.k_proj."""
    match = re.fullmatch(r"(.*)\{(.*)\}(.*)", names)
    return tuple(match[1] + part + match[3] for part in match[2].split(",")) if match else (names,)


def _pattern(name: str) -> str:
    leaf = r"(?P<leaf>weight|bias)" if name.endswith("_") else r"(\.(?P<leaf>\w+))?"
    return re.escape(name).replace(r"\*", r"(?P<number>\d+)") + leaf


def _filled(name: str, number: str, leaf: str) -> str:
    dot = "." if leaf and not name.endswith("_") else ""
    return name.replace("*", number) + dot + leaf


def _squeezed(tensor: Tensor) -> Tensor:
    return tensor.squeeze(-1) if tensor.ndim == 3 else tensor
