"""What a model was trained to write, known from its configuration alone. Standard library only."""

from collections import deque
from collections.abc import Sequence

from mmfm.config import Generative, UserError
from mmfm.config.task import Task, parse_chain, parse_writing


def known_tasks(writes: Sequence[Generative]) -> set[Task]:
    """What is trained: what is named, and with condition dropout also the target alone, without sources."""
    named = {parse_writing(item.task): item for item in writes}
    return {*named, *(Task((), task.target, task.fill) for task, item in named.items() if item.condition_dropout)}


def trained(task: Task, writes: Sequence[Generative]) -> Task:
    """The task; UserError where it was not trained, with what the model writes and the chain that leads there."""
    if task not in known_tasks(writes):
        tasks = [item.task for item in writes]
        told = f"this model was not trained on {str(task)!r}; it writes {', '.join(tasks) or 'nothing'}"
        around = _way(task, tasks)
        raise UserError(told + (f"; the chain {around!r} leads there" if around else ""))
    return task


def links_of(text: str, writes: Sequence[Generative]) -> list[Task]:
    """The tasks of a chain, each of which was trained."""
    return [trained(task, writes) for task in parse_chain(text)]


def _way(task: Task, tasks: list[str]) -> str:
    """The shortest chain of trained tasks that leads where this one does; empty if there is none."""
    steps = [parse_writing(text) for text in tasks]
    steps = [step for step in steps if len(step.sources) == 1 and not step.fill]
    waiting = deque([[str(source)] for source in task.sources if len(task.sources) == 1 and not task.fill])
    seen = set(task.sources)
    while waiting:
        way = waiting.popleft()
        for step in steps:
            if step.sources[0] != way[-1] or step.target is None:
                continue
            if step.target == task.target and len(way) > 1:
                return ">".join([*way, step.target])
            if step.target not in seen:
                seen.add(step.target)
                waiting.append([*way, step.target])
    return ""
