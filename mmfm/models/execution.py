"""How a block runs in training: what it keeps for the backward, which of its parts are compiled; what is a block."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

Recompute = Literal["none", "selective", "full"]
aten = torch.ops.aten
KEPT = {  # by "selective": what costs much to compute again for the memory it takes
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.convolution.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._flash_attention_forward.default,
    aten._efficient_attention_forward.default,
}
GRAPHS = 64  # of one piece of code: the widths, activations and numbers of dimensions of several towers, and the trunk


def _policy(context: SelectiveCheckpointContext, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


class TrainedBlock(nn.Module):
    """A block that may forget what lies within it and compute it again in backward (arXiv 1604.06174): less memory for
    a second forward. Gradients are equal to the bit, as dropout is a hash and draws from no generator.

    "selective" keeps the products of matrices and attention, and forgets what is cheap. Where `PIECES` are compiled
    the compiler itself keeps products alone, so that "selective" then leaves it to the compiler.
    """

    PIECES: ClassVar[tuple[str, ...]] = ()  # methods that are compiled: all but attention, whose masks have many forms
    recompute: Recompute = "none"

    def __init__(self) -> None:
        super().__init__()
        self._compiled: dict[str, Callable[..., Any]] = {}

    def set_compile(self, backend: str | Callable[..., Any] | None = "inductor") -> None:
        """The pieces are compiled at their first use in training, for any number of tokens; None: not any more.

        In place: parameters keep their names, and hooks of the block see it as it was.
        """
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
        if backend is None:
            self._compiled = {}
            return
        compiled = partial(torch.compile, dynamic=True, backend=backend)
        self._compiled = {name: compiled(getattr(self, name)) for name in self.PIECES}

    def piece(self, name: str) -> Callable[..., Any]:
        """The method of this name, or what it was compiled to; where nothing learns, always the method."""
        return self._compiled.get(name) or getattr(self, name) if torch.is_grad_enabled() else getattr(self, name)

    def through(self, forward: Callable[..., Tensor], *args: Any, draws: bool) -> Tensor:
        """draws: whether dropout would draw from the generator, whose state must then be kept."""
        selective = self.recompute == "selective"
        if self.recompute == "none" or not torch.is_grad_enabled() or (selective and self._compiled):
            return forward(*args)
        contexts = partial(create_selective_checkpoint_contexts, _policy) if selective else noop_context_fn
        out = checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=draws, context_fn=contexts)
        assert isinstance(out, Tensor)
        return out


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of a tower, of any library: of its outermost list of modules that are all of one class and of several
    parts."""
    for child in module.children():
        layers = [*child.children()] if isinstance(child, nn.ModuleList | nn.Sequential) else []
        alike = len({type(layer) for layer in layers}) == 1
        if alike and all(sum(_has_weights(part) for part in layer.children()) > 1 for layer in layers):
            yield from layers
        else:
            yield from blocks_of(child)


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
