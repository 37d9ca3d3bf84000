"""What makes codes is computed in single precision, whatever the model around it is cast to.

A code is the nearest of many: in half precision some fall to a neighbour, and a model would be trained on other targets
than it is scored on.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


class Exact(nn.Module):
    """A module whose weights follow `.to(device)` and `.double()`, and stay in single precision under `.bfloat16()`."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Exact":
        def kept(value: Tensor) -> Tensor:
            moved = fn(value)
            return value.to(moved.device) if moved.dtype in HALF and value.dtype not in HALF else moved

        return super()._apply(kept, recurse)


@contextmanager
def exactly(x: Tensor) -> Iterator[None]:
    """Without autocast on the device of x."""
    with torch.autocast(x.device.type, enabled=False):
        yield
