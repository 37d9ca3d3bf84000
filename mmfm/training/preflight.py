"""What can be known of a run before torch is imported: its configuration, its samples, its folder.

`mmfm train CONFIG --check` shows it and `mmfm train` refuses by it, so that a wrong path costs a second and not a
minute. Standard library only.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmfm.config import MESSAGES, MODALITIES, Data, KnownCodec, Model, Run, Source, Text, UserError, require
from mmfm.config.serialization import to_json
from mmfm.config.task import parse, parse_writing
from mmfm.data.sample import text_of
from mmfm.data.shard_specs import expand
from mmfm.data.shards import Shards, check_holds
from mmfm.data.splits import asked_and_more, is_remote, shards_of, splits_of
from mmfm.evals.suite import read_suite, root_of
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.text_limits import check_window
from mmfm.runtime.files import Manifest


@dataclass(frozen=True, kw_only=True)
class Term:
    """A term of the loss: the sources that need a tower, and what a sample must hold to count."""

    name: str
    weight: float
    sources: tuple[str, ...]
    needs: frozenset[str]


def objectives(run: Run) -> Iterator[Term]:
    for item in run.contrastive:
        yield Term(name=item.name, weight=item.weight, sources=item.pair, needs=frozenset(item.pair))
    for item in run.generative:
        task = parse_writing(item.task)
        needs = frozenset((*task.sources, str(task.target)))
        yield Term(name=item.name, weight=item.weight, sources=task.sources, needs=needs)
    for item in run.reconstruction:
        yield Term(name=item.name, weight=item.weight, sources=(), needs=frozenset((item.modality,)))
    if run.chat is not None:
        yield Term(name=run.chat.name, weight=run.chat.weight, sources=(), needs=frozenset((MESSAGES,)))
    for item in run.distil:
        talks = item.logits and ">text" not in [one.task for one in run.generative]
        needs = frozenset((MESSAGES if talks else item.modality,))
        yield Term(name=item.name, weight=item.weight, sources=(item.modality,) if item.embeds else (), needs=needs)
    for item in run.objectives:
        sources = tuple(name for task in item.tasks for name in parse(task).sources)
        yield Term(name=item.name, weight=item.weight, sources=sources, needs=frozenset(item.modalities))


@dataclass(frozen=True, kw_only=True)
class SourceSummary:
    """What lies in the shards of one source, whose samples hold what the source provides."""

    source: Source
    shards: int
    samples: int

    def holding(self, needs: frozenset[str]) -> int:
        """Samples that hold all of `needs`."""
        return self.samples if needs <= set(self.source.modalities) else 0


LOOKED_AT = 64  # samples of a source, for the fields that its texts are read from


def check_fields(source: Source, shards: Shards, max_bad_fraction: float) -> None:
    """Raises UserError where the first samples lack the fields of `Source.texts` or `answers` more often than
    `max_bad_fraction` explains: by three standard deviations of as many draws. Shards behind URLs are not fetched
    for it."""
    looked = range(0 if shards.remote else min(LOOKED_AT, len(shards)))
    allowed = max_bad_fraction * len(looked) + 3 * math.sqrt(max_bad_fraction * len(looked))
    for name, texts in (("texts", source.texts), ("targets", source.targets)):
        lack = [sample for sample in looked if texts and not _has_text(shards, sample, texts)]
        if len(lack) > allowed:
            fields = " or ".join(repr(text.field) for text in texts)
            told = f"{len(lack)} of its first {len(looked)} samples lack, such as {shards.where(lack[0])}"
            raise UserError(
                f"Source.{name} of {source.label!r} names {fields}, which {told}; name a field that they have"
            )


def _has_text(shards: Shards, sample: int, texts: Sequence[Text]) -> bool:
    """What is damaged has none; why is said where it is read for training."""
    try:
        return text_of(shards.read(sample, ("json", "txt")), texts) is not None
    except BadSample:
        return False


Opener = Callable[[Source, Data], Shards]


def open_here(source: Source, data: Data) -> Shards:
    """The shards of this machine; those behind URLs need more than the standard library."""
    shards = Shards(expand(source.shards))
    check_holds(source, shards, data.max_bad_fraction)
    return shards


def look(source: Source, data: Data, opener: Opener = open_here) -> SourceSummary:
    """Reads the indexes of all shards, or the headers of those without. Raises UserError as `check_holds` does."""
    shards = opener(source, data)
    check_fields(source, shards, data.max_bad_fraction)
    return SourceSummary(source=source, shards=len(shards.places), samples=len(shards))


def check(run: Run, opener: Opener = open_here) -> list[SourceSummary]:
    """What each training source holds. Raises UserError for the first thing without which the run could not train."""
    wanted = list(objectives(run))
    require(
        bool(wanted),
        f"run {run.name!r} has no objective; list some in `contrastive`, `generative`, `reconstruction` or `chat`",
    )
    _check_codecs(run)
    require(bool(run.data.train), f"run {run.name!r} has no training data; list sources in `data.train`")
    for objective in wanted:
        _check_towers(run.model, objective)
    for item in run.distil:
        told = f"Distil.teacher: there is no folder {item.teacher}"
        require(Path(item.teacher).is_dir(), f"{told}; mmfm import SOURCE {item.teacher} makes it")
    _check_tokenizer(run.model.tokenizer)
    check_window(run)
    check_place(run.folder)
    found = [look(source, run.data, opener) for source in run.data.train]
    for objective in wanted:
        _check_samples(found, objective)
    splits_of(run)  # names of splits that are not clear are told here
    if run.data.val:
        _check_val(run, opener)
    _check_splits(run, opener)
    require(
        bool(run.data.val) or not run.eval.every_steps,
        f"eval.every_steps={run.eval.every_steps} needs samples to score: set data.val, or every_steps to 0",
    )
    told = f"best={run.best} is measured when a run is scored: set data.val and eval.every_steps, or leave it out"
    require(not run.best or bool(run.eval.every_steps), told)
    return found


def _check_val(run: Run, opener: Opener) -> None:
    """Scores during training need samples of which the run reads something."""
    asked, more = asked_and_more(shards_of(run.data.val))
    shards = opener(Source(shards=asked, modalities=()), run.data)
    if more:
        opener(Source(shards=more, modalities=()), run.data)
    reads = set(run.model.towers)
    reads |= {name for objective in objectives(run) for name in objective.needs}
    inside = any(source.texts for source in run.data.train)  # texts that the indexes do not count
    able = any(shards.held[name] for name in reads) or ("text" in reads and inside) or MESSAGES in reads
    told = f"data.val={run.data.val}: none of its {len(shards)} samples has what this run reads"
    require(able or not run.eval.every_steps, f"{told} ({', '.join(sorted(reads))}); name other shards, or none")


def check_suites(run: Run) -> None:
    """The suites that are scored during training: their files, which are executed, and the folders of their data."""
    for path in run.eval.suites:
        try:
            root_of(read_suite(path))
        except UserError as why:
            raise UserError(f"eval.suites: {why}") from None


def _check_splits(run: Run, opener: Opener) -> None:
    """What is scored besides is there; it is not looked into."""
    for spec in (part for item in run.eval.splits for part in asked_and_more(shards_of(item)) if part):
        try:
            opener(Source(shards=spec, modalities=()), run.data) if is_remote(spec) else expand(spec)
        except UserError as why:
            raise UserError(f"eval.splits: {why}") from None


def _check_towers(model: Model, objective: Term) -> None:
    for name in objective.sources:
        present = name in model.towers
        require(present, f"{objective.name} reads {name}, but model.{name} is None; give the model a tower for it")


def _check_codecs(run: Run) -> None:
    """What is written has a codec; a codec is trained here, or was."""
    have, learned = run.model.codecs, {item.modality for item in run.reconstruction}
    for item in run.generative:
        target = parse_writing(item.task).target
        told = f"{item.name} writes {target}, but model.{target}_codec is None; give the model a codec for it"
        require(target in ("text", *have), told)
    for name in sorted(learned):
        told = f"{name} codec is to be trained, but model.{name}_codec is None; give it, or leave it out of reconstruct"
        require(name in have, told)
    for name, codec in have.items():
        told = f"model.{name}_codec has no weights and is not trained here; set its weights to the run that trained it"
        require(name in learned or isinstance(codec, KnownCodec) or bool(codec.weights), told)


def _check_tokenizer(spec: str) -> None:
    holds = spec == "bytes" or Path(spec).is_file()
    require(holds, f'model.tokenizer: there is no file {spec!r}; give a tokenizer.json, or "bytes"')
    told = f"model.tokenizer: {spec!r} is no tokenizer.json, which holds a model with a vocab"
    require(spec == "bytes" or _has_vocab(Path(spec)), f'{told}; give one, or "bytes"')


def _has_vocab(file: Path) -> bool:
    try:
        return bool(json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def check_compiler(run: Run) -> None:
    """UserError where blocks are to be compiled and what torch's inductor writes cannot be."""
    name = os.environ.get("CXX", "g++")
    told = f"parallel.compile=True needs a C++ compiler, and {name} is not found"
    found = not run.parallel.compile or shutil.which(name) is not None
    require(found, f"{told}; install it, name another one by CXX, or leave parallel.compile=False")


def check_place(folder: Path) -> None:
    """Raises UserError where no run may be written: on or below a file, and into a checkpoint, which it would spoil."""
    file = next((path for path in (folder, *folder.parents) if path.is_file()), None)
    require(file is None, f"{folder} can be no folder: {file} is a file; choose another --out or --name")
    told = f"{folder} is a checkpoint, and training into it would spoil it"
    require(
        not (folder / "manifest.json").is_file(),
        f"{told}; give its run {folder.parent.parent}, or its {folder / 'run.json'} and another --out or --name",
    )


def _check_samples(found: list[SourceSummary], objective: Term) -> None:
    names = " and ".join(sorted(objective.needs))
    total = sum(item.samples for item in found)
    require(
        any(item.holding(objective.needs) for item in found),
        f"{objective.name} needs samples that hold {names}, and none of {total} does; add a source, or drop it",
    )


def finished(run: Run) -> bool:
    """Whether the run's folder holds just this run, trained to its last step, with that checkpoint whole."""
    saved = run.folder / "run.json"
    same = saved.is_file() and _told(saved.read_text(encoding="utf-8", errors="replace")) == _told(to_json(run))
    last = {path.name.removeprefix("step-"): path for path in run.folder.glob("checkpoints/step-*")}
    return same and any(name.isdecimal() and int(name) >= run.optim.steps and _whole(last[name]) for name in last)


def _told(saved: str) -> object:
    """What a person has said of a run: without the blueprints that training writes."""
    try:
        tree = json.loads(saved)
        for name in MODALITIES:
            (tree["model"][name] or {}).pop("blueprint", None)
        for item in tree.get("distil", ()):
            item.pop("sha256", None)
        return tree
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _whole(checkpoint: Path) -> bool:
    """Whether its files are those that its manifest counts."""
    try:
        Manifest(checkpoint / "manifest.json", "checkpoint", "").verify()
    except UserError:
        return False
    return True
