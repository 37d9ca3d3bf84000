"""Counts what operations do while they run: which storages live, how many products are computed, how many bytes move.

The weights may be fakes (torch's FakeTensor), which have shapes and no numbers, so that a model of any size is counted
on any machine. Integers stay real: what depends on data (lengths, layouts, who takes part) is then what it would be.
"""

import weakref
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mmfm.plan.timing import Calls

aten = torch.ops.aten
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._unsafe_index.Tensor,
    aten._index_put_impl_.default,
}
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu.default: 1,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: 2,
}


class Moment(NamedTuple):
    """Bytes up to when a parameter's gradient was complete: the most that lived at once since the moment before, and
    the gradients that were complete then."""

    live: int
    gradients: int


class Counting(TorchDispatchMode):
    """live: bytes of storages that operations made and that still live, complete gradients apart. flops: of products,
    by the kind of their numbers. moved: bytes that all other operations read and write."""

    def __init__(self, calls: Calls | None = None) -> None:
        """calls: gets each call of an operation, to be timed afterwards."""
        super().__init__()
        self.calls = calls
        self.live = self.peak = self.since = self.gradients = self.moved = self.operations = 0
        self.flops: Counter[torch.dtype] = Counter()
        self.moments: dict[str, Moment] = {}
        self.known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in INDEXING and isinstance(args[0], FakeTensor):
            args = (args[0], [one for index in args[1] for one in _places(index)], *args[2:])
        out = func(*args, **(kwargs or {}))
        outs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        shared = [one.alias_info for one in func._schema.returns if one.alias_info is not None]
        if not outs or any(not alias.is_write for alias in shared):
            return out  # nothing, or a view of what may be a weight
        self._cost(func, args, kwargs or {}, out, outs)
        if not shared:
            for x in outs:
                self._note(x.untyped_storage())
        return out

    def _note(self, storage: Any) -> None:
        key = storage._cdata
        if key in self.known:
            return
        self.known[key] = storage.nbytes()
        self._add(storage.nbytes())
        weakref.finalize(storage, self._gone, key)

    def _add(self, size: int) -> None:
        self.live += size
        self.peak, self.since = max(self.peak, self.live), max(self.since, self.live)

    def _gone(self, key: int) -> None:
        self.live -= self.known.pop(key, 0)

    def _cost(self, func: Any, args: Any, kwargs: Any, out: Any, outs: list[Tensor]) -> None:
        self.operations += 1
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        size = sum(min(x.numel() * x.element_size(), x.untyped_storage().nbytes()) for x in (*inputs, *outs))
        if self.calls is not None:
            self.calls.add(func, args, kwargs, size)
        packet = func.overloadpacket
        if func in ATTENTION:
            q, k = args[1:3] if ATTENTION[func] == 2 else args[:2]
            self.flops[q.dtype] += ATTENTION[func] * 4 * q.numel() * k.shape[2]
        elif packet in flop_registry:
            self.flops[outs[0].dtype] += int(flop_registry[packet](*args, **kwargs, out_val=out))
        else:
            self.moved += size

    def watch(self, model: nn.Module) -> list[Any]:
        """Hooks by which complete gradients are told from what else lives; to be removed afterwards."""
        return [
            parameter.register_post_accumulate_grad_hook(self._complete(name))
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]

    def _complete(self, name: str) -> Any:
        def complete(parameter: Tensor) -> None:
            assert parameter.grad is not None
            size = self.known.pop(parameter.grad.untyped_storage()._cdata, 0)
            self.moments[name] = Moment(self.since, self.gradients)
            self.live, self.gradients = self.live - size, self.gradients + size
            self.since = self.live

        return complete


def _places(index: Tensor | None) -> list[Tensor | None]:
    """A mask as the places where it is true, which a fake does not make of it."""
    return list(index.nonzero(as_tuple=True)) if index is not None and index.dtype == torch.bool else [index]


def without_numbers(model: nn.Module) -> None:
    """A model of the meta device gets fakes of the CPU for its parameters; whole numbers that it holds become zeros."""
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    for module in model.modules():
        for name, old in [*module._parameters.items()]:
            if old is not None and old.is_meta:
                with fakes:
                    new = torch.empty(old.shape, dtype=old.dtype, device="cpu")
                module._parameters[name] = nn.Parameter(new, requires_grad=old.requires_grad)
        for name, old in [*module._buffers.items()]:
            if old is not None and old.is_meta:
                if old.is_floating_point():
                    with fakes:
                        module._buffers[name] = torch.empty(old.shape, dtype=old.dtype, device="cpu")
                else:
                    module._buffers[name] = torch.zeros(old.shape, dtype=old.dtype, device="cpu")
