"""The one reading loop: each sample is read and decoded once, by loader processes, and each head takes the batch.

A split is any shards. A sample may have any of image, audio, text; samples that have nothing that the model reads are
counted. With a limit, the samples are spread evenly over the shards, which may hold one modality each.

"A+B" is the split A, whose retrieval also has to choose among the pictures, sounds and texts of B; B asks nothing. So
classes that training never met can be looked for among all.
"""

import hashlib
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mmfm.config import UserError, media_names, require
from mmfm.config.task import Task, parse
from mmfm.data.batch import Batch
from mmfm.data.decode import Example, collate, require_short
from mmfm.data.documents import steps_of
from mmfm.data.index import MODALITY
from mmfm.data.sample import Sample, label_of, modalities
from mmfm.data.worker_transfer import Piped, handed_over, taken
from mmfm.evals.gather import shared
from mmfm.evals.reading import Read, Reader, held_by
from mmfm.evals.split import ALONE, SampleInfo, Samples, Watch
from mmfm.preprocessing import BadSample
from mmfm.runtime import machine
from mmfm.runtime.distributed import Collective
from mmfm.runtime.process import loader_worker

DIGEST_BYTES = 8
Result = TypeVar("Result")


class Loaded(NamedTuple):
    """A batch as it was read. Rows count from its first sample, which is `rows[0]` of the split.

    shots: by task, a batch whose samples stand behind others of the split, and which rows of it are asked for.
    """

    rows: tuple[int, ...]
    batch: Batch
    infos: tuple[SampleInfo, ...]
    bad: dict[int, str]
    shots: dict[str, tuple[Batch, tuple[int, ...]]]
    media: dict[str, tuple[str, ...]]  # digests of the items of a modality, in the batch's order


@dataclass(frozen=True, kw_only=True)
class SplitReader(Dataset):
    """Rows of a split -> Loaded, or the error of reading them: one raised in a loader process would be a traceback."""

    reader: Reader
    tokenizer: Any
    samples: Samples
    places: tuple[int, ...]
    own: int
    tasks: tuple[str, ...] = ()  # that may ask for shots
    coded: tuple[str, ...] = ()  # modalities whose items are told apart by their bytes

    def __getitem__(self, rows: list[int]) -> Loaded | Piped | UserError | OSError | MemoryError:
        try:
            loaded = self.load(rows)
        except (UserError, OSError, MemoryError) as why:
            return why
        return loaded if get_worker_info() is None else handed_over(loaded)

    def load(self, rows: list[int]) -> Loaded:
        samples = [self.sample(row) for row in rows]
        examples: list[Example] = []
        infos: list[SampleInfo] = []
        bad: dict[int, str] = {}
        for at, sample in enumerate(samples):
            try:
                found = self.reader.read(sample)
                require_short(found.example, self.tokenizer, sample.where)
            except BadSample as why:
                bad[at], found = why.code, Read(Example(key=sample.key), (), False)
            examples.append(found.example)
            infos.append(info_of(sample, found))
        batch = collate(examples, self.tokenizer)
        several = [
            tuple(name for name, counts in counts_of(batch).items() if counts[at] > 1) for at in range(len(rows))
        ]
        infos = [info._replace(several=names) for info, names in zip(infos, several, strict=True)]
        asks = rows[0] < self.own
        shots = {task: found for task in self.tasks if asks and (found := self.behind(task, rows, examples, batch))}
        good = [sample for at, sample in enumerate(samples) if at not in bad]
        media = {name: tuple(item_digests(good, name)) for name in self.coded}
        return Loaded(tuple(rows), batch, tuple(infos), bad, shots, media)

    def sample(self, row: int) -> Sample:
        return self.samples[self.places[row]]

    def behind(
        self, name: str, rows: list[int], examples: list[Example], batch: Batch
    ) -> tuple[Batch, tuple[int, ...]] | None:
        """The samples that lack items that the task names, behind others; None where none needs that."""
        task = parse(name)
        able = able_rows(task, batch)
        rest = [at for at in range(batch.size) if at not in able]
        if not rest or not self.reader.shots or not {*task.sources, str(task.target)} <= set(batch.items):
            return None
        behind = list(examples)
        for at in rest:
            if {*task.sources, "text"} <= held_by(examples[at]):
                behind[at] = self.reader.behind_shots(examples[at], self.sample, rows[at], self.own)
        shot = collate(behind, self.tokenizer)
        more = able_rows(task, shot) - able
        return (shot, tuple(sorted(more))) if more else None


def predict(
    source: SplitReader,
    pieces: Sequence[list[int]],
    ask: Callable[[Loaded], Result],
    kind: Any,
    *,
    num_workers: int = 0,
    ranks: Collective = ALONE,
    watch: Watch = iter,
) -> list[Result]:
    """What `ask` makes of each batch of rows, in order, on every rank. Each rank reads its own, `num_workers` ahead."""
    mine = list(pieces[ranks.rank :: ranks.size])
    found = loaded(source, mine, min(num_workers, len(mine)))
    return shared(pieces, lambda _: ask(next(found)), ranks, kind, watch)


def loaded(source: SplitReader, pieces: Sequence[list[int]], num_workers: int) -> Iterator[Loaded]:
    more: dict[str, Any] = {}
    if num_workers and sys.platform == "linux":  # a fork shares the index; elsewhere this process reads
        more = {"num_workers": num_workers, "worker_init_fn": loader_worker, "multiprocessing_context": "fork"}
    loader = DataLoader(source, batch_size=None, sampler=pieces, collate_fn=_as_it_is, **more)  # type: ignore[arg-type]
    try:
        for found in loader:
            if isinstance(found := taken(found), Exception):
                raise found
            yield found
    except RuntimeError as why:
        if not str(why).startswith("DataLoader "):  # torch's words for a dead process
            raise
        raise ChildProcessError(machine.worker_died(str(why))) from None


def _as_it_is(found: Any) -> Any:
    return found


def info_of(sample: Sample, found: Read) -> SampleInfo:
    mark = sample.parts.get("cls")
    whole = mark is None or mark.strip().isdigit()
    require(whole, f"{sample.where}: the .cls is no whole number; write the class's place in classnames.txt, from 0")
    labels = (None if mark is None else int(mark), label_of(sample))
    held = tuple(sorted(modalities(sample.parts)))
    told = {
        "plain": found.plain,
        "media": media_digest(sample, media_names()),
        "texts": found.texts,
        "modalities": held,
    }
    return SampleInfo(sample.key, found.example.text, labels, sample_digest(sample), **told)


def sample_digest(sample: Sample) -> str:
    """Of the sample's key and bytes, by which two evaluations can tell that they saw the same."""
    return _digest(sorted(sample.parts.items()), sample.key)


def media_digest(sample: Sample, kinds: Collection[str]) -> str:
    """Of the sample's files of these modalities, by which samples of one image are told; "": none."""
    media = sorted((name, data) for name, data in sample.parts.items() if kind_of(name) in kinds)
    return _digest(media) if media else ""


def item_digests(samples: Sequence[Sample], modality: str) -> Iterator[str]:
    """Of every picture or sound of these samples, in order."""
    for step in (step for sample in samples for step in steps_of(sample)):
        if digest := media_digest(step, (modality,)):
            yield digest


def _digest(parts: Sequence[tuple[str, bytes]], key: str = "") -> str:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=DIGEST_BYTES)
    for name, data in parts:
        digest.update(f"/{name}/{len(data)}/".encode("utf-8", "surrogateescape"))
        digest.update(data)
    return digest.hexdigest()


def kind_of(name: str) -> str | None:
    """The modality of a part, by the end of its name."""
    return MODALITY.get(name.rpartition(".")[2].lower())


def counts_of(batch: Batch) -> dict[str, list[int]]:
    """How many items of each modality each sample holds."""
    return {
        name: torch.bincount(items.rows.cpu(), minlength=batch.size).tolist() for name, items in batch.items.items()
    }


def able_rows(task: Task, batch: Batch) -> set[int]:
    """The rows that hold as many items as the task names, its target's included; none of them is cut in two."""
    counts, names = counts_of(batch), {*task.sources, str(task.target)}
    if not names <= counts.keys():
        return set()
    return {row for row in range(batch.size) if all(counts[name][row] >= task.mentions(name) for name in names)}
