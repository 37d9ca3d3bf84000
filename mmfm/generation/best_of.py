"""Of several that were drawn, the one that lies nearest to what they were drawn for. Letters: m targets, d dim."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mmfm.config.task import Task
from mmfm.data.batch import Batch, Items
from mmfm.models.model import UnifiedModel
from mmfm.objectives.task_pass import forward_task

Embed = Callable[[list[list[int]]], Float[Tensor, "m d"]]


def best(scores: Float[Tensor, " m"], draws: int) -> tuple[list[int], list[float]]:
    """Of each row's draws, side by side, the place of the best, and its score; the first of several that are equal."""
    each = scores.unflatten(0, (-1, draws))
    chosen = each.argmax(1)
    places = torch.arange(len(each), device=each.device) * draws + chosen
    return places.tolist(), scores[places].tolist()


def nearness(
    sources: Mapping[str, tuple[Sequence[int], Float[Tensor, "n d"]]], embed: Embed
) -> Callable[[list[int], list[list[int]]], Float[Tensor, " m"]]:
    """A judge: the cosine of what was written and its source, the mean over the sources.

    sources: for each modality the samples it has embeddings of, rising, and their unit embeddings. embed: local ids of
    m targets -> their unit embeddings.
    """
    places = {name: {row: at for at, row in enumerate(rows)} for name, (rows, _) in sources.items()}

    def judge(rows: list[int], ids: list[list[int]]) -> Float[Tensor, " m"]:
        made = embed(ids)
        cosines = [(made * z[[places[name][row] for row in rows]]).sum(1) for name, (_, z) in sources.items()]
        return torch.stack(cosines).mean(0)

    return judge


@torch.no_grad()
def source_embeddings(
    model: UnifiedModel, task: Task, batch: Batch
) -> dict[str, tuple[list[int], Float[Tensor, "n d"]]]:
    """What `nearness` compares with: of each source that the task names once, the embedding that contrast learned."""
    found = {}
    for name in dict.fromkeys(task.sources):
        reading = forward_task(model, Task((name,), None), batch) if task.sources.count(name) == 1 else None
        if reading is not None:
            found[name] = reading.rows.tolist(), reading.embedding
    return found


@torch.no_grad()
def embed_items(model: UnifiedModel, modality: str, items: Items) -> Float[Tensor, "m d"]:
    """Unit embeddings of items, one for each of their rows 0, 1, 2, .."""
    size = len(items.rows)
    batch = Batch(size=size, items={modality: items}, positive_ids=torch.arange(size, device=items.rows.device))
    reading = forward_task(model, Task((modality,), None), batch)
    assert reading is not None
    return reading.embedding
