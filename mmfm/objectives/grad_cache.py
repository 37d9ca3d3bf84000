"""A step whose batch is larger than what fits: samples go through the model in parts, the contrasts see them all.

GradCache (arXiv 2101.06983): the parts are embedded without a graph; the contrasts of all embeddings give a gradient
for each of them; each part is read once more and carries its own back. Writing and codecs add up over samples, so that
their parts are plain gradient accumulation, divided by the count of the whole step. Dropout and augmentation belong to
positions: the second reading is the first one again, and no state of a generator need be kept.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmfm.data.batch import Batch
from mmfm.objectives.joint import Embedded, Objectives, Read
from mmfm.runtime.distributed import Collective


def backward_in_parts(objectives: Objectives, batch: Batch, size: int) -> dict[str, Float[Tensor, ""]]:
    """This rank's shares of the losses, without graph; gradients are added to the parameters, as those of one pass.

    size: samples of a part. Ranks may have different numbers of parts.
    """
    assert not objectives.own
    parts = batch.parts(size)
    with torch.no_grad():
        reads = [objectives.read(part) for part in parts]
    counts = [objectives.counts(part, read) for part, read in zip(parts, reads, strict=True)]
    names = objectives.counts(batch, Read(dict.fromkeys(objectives.passes), {})) if not counts else counts[0]
    total = objectives.joined({name: sum(count[name] for count in counts) for name in names})
    embedded = {name: _leaf(objectives, [read.embedded[name] for read in reads], size) for name in objectives.embedded}
    with torch.autocast(batch.positive_ids.device.type, enabled=False):
        losses = objectives.contrasts(batch, embedded)
    _backward(objectives.total(losses))
    gradients = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, (x, _) in embedded.items()}
    found = {name: loss.detach() for name, loss in losses.items()}
    done = dict.fromkeys(embedded, 0)
    for part in parts:
        read = objectives.read(part)
        share = torch.zeros((), device=batch.positive_ids.device)
        with torch.autocast(batch.positive_ids.device.type, enabled=False):
            sums = objectives.sums(part, read, total)
            for name, (x, _) in read.embedded.items():
                share = share + (x * gradients[name][done[name] : done[name] + len(x)]).sum()
                done[name] += len(x)
            _backward(share + objectives.total(sums))
        for name, loss in sums.items():
            found[name] = found.get(name, 0) + loss.detach()
    zero = torch.zeros((), device=batch.positive_ids.device)
    return {name: found.get(name, zero) for name in objectives.weights}


def _leaf(objectives: Objectives, parts: Sequence[tuple[Tensor, Tensor]], size: int) -> Embedded:
    """The embeddings of all parts, as what the contrasts derive by."""
    parts = parts or [objectives.nothing()]
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
