"""What people give for a task, checked against what it reads."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmfm.config import MODALITIES, UserError, require
from mmfm.config.task import Task
from mmfm.inference.infill import HOW, MaskSpec, check_hide
from mmfm.inference.processing import WORDS, Things, kind_of


def given_of(task: Task, given: Mapping[str, Any]) -> Things:
    """One thing or several of each modality, as lists. UserError where they are not what the task names."""
    held = {name: things for name in MODALITIES if (things := _listed(given.get(name)))}
    for name, things in held.items():
        for thing in things:
            kind_of(name, thing)
    check_counts(task, {name: len(things) for name, things in held.items()})
    return held


def each_of(task: Task, samples: Sequence[Mapping[str, Any]], mask: MaskSpec) -> list[Things]:
    """`given_of` each. UserError too where only some hold what is to be filled in, or one holds what is no modality."""
    found = []
    for sample in samples:
        unknown = ", ".join(sorted(sample.keys() - set(MODALITIES)))
        require(not unknown, f"a sample holds {unknown}; give {', '.join(MODALITIES)}")
        found.append(given_of(task, sample))
        check_hiding(task, mask, has_own(task, found[-1]))
    told = f"only some of these samples hold the {task.target} that is to be filled in; ask for them apart"
    require(len({has_own(task, one) for one in found}) < 2, told)
    return found


def _listed(given: Any) -> list[Any]:
    """A string and a `Sound` are sequences too, and one thing."""
    if given is None:
        return []
    return list(given) if isinstance(given, Sequence) and type(given) in (list, tuple) else [given]


def check_counts(task: Task, counts: Mapping[str, int]) -> None:
    """UserError unless there is a thing for each mention; of a target that is filled in there may be one more."""
    wanted = {name: task.sources.count(name) for name in MODALITIES}
    missing = sorted(name for name in wanted if wanted[name] and not counts.get(name))
    flags = " ".join(f"--{name}" for name in missing)
    require(not missing, f"task {task} reads {' and '.join(missing)}, which was not given; add {flags}")
    own = str(task.target) if task.fill else ""
    spare = sorted(name for name in counts if counts[name] and not wanted[name] and name != own)
    require(not spare, f"task {task} does not read {' and '.join(spare)}; leave it out")
    for name, count in counts.items():
        fits = count in (wanted[name], wanted[name] + (name == own))
        told = f"task {task} reads {wanted[name]} of {name}, in order of mention, and {count} are given"
        require(fits, f"{told}; give --{name} {wanted[name]} times")
    if own and own != "image" and counts.get(own, 0) <= wanted[own]:
        raise UserError(f"task {task} fills in a {WORDS[own]} that you give: add --{own}, with {HOW[own]} to mask")


def has_own(task: Task, held: Things) -> bool:
    """Whether the item that is to be filled in is given."""
    return task.fill and len(held.get(str(task.target), ())) > task.sources.count(str(task.target))


def check_hiding(task: Task, mask: MaskSpec, own: bool) -> None:
    """UserError where `mask` is said in vain, or not said. own: the item is given."""
    name = str(task.target)
    require(task.fill or mask is None, f"mask={mask!r}: task {task} fills nothing in; leave it out, or ask for {name}~")
    require(own or mask is None, f"mask={mask!r}: no {WORDS[name]} is given to mask a part of; add --{name}")
    told = f"task {task} fills in what is hidden of the {WORDS[name]}; say what by mask: {HOW[name]}"
    require(not own or mask is not None or name == "text", told)
    check_hide(mask, name)
