"""How evaluation reads a sample: as training reads those of its sources, but that nothing is drawn.

A sample is read as by the source that provides most of what it holds: its text is of the field with the largest weight
that is there, of a list the first, and the others are as right; an answer stands behind its question. Where no source
of the run finds a text in it, its .txt is the text, or "caption" or "text" of its .json, and that is counted.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from mmfm.config import Model, Source, Text, media_names, modality_names
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
    """A text, the answer to it, and the way that found them; None: none of the run's. alike: of the field of the one
    that is written, the answer or else the text, all that it holds."""

    text: str | None
    answer: str | None
    way: Way | None
    alike: tuple[str, ...] = ()


class Read(NamedTuple):
    """A sample decoded. texts: all that are as right as its own, which comes first. plain: it has a text that no source
    of the run would find."""

    example: Example
    texts: tuple[str, ...]
    plain: bool


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

    def read(self, sample: Sample) -> Read:
        """Raises BadSample."""
        found = self.words(sample)
        if found.way is None or not (found.way.texts or found.answer):
            example = read_example(sample, self.model, self.decode)
            plain = found.way is None and self._particular(sample) and example.text is not None
            return Read(example, () if example.text is None else (example.text,), plain)
        wanted = media_names() if found.way.texts else modality_names()
        media = read_example(sample, self.model, self.decode, wanted)
        example = replace(media, text=found.text) if found.way.texts else media
        if found.answer is None:
            return Read(example, found.alike, False)
        question = Example(key=example.key, text=example.text)
        answered = replace(example, text=found.answer, before=(*example.before, question))
        return Read(answered, found.alike or (found.answer,), False)

    def words(self, sample: Sample, media: Collection[str] | None = None) -> Found:
        """The text of a sample by the first way that finds one. media: the modalities that it holds, where it is read
        without them. Raises BadSample."""
        for way in self._ways(modalities(sample.parts) if media is None else set(media)):
            texts, answers = heaviest(sample, way.texts), heaviest(sample, way.answers) if way.answers else ()
            if texts and (answers or not way.answers):
                return Found(texts[0], answers[0] if answers else None, way, answers or texts)
        return Found(text_of(sample), None, None)

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
            return self.read(sample).example
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
    return {name for name in modality_names() if example.item(name) is not None}


def heaviest(sample: Sample, texts: Sequence[Text]) -> tuple[str, ...]:
    """The sample's distinct texts of the field with the largest weight, among equals the first; without fields the
    plain one. Raises BadSample where the first is none to be read."""
    for field in sorted(texts, key=lambda text: -text.weight):
        if (first := text_of(sample, (field,))) is not None:
            others = (text.strip() for text in texts_at(sample, field.field))
            return tuple(dict.fromkeys([first, *filter(None, others)]))
    plain = None if texts else text_of(sample)
    return () if plain is None else (plain,)
