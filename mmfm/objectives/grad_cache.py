"""A step whose batch is larger than what fits: samples go through the model in parts, the contrasts see them all.

GradCache (arXiv 2101.06983): the parts are embedded without a graph; the contrasts of all embeddings give a gradient
for each of them; each part is read once more and carries its own back. Writing and codecs add up over samples, so that
their parts are plain gradient accumulation, divided by the count of the whole step. Dropout and augmentation belong to
positions: the second reading is the first one again, and no state of a generator need be kept.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmfm.data.batch import Batch
from mmfm.objectives.joint import Embedded, Objectives
from mmfm.runtime.distributed import Collective


def as_it_is(loss: Tensor) -> Tensor:
    return loss


def grad_cache_backward(
    objectives: Objectives, batch: Batch, size: int, scaled: Callable[[Tensor], Tensor] = as_it_is
) -> dict[str, Float[Tensor, ""]]:
    """This rank's shares of the losses, without graph; gradients are added to the parameters, as those of one pass.

    size: samples of a micro-batch. Ranks may have different numbers of them. scaled: what backward begins with, for
    a loss whose small gradients would be lost in fp16; gradients are scaled as it is.
    """
    assert not objectives.own
    parts, device = batch.micro_batches(size), objectives.model.device
    if objectives.sharded:  # all ranks enter the model equally often
        number = torch.tensor([len(parts)], dtype=torch.int64)
        most = int(objectives.ranks.all_gather(number, [1] * objectives.ranks.size).max())
        parts += [batch.part(0, 0) for _ in range(most - len(parts))]
    with torch.no_grad():
        first = [objectives.inside(partial(objectives.run_passes, part)) for part in parts]
    counts = [objectives.loss_counts(part, found) for part, found in zip(parts, first, strict=True)]
    total = objectives.all_reduce_counts({name: sum(count[name] for count in counts) for name in counts[0]})
    embedded = {name: _leaf([found.embedded[name] for found in first], size) for name in objectives.embedded}

    def contrast() -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(device.type, enabled=False):
            losses = objectives.contrastive_losses(batch, embedded)
        return scaled(objectives.total(losses)), losses

    loss, losses = objectives.inside(contrast)
    _backward(loss)
    gradients = {
        name: iter((torch.zeros_like(x) if x.grad is None else x.grad).split([len(f.embedded[name][0]) for f in first]))
        for name, (x, _) in embedded.items()
    }

    def again(part: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        read = objectives.run_passes(part)
        with torch.autocast(device.type, enabled=False):
            sums = objectives.summed_losses(part, read, total)
            back = [(x * next(gradients[name])).sum() for name, (x, _) in read.embedded.items()]
            return sum(back, scaled(objectives.total(sums)) + objectives.zero(read)), sums

    for part in parts:
        loss, sums = objectives.inside(partial(again, part))
        _backward(loss)
        losses |= {name: losses.get(name, 0) + one.detach() for name, one in sums.items()}
    return {name: losses[name].detach() for name in objectives.weights}


def _leaf(parts: Sequence[tuple[Tensor, Tensor]], size: int) -> Embedded:
    """The embeddings of all micro-batches, as what the contrasts derive by."""
    x = torch.cat([x for x, _ in parts]).detach().requires_grad_()
    return x, torch.cat([rows + number * size for number, (_, rows) in enumerate(parts)])


def _backward(loss: Tensor) -> None:
    if loss.requires_grad:
        loss.backward()


def reduce_gradients(module: nn.Module, ranks: Collective) -> None:
    """The mean over ranks of each gradient, as DistributedDataParallel makes it; a rank without one counts as zero."""
    if ranks.size == 1:
        return
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    device = parameters[0].device
    held = ranks.all_reduce_sum(torch.tensor([p.grad is not None for p in parameters], device=device).long()).tolist()
    for parameter in (parameter for parameter, count in zip(parameters, held, strict=True) if count):
        mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = ranks.all_reduce_sum(mine) / ranks.size
