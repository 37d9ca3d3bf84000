"""How evaluation reads a sample: as training reads those of its sources, but that nothing is drawn.

A sample is read as by the source that provides most of what it holds: its text is of the field with the largest weight
that is there, of a list the first; an answer stands behind its question. Where no source of the run finds a text in it,
its .txt is the text, or "caption" or "text" of its .json, and that is counted.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from mmfm.config import MODALITIES, Model, Source, Text
from mmfm.data.decode import Decode, Example, read_example
from mmfm.data.documents import joined
from mmfm.data.sample import Sample, modalities, text_of, texts_at
from mmfm.preprocessing import BadSample

MOST_TRIES = 64  # samples that are looked at for each shot


class Way(NamedTuple):
    """Where a text may lie, and the answer behind it."""

    texts: tuple[Text, ...]
    answers: tuple[Text, ...]


class Found(NamedTuple):
    """A text, the answer to it, and the way that found them; None: none of the run's."""

    text: str | None
    answer: str | None
    way: Way | None


@dataclass(frozen=True, kw_only=True)
class Reader:
    """sources: the run's. texts: fields that are read instead of theirs."""

    model: Model
    decode: Decode
    sources: tuple[Source, ...] = ()
    texts: tuple[Text, ...] = ()

    @property
    def shots(self) -> int:
        """Samples that come before each, for tasks that name more than one sample holds."""
        return max((source.num_shots for source in self.sources), default=0)

    def read(self, sample: Sample) -> tuple[Example, bool]:
        """The sample decoded, and whether it has a text that no source of the run would find. Raises BadSample."""
        found = self.words(sample)
        if found.way is None or not (found.way.texts or found.answer):
            example = read_example(sample, self.model, self.decode)
            return example, found.way is None and self._particular(sample) and example.text is not None
        media = read_example(sample, self.model, self.decode, ("image", "audio") if found.way.texts else MODALITIES)
        example = replace(media, text=found.text) if found.way.texts else media
        if found.answer is None:
            return example, False
        question = Example(key=example.key, text=example.text)
        return replace(example, text=found.answer, before=(*example.before, question)), False

    def words(self, sample: Sample, media: Collection[str] | None = None) -> Found:
        """The text of a sample by the first way that finds one. media: the modalities that it holds, where it is read
        without them. Raises BadSample."""
        for way in self._ways(modalities(sample.parts) if media is None else set(media)):
            text, answer = heaviest(sample, way.texts), heaviest(sample, way.answers) if way.answers else None
            if text is not None and (answer is not None or not way.answers):
                return Found(text, answer, way)
        return Found(text_of(sample), None, None)

    def choices(self, sample: Sample) -> int:
        """How many texts the fields of its source hold, of which `read` takes one. Raises BadSample."""
        way = self.words(sample).way
        return 0 if way is None else sum(len(texts_at(sample, text.field)) for text in way.texts)

    def behind_shots(self, example: Example, sample_of: Callable[[int], Sample], row: int, rows: int) -> Example:
        """The example behind others of the split that hold what it holds, always the same ones for a row: `shots` of
        them, or fewer where there are not so many."""
        order = np.random.Generator(np.random.Philox(row)).permutation(rows)[: MOST_TRIES * self.shots]
        found: list[Example] = []
        for other in (at for at in order.tolist() if at != row):
            if len(found) == self.shots:
                break
            shot = self._usable(sample_of(other))
            if shot is not None and held_by(example) <= held_by(shot):
                found.append(shot)
        return joined([*found, example])

    def _usable(self, sample: Sample) -> Example | None:
        try:
            return self.read(sample)[0]
        except BadSample:
            return None

    def _ways(self, held: set[str]) -> Iterator[Way]:
        if self.texts:
            yield Way(self.texts, ())
            return
        media = held - {"text"}
        fitting = [one for one in self.sources if "text" in one.modalities and set(one.modalities) - {"text"} <= media]
        for source in sorted(fitting, key=lambda one: -len(set(one.modalities) & media)):
            yield Way(source.texts, source.targets)

    def _particular(self, sample: Sample) -> bool:
        """Whether a field is named for such samples at all."""
        return any(way.texts or way.answers for way in self._ways(modalities(sample.parts)))


def held_by(example: Example) -> set[str]:
    """The modalities that it has an item of."""
    return {name for name in MODALITIES if getattr(example, name) is not None}


def heaviest(sample: Sample, texts: Sequence[Text]) -> str | None:
    """The sample's text of the field with the largest weight, among equals the first; without fields the plain one."""
    if not texts:
        return text_of(sample)
    ordered = sorted(texts, key=lambda text: -text.weight)
    return next((told for text in ordered if (told := text_of(sample, (text,))) is not None), None)
