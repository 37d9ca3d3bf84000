"""What a rank holds of a sharded tensor, and the way back: a DTensor made of what its rank reads."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from mmfm.runtime.tensor_files import Box, Part


def local_box(tensor: DTensor) -> Box:
    """Where this rank's part begins in the whole, and its sizes: each axis of the mesh cuts a dimension as torch.chunk
    does, so that the last parts may be smaller, or empty."""
    offset, sizes = [0] * tensor.ndim, list(tensor.shape)
    place = tensor.device_mesh.get_coordinate()
    assert place is not None
    for axis, (placement, mine) in enumerate(zip(tensor.placements, place, strict=True)):
        if isinstance(placement, Replicate):
            continue
        if type(placement) is not Shard:
            raise TypeError(f"a tensor placed as {placement} cannot be kept in a checkpoint")
        whole, d = sizes[placement.dim], placement.dim
        chunk = -(-whole // tensor.device_mesh.size(axis))
        begin = min(whole, mine * chunk)
        offset[d], sizes[d] = offset[d] + begin, min(chunk, whole - begin)
    return tuple(offset), tuple(sizes)


def local_parts(tensors: Mapping[str, Tensor], first: bool) -> dict[str, Tensor | Part]:
    """What this rank writes: its parts of DTensors, each from one of the ranks that hold the same, and what is no
    DTensor from the first rank."""
    made = dict[str, Tensor | Part]()
    for name, tensor in tensors.items():
        if not isinstance(tensor, DTensor):
            made |= {name: tensor} if first else {}
            continue
        place = tensor.device_mesh.get_coordinate()
        assert place is not None
        copy = any(isinstance(p, Replicate) and at for p, at in zip(tensor.placements, place, strict=True))
        offset, sizes = local_box(tensor)
        local = tensor.to_local()
        assert tuple(local.shape) == sizes, f"{name}: {tuple(local.shape)} here, not {sizes}"
        if not copy and (local.numel() or not tensor.numel()):
            made[name] = Part(local, offset, tuple(tensor.shape))
    return made


def placed(like: Tensor, read: Callable[[Box | None], Tensor]) -> Tensor:
    """A tensor as `like` is placed, of what is read; `read` is asked for this rank's part alone."""
    if not isinstance(like, DTensor):
        return read(None)
    local = read(local_box(like)).to(like.device)
    how = {"run_check": False, "shape": like.shape, "stride": torch.empty(like.shape, device="meta").stride()}
    return DTensor.from_local(local, like.device_mesh, like.placements, **how)
