"""How likely a model finds the targets of samples, and how many texts one pass takes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mmfm.config.task import Task
from mmfm.data.batch import Batch
from mmfm.inference.pipeline import of_rows
from mmfm.models.model import UnifiedModel
from mmfm.objectives.task_pass import forward_task

AT_ONCE = 1 << 16  # tokens of texts, padding included, in one pass: a long text among many would fill the memory


def in_parts(lengths: Sequence[int], most: int | None = None) -> list[tuple[list[int], int]]:
    """Places in groups of like length, each with its longest: no group times its longest is over `most`, but alone,
    and none is padded to more than twice its length. most: None: `AT_ONCE`.

    All together where they fit so; then they are in their order.
    """
    most = AT_ONCE if most is None else most
    if not lengths or len(lengths) * max(lengths) <= most:
        return [(list(range(len(lengths))), max(lengths, default=0))] if lengths else []
    parts: list[tuple[list[int], int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if not parts or (len(parts[-1][0]) + 1) * parts[-1][1] > most or 2 * lengths[place] < parts[-1][1]:
            parts.append(([], lengths[place]))
        parts[-1][0].append(place)
    return [(sorted(part), longest) for part, longest in parts]


def nats_of(core: UnifiedModel, task: Task, batch: Batch) -> Float[Tensor, " size"]:
    """As `Interface.nats`; without gradient by whoever calls it."""
    text = batch.items.get("text")
    if text is None or batch.size * text.keep.shape[1] <= AT_ONCE:
        return _nats(core, task, batch)
    lengths = torch.zeros(batch.size, dtype=torch.int64).index_add(0, text.rows.cpu(), text.keep.sum(1).cpu())
    out = torch.full((batch.size,), torch.nan)
    for part, _ in in_parts(lengths.tolist()):
        out[part] = _nats(core, task, of_rows(batch, torch.tensor(part, device=text.rows.device)))
    return out


def _nats(core: UnifiedModel, task: Task, batch: Batch) -> Float[Tensor, " size"]:
    out = torch.full((batch.size,), torch.nan)
    reading = forward_task(core, task, batch.to(core.device))
    if reading is None or not len(reading.labels):
        return out
    each = F.cross_entropy(core.logits(reading.states).float(), reading.labels, reduction="none").cpu()
    owners = reading.sample_ids.unique()
    out[owners] = torch.zeros(batch.size).index_add(0, reading.sample_ids, each)[owners]
    cut = None if task.target is None or task.target not in batch.items else batch.items[task.target].cut
    if cut is not None:  # of a text that was cut not all has been asked
        out[batch.items[str(task.target)].rows[cut].cpu()] = torch.nan
    return out
