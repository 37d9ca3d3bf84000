"""torch: what its exporter, its modules and its quantised kernels keep to themselves."""

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
import torch.fx.experimental._config as symbols
from torch import Tensor, nn
from torch.fx import Node

Kind = TypeVar("Kind", bound=nn.Module)


def traced_sizes_are_free() -> AbstractContextManager[None]:
    """While `torch.export` works: that a size of the example is not 1 does not become a condition."""
    return symbols.patch(backed_size_oblivious=True)  # pyright: ignore[reportAttributeAccessIssue]


def asserts_scalar(node: Node) -> bool:
    """Whether it checks a condition on sizes; its second argument says which in words."""
    return node.target is torch.ops.aten._assert_scalar.default


def hooked(module: nn.Module) -> bool:
    """Whether calling it does more than its `forward`."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def parted(module: Kind) -> Kind:
    """A copy that shares all parts and weights, and whose parts can be exchanged without touching the first."""
    part = copy.copy(module)
    part.__dict__["_modules"] = dict(module._modules)
    return part


def stop_workers(batches: object) -> None:
    """The processes of a DataLoader's iterator end, if it has any."""
    stop = getattr(batches, "_shutdown_workers", None)
    if stop is not None:
        stop()


def to_buffer(module: nn.Module, name: str) -> None:
    """A parameter of its own as a buffer, under its name."""
    parameter = module._parameters.pop(name)
    assert parameter is not None
    module.register_buffer(name, parameter.detach())


def quantised_rows(weight: Tensor, scale: Tensor) -> Tensor:
    """int8 [out, width] with a scale for each row, as the tensor that torch's int8 kernels are packed from."""
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    make = torch._make_per_channel_quantized_tensor  # pyright: ignore[reportPrivateImportUsage]
    return make(weight, scale.double(), zeros, 0)


def processor() -> Mapping[str, Any]:
    """What instructions torch finds on this machine, by name; empty where a release does not tell."""
    return getattr(torch.cpu, "get_capabilities", dict)()
