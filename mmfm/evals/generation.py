"""What a model draws and says on a split, and what judges read in it: beside what they read in the split's own
pictures and sounds, and in these once they have been through the codec and back.

Each sample has a seed of its own, its place among those that are read, so that nothing depends on ranks or batches.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmfm.config import Run, UserError, require
from mmfm.config.task import Task, parse_chain
from mmfm.data.batch import Batch, Raw
from mmfm.evals.config import EvalConfig, GenerationEvalConfig
from mmfm.evals.heads import last_of_each
from mmfm.evals.judges.contract import Judge, Trained, compared
from mmfm.evals.judges.figures import read_right, word_errors
from mmfm.evals.metrics import Score, mean
from mmfm.evals.predict import Loaded, SplitReader, predict
from mmfm.evals.records import HeldOut, JudgeInfo
from mmfm.evals.split import Evaluable, Split, Watch, device_of, slices, spread
from mmfm.inference.interface import GeneratedCodes, Made, Sound
from mmfm.inference.modality_options import drop_of
from mmfm.inference.processing import picture_of, rate_of
from mmfm.runtime.distributed import Collective

MASKED = {"image": "right", "audio": 0.5}  # of what is to be filled in, hidden
OTHERS = "what its makers trained it on; none of it is of the data sets here"
KINDS = ("read", "read real", "read decoded")
Result = TypeVar("Result")


@runtime_checkable
class Generator(Evaluable, Protocol):
    """What is asked of a model besides."""

    run: Run

    def make(
        self, task: str, batch: Batch, *, seeds: Tensor, mask: Any = None, **options: Any
    ) -> list[GeneratedCodes]: ...
    def encode(self, modality: str, thing: Any) -> list[int]: ...
    def decode(self, modality: str, ids: Sequence[int], start: int = 0) -> Made: ...


class Product(NamedTuple):
    """What was made for a sample, and what each judge reads in it."""

    row: int
    ids: list[int]
    start: int
    read: dict[str, str]


class Own(NamedTuple):
    """What each judge reads in a sample's own picture or sound: as it is, and decoded of its codes."""

    row: int
    real: dict[str, str]
    decoded: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Generated:
    """products: by task. own: by modality. expected: by row what should be read; None: nobody knows. names: by modality
    all that can be expected."""

    products: dict[str, list[Product]] = field(default_factory=dict)
    own: dict[str, dict[int, Own]] = field(default_factory=dict)
    expected: tuple[str | None, ...] = ()
    names: Mapping[str, frozenset[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    judges: Mapping[str, Judge] = field(default_factory=dict)
    held_out: Mapping[str, HeldOut] = field(default_factory=dict)

    def about(self) -> dict[str, JudgeInfo]:
        """Of each judge: what it reads, what it has learned from, and how well it reads what it has not."""
        told = {name: one.learned_from if isinstance(one, Trained) else OTHERS for name, one in self.judges.items()}
        return {
            name: JudgeInfo(of=judge.of, learned_from=told[name], held_out=self.held_out.get(name))
            for name, judge in self.judges.items()
        }

    def right(self, task: str, product: Product) -> bool | None:
        """Whether some judge reads what should be read, or where nothing was given any name; None where there is no
        judge, or nothing to compare with."""
        expected = self.expected[product.row]
        if not product.read or expected is None:
            return None
        fits = self._names(task) if _free(task) else {compared(expected)}
        return any(compared(text) in fits for text in product.read.values())

    def _names(self, task: str) -> frozenset[str]:
        return self.names.get(target_of(task), frozenset())

    def scores(self, split: Split) -> list[Score]:
        found = [_of_judge(name, tried) for name, tried in self.held_out.items()]
        for task, products in self.products.items():
            known = [product for product in products if self.expected[product.row] is not None]
            own = self.own.get(target_of(task), {})
            mine = [own[product.row] for product in known if product.row in own]
            for judge in known[0].read if known else ():
                rows = [(item.row, item.read[judge]) for item in known]
                if _free(task):
                    found.append(self._named(split, task, judge, rows))
                    continue
                found += self._read(split, task, judge, KINDS[0], rows, errors=target_of(task) == "audio")
                for kind, parts in zip(KINDS[1:], ("real", "decoded"), strict=True):
                    own_rows = [(o.row, getattr(o, parts)[judge]) for o in mine if judge in getattr(o, parts)]
                    found += self._read(split, task, judge, kind, own_rows)
        return found

    def _named(self, split: Split, task: str, judge: str, rows: Sequence[tuple[int, str]]) -> Score:
        """The share of readings that are the name of some class."""
        values = np.array([compared(text) in self._names(task) for _, text in rows], float)
        told = {"task": task, "metric": f"{judge}/named", "n": len(rows), "chance": 0.0}
        return _of(split, [row for row, _ in rows], Score(**told, statistic=mean(values)))

    def _read(
        self, split: Split, task: str, judge: str, kind: str, rows: Sequence[tuple[int, str]], errors: bool = False
    ) -> list[Score]:
        """Right readings; of sounds also wrong words."""
        if not rows:
            return []
        places, heard = [row for row, _ in rows], [compared(text) for _, text in rows]
        expected = [compared(self.expected[row] or "") for row in places]
        scores = [replace(read_right(task, judge, expected, heard), metric=f"{judge}/{kind}")]
        scores += [word_errors(task, judge, expected, heard)] if errors else []
        return [_of(split, places, score) for score in scores]


def _of(split: Split, rows: Sequence[int], figure: Score) -> Score:
    """With what its rows are called, and of which picture or sound each is."""
    return replace(figure, items=split.names(rows), clusters=split.clusters(rows))


def _of_judge(name: str, tried: HeldOut) -> Score:
    """How well a judge reads what it has not learned from; of a hundred names."""
    right = np.arange(tried.of) < tried.right
    told = {"task": f"judge {name}", "metric": f"{name}/held_out", "n": tried.of, "chance": 0.01}
    return Score(**told, statistic=mean(right.astype(float)))


def _free(task: str) -> bool:
    """Whether it makes what it likes: nothing is read."""
    first = parse_chain(task)[0]
    return not first.sources and not first.fill


def target_of(task: str) -> str:
    return str(parse_chain(task)[-1].target)


def generate_all(
    model: Evaluable,
    split: Split,
    expected: Sequence[str | None],
    names: Mapping[str, Sequence[str]],
    config: EvalConfig,
    *,
    watch: Watch,
    ranks: Collective,
) -> Generated:
    """Every task's products for samples that are spread over the split; whole batches of them are dealt to ranks."""
    chosen = config.generation
    if not chosen.count:
        return Generated()
    if not isinstance(model, Generator):
        raise UserError("this model makes no pictures and sounds; leave --judges, --tasks and --num-samples out")
    tasks = _tasks(model, chosen)
    judges, held = judges_of(chosen.judges, {target_of(task) for task in tasks}), _held(split)
    every = {judge.name: judge for some in judges.values() for judge in some}
    tried = {name: judge.held_out() for name, judge in every.items() if isinstance(judge, Trained)}
    result = Generated(
        expected=tuple(text if text and compared(text) else None for text in expected),
        names={name: frozenset(map(compared, own)) for name, own in names.items()},
        judges=every,
        held_out={name: one for name, one in tried.items() if one is not None},
    )
    for name in (name for name, one in tried.items() if one is None):
        told = "how well it reads what it has not learned from was not measured"
        result.left_out.append(f"judge {name}: {told}; make it again with: mmfm data judges FOLDER --force")
    maker = _Maker(model=model, split=split, judges=judges)

    def dealt(rows: list[int], work: Callable[[Loaded], list[Result]], kind: Any) -> list[Result]:
        pieces = [rows[part] for part in slices(len(rows), config.batch_size)]
        workers = {"num_workers": config.num_workers, "ranks": ranks, "watch": watch}
        return [item for part in predict(maker.source, pieces, work, list[kind], **workers) for item in part]

    for task in tasks:
        rows, lacking = _rows(parse_chain(task)[0], held, chosen.count)
        options = {k: v for k, v in chosen.options.items() if chosen.tasks or _fits(k, task, model.run)}
        if rows:
            result.products[task] = dealt(rows, maker.work(task, options), Product)
        result.left_out.extend(_told(task, len(rows), len(split), lacking, chosen.options.keys() - options))
    for name in dict.fromkeys(map(target_of, result.products)):
        made = {item.row for task, some in result.products.items() if target_of(task) == name for item in some}
        rows = sorted(row for row in made if name in held[row]) if name in judges else []
        result.own[name] = {item.row: item for item in dealt(rows, maker.own(name), Own)}
        result.left_out.extend(_told_met(judges.get(name, []), result.own[name]))
    return result


def _tasks(model: Generator, chosen: GenerationEvalConfig) -> tuple[str, ...]:
    """Those that are named, else all of the run that draw or say something."""
    tasks = chosen.tasks or tuple(task for task in model.tasks if target_of(task) != "text")
    told = f"this run draws and says nothing; it writes {', '.join(model.tasks)}: leave --judges and --num-samples out"
    require(bool(tasks), told)
    for task in tasks:
        told = f"--tasks {task} writes a text, which judges do not read; ask for what ends in image or audio"
        require(target_of(task) != "text", told)
    return tasks


def _told(task: str, made: int, total: int, lacking: str, without: Collection[str]) -> list[str]:
    """What the figures of a task do not cover."""
    if not made:
        return [f"{task}: no sample has {lacking}, so nothing was made"]
    lines = [f"{task}: made without {name}, which it does not take" for name in sorted(without)]
    return lines + ([f"{task}: made for {made} of the {total} samples"] if made < total else [])


def _told_met(judges: Sequence[Judge], own: Mapping[int, Own]) -> Iterator[str]:
    """Where a judge reads none of a split's own pictures and sounds, as it knows them."""
    for judge in judges:
        if met := sum(judge.name not in item.real for item in own.values()):
            told = f"of {len(own)} of the split's own it has learned from the scans or voices of {met}"
            yield f"judge {judge.name}: {told}, and is not asked about these"


def _fits(option: str, task: str, run: Run) -> bool:
    last = parse_chain(task)[-1]
    return not last.fill if option == "best_of" else option != "guidance" or drop_of(last, run) > 0


def judges_of(names: Sequence[str], targets: set[str]) -> dict[str, list[Judge]]:
    """By what they read. UserError: one that reads nothing that is made."""
    if not names:
        return {}
    from mmfm.evals.judges.choose import judge  # sklearn and transformers, which are slow to import

    found: dict[str, list[Judge]] = {}
    for name in names:
        made = judge(name)
        told = f"the judge {name!r} reads {made.of}, and these tasks make {' and '.join(sorted(targets))}; leave it out"
        require(made.of in targets, told)
        found.setdefault(made.of, []).append(made)
    return found


def _held(split: Split) -> list[set[str]]:
    """What each row's sample has, but one that cannot be used; a text may be in its .json."""
    own = split.infos[: len(split)]
    held = [{*info.modalities} - {"text"} | ({"text"} if info.text is not None else set()) for info in own]
    return [set() if row in split.bad else has for row, has in enumerate(held)]


def _rows(task: Task, held: Sequence[set[str]], most: int) -> tuple[list[int], str]:
    """At most so many rows that have all that is read, and what should be made too where there are such; and what
    is lacking where there are none."""
    needs = {*task.sources, *([str(task.target)] if task.fill or task.target in task.sources else [])}
    able = [row for row, has in enumerate(held) if needs <= has]
    whole = [row for row in able if str(task.target) in held[row]]
    rows = whole or able
    return [rows[place] for place in spread(len(rows), most)], " and ".join(sorted(needs))


@dataclass(frozen=True, kw_only=True)
class _Maker:
    model: Generator
    split: Split
    judges: dict[str, list[Judge]]

    @property
    def source(self) -> SplitReader:
        split, reader = self.split, self.split.reader
        assert reader is not None
        at = {"samples": split.samples, "places": split.places, "own": split.own}
        return SplitReader(reader=reader, tokenizer=self.model.tokenizer, **at)

    def work(self, task: str, options: Mapping[str, Any]) -> Callable[[Loaded], list[Product]]:
        """What is made for the samples of a batch, and read. Each has a seed of its own, its row."""
        first, modality = parse_chain(task)[0], target_of(task)
        mask = MASKED[str(first.target)] if first.fill else None

        def make(loaded: Loaded) -> list[Product]:
            batch, seeds = loaded.batch.to(device_of(self.model)), torch.tensor(loaded.rows)
            made = self.model.make(task, batch, seeds=seeds, mask=mask, **options)
            read = self.read(modality, [self.model.decode(modality, item.ids, item.start) for item in made])
            return [Product(loaded.rows[c.row], c.ids, c.start, text) for c, text in zip(made, read, strict=True)]

        return make

    def own(self, modality: str) -> Callable[[Loaded], list[Own]]:
        """What is read in the samples' own pictures or sounds, at the codec's size or rate."""

        def judge(loaded: Loaded) -> list[Own]:
            items = last_of_each(loaded.batch.items[modality])
            raw = items.raw or Raw(items.x, items.keep)
            if modality == "image":
                real: list[Any] = [picture_of(x) for x in raw.x]
            else:
                rate_hz = rate_of(self.model.run)
                real = [Sound(x[keep], rate_hz) for x, keep in zip(raw.x, raw.keep, strict=True)]
            back = [self.model.decode(modality, self.model.encode(modality, sample)) for sample in real]
            rows = [loaded.rows[at] for at in items.rows.tolist()]
            fresh = [self.strangers(modality, row) for row in rows]
            read = zip(rows, self.read(modality, real), self.read(modality, back), fresh, strict=True)
            return [Own(row, _only(first, names), _only(again, names)) for row, first, again, names in read]

        return judge

    def strangers(self, modality: str, row: int) -> set[str]:
        """The judges that have not learned from the sample's scans or voice."""
        judges = self.judges.get(modality, [])
        sample = self.split.sample(row) if any(isinstance(judge, Trained) for judge in judges) else None
        return {one.name for one in judges if not (isinstance(one, Trained) and sample and one.met(sample))}

    def read(self, modality: str, samples: Sequence[Made]) -> list[dict[str, str]]:
        """Of each sample what each judge reads."""
        judges = self.judges.get(modality, [])
        sounds = [sample for sample in samples if isinstance(sample, Sound)]
        tensors = [sound.wave for sound in sounds] or [_pixels(sample) for sample in samples]
        rate_hz = sounds[0].rate_hz if sounds else 0
        texts = {judge.name: judge.read(tensors, rate_hz) for judge in judges}
        return [{name: read[at] for name, read in texts.items()} for at in range(len(samples))]


def _only(read: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    return {name: text for name, text in read.items() if name in names}


def _pixels(picture: Made) -> Tensor:
    """uint8 [channels, height, width]"""
    assert isinstance(picture, Image.Image)
    x = torch.from_numpy(np.array(picture))
    return x[None] if x.ndim == 2 else x.permute(2, 0, 1)
