"""Samples of several items: a question and its answer, a document of pictures and texts, a sample after others.

Such a sample is an `Example` that holds the last item of each modality; `before` holds the items that come before them,
each an example of its own. Order counts within a modality; how modalities take turns is what a task says.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mmfm.config import MODALITIES, modality_names
from mmfm.data.batch import Items
from mmfm.data.index import modality_of, numbered
from mmfm.data.sample import Sample, text_of
from mmfm.preprocessing.chat import ChatIds
from mmfm.runtime.randomness import hash_uniform, splitmix64

EARLIER = 5  # what an item's draws decide: those of the items before it


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sample, decoded: `image` at the tower's size, `audio` at its rate. None: not there, or no tower reads it.
    `own`: the items of modalities of one's own.

    `words`: the sample as it was, but for pictures and sounds. `raw`: a picture or sound as the codec wants it, where
    it wants another size or rate than the tower. `codes`: what is stored of a codec's. `before`: items of the sample
    that come before these. `chat`: the sample as a conversation, which mentions its pictures and sounds.
    """

    key: str
    image: UInt8[Tensor, "channels height width"] | None = None
    audio: Float[Tensor, " samples"] | None = None
    text: str | None = None
    words: Sample | None = None
    raw: Mapping[str, Tensor] = field(default_factory=dict)
    codes: Mapping[str, Int[Tensor, " t"]] = field(default_factory=dict)
    own: Mapping[str, Tensor] = field(default_factory=dict)
    before: "tuple[Example, ...]" = ()
    chat: ChatIds | None = None
    chat_cut: bool = False  # only its first tokens are read
    tiles: tuple[int, ...] = ()  # of each picture, as how many it is read; empty: each as one

    def item(self, name: str) -> Any:
        """Its item of this modality, or None."""
        return getattr(self, name) if name in MODALITIES else self.own.get(name)


def steps_of(sample: Sample) -> list[Sample]:
    """The parts of a document as samples, in the order of their numbers; those without one come first, together.

    A sample that is no document is its only step.
    """
    return [step for _, step in counted_steps(sample)]


def counted_steps(sample: Sample) -> list[tuple[int, Sample]]:
    """The same, each with its number; -1: the parts without one."""
    steps: dict[int, dict[str, bytes]] = {}
    for name, data in sample.parts.items():
        number, extension = numbered(name)
        steps.setdefault(number, {})[extension] = data
    if set(steps) <= {-1}:
        return [(-1, sample)]
    if any(modality_of(name) == "text" for name in sample.parts):
        steps.get(-1, {}).pop("json", None)  # its caption is a text only where there is no other
    where = {number: f"{sample.where}.{number}" if number >= 0 else sample.where for number in steps}
    return [(number, Sample(sample.key, steps[number], where[number])) for number in sorted(steps)]


def texts_of(sample: Sample) -> list[str]:
    """The texts of all steps, as `read_example` reads them where no field is named. Raises BadSample."""
    return [text for step in steps_of(sample) if (text := text_of(step)) is not None]


def joined(examples: Sequence[Example]) -> Example:
    """One sample of all these items. Its key and its words are those of the last one."""
    if len(examples) == 1:
        return examples[0]
    items = [item for example in examples for item in items_of(example)]
    last = {name: at for at, item in enumerate(items) for name in modality_names() if item.item(name) is not None}
    whole = replace(examples[-1], before=())
    for name, at in last.items():
        whole = _given(whole, name, items[at])
    return replace(whole, before=tuple(item for at, item in enumerate(items) if at not in last.values()))


def items_of(example: Example) -> Iterator[Example]:
    """Every item of an example as an example that holds nothing else, in order."""
    for one in (*example.before, example):
        for name in modality_names():
            if one.item(name) is not None:
                yield _given(Example(key=one.key), name, one)


def _given(example: Example, name: str, item: Example) -> Example:
    """The example with this item of another one, and what belongs to it."""
    raw, codes = ({k: v for k, v in found.items() if k != name} for found in (example.raw, example.codes))
    raw |= {name: item.raw[name]} if name in item.raw else {}
    codes |= {name: item.codes[name]} if name in item.codes else {}
    if name not in MODALITIES:
        return replace(example, own={**example.own, name: item.own[name]})
    return replace(example, **{name: item.item(name)}, raw=raw, codes=codes)


def own_draws(items: Items) -> Float[Tensor, "n k"] | None:
    """The draws of a sample's last item stay; those before it, which came with the same, get others made of them."""
    seeds = items.seeds()
    if seeds is None or items.draws is None:
        return None
    places = torch.arange(len(items.rows))
    after = torch.searchsorted(items.rows, items.rows, right=True) - 1 - places
    fresh = hash_uniform(splitmix64(seeds + after)[:, None] + torch.arange(items.draws.shape[1]), EARLIER)
    return torch.where(after[:, None] > 0, fresh, items.draws)
