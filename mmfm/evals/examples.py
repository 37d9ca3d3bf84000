"""What a person looks at: some retrievals, writings, drawings and sayings of each task, hits and misses, to be seen and
heard.

The choice is deterministic: half misses, half hits, each spread evenly over the split; where there are too few of one,
more of the other. Pictures are the sample's own bytes, or a smaller JPEG where these are large; sounds are what the
model hears, as WAV, their first seconds.
"""

import base64
import io
import wave
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from mmfm.config import ImagePreprocess
from mmfm.config.task import parse, parse_chain
from mmfm.data.decode import Decode, contracts_of, read_example
from mmfm.data.sample import last_part
from mmfm.evals.generation import Generated, Generator, target_of
from mmfm.evals.records import Generation, Item, Match, Retrieval, Writing
from mmfm.evals.retrieval import EmbeddingSet, Retrieved
from mmfm.evals.split import Evaluable, Split, Written, spread
from mmfm.evals.writing import correct, reference
from mmfm.inference.interface import Made, Sound
from mmfm.preprocessing.image import decode_image, resize

SHOWN = 12  # of each task
ANSWERS, SOUNDS = 5, 3  # sounds weigh most
PICTURE_BYTES = 64_000
PICTURE_PX = 320
SOUND_SECONDS = 4.0


def pick(good: Bool[np.ndarray, " n"], count: int) -> list[int]:
    """At most `count` places, in rising order."""
    right, wrong = np.flatnonzero(good), np.flatnonzero(~good)
    misses = min(len(wrong), max(count // 2, count - len(right)))
    groups = ((wrong, misses), (right, min(len(right), count - misses)))
    return sorted(int(group[place]) for group, most in groups for place in spread(len(group), most))


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The items of one split, ready to be shown. Each picture and sound is made once."""

    split: Split
    model: Evaluable
    decode: Decode
    made: dict[tuple[str, int], str] = field(default_factory=dict)

    def retrievals(self, found: Retrieved) -> list[Retrieval]:
        """The queries that were picked, each with its best answers."""
        places = np.array(pick(found.found.above + found.found.tied - found.found.right == 0, SHOWN), int)
        if len(places) == 0:
            return []
        scores, relevant = found.similarity(places), found.relevant(places)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : SOUNDS if found.gallery.modality == "audio" else ANSWERS]
        return [
            Retrieval(
                task=found.task,
                query=self.item(found.query, int(found.asked[place])),
                matches=tuple(
                    Match(item=self.item(found.gallery, at), score=float(scores[row, at]), hit=bool(relevant[row, at]))
                    for at in best[row].tolist()
                ),
            )
            for row, place in enumerate(places)
        ]

    def writings(self, task: str) -> list[Writing]:
        items = self.split.written[task]
        good = correct(self.split, items)
        return [
            Writing(
                task=task,
                source=self.prompted(parse(task).sources[0], items[place]),
                reference=reference(self.split, items[place]),
                written=items[place].text,
                correct=bool(good[place]),
            )
            for place in pick(good, SHOWN)
        ]

    def prompted(self, modality: str, item: Written) -> Item:
        """What a text was written of; a question stands in the place of the caption, which would be the answer."""
        shown = self.sample(modality, item.row)
        return shown if item.prompt is None else replace(shown, caption=item.prompt)

    def generations(self, task: str, generated: Generated) -> list[Generation]:
        """The products that were picked, each with what it was made of, what was read in it, and the sample's own."""
        products, modality, model = generated.products[task], target_of(task), self.model
        assert isinstance(model, Generator)
        good = np.array([generated.right(task, product) is not False for product in products], bool)
        shown = []
        for product in (products[place] for place in pick(good, SHOWN)):
            made, row = model.decode(modality, product.ids, product.start), product.row
            own, sources = generated.own.get(modality, {}).get(row), dict.fromkeys(parse_chain(task)[0].sources)
            info, caption = self.split.infos[row], generated.expected[row] or ""
            alone = modality in set(info.modalities) - set(sources)
            shown.append(
                Generation(
                    task=task,
                    sources=tuple(self.sample(name, row) for name in sources),
                    made=Item(modality=modality, key=info.key, caption=caption, src=made_uri(made)),
                    start=made.start / made.rate_hz if isinstance(made, Sound) else 0.0,
                    read=product.read,
                    correct=generated.right(task, product),
                    own=self.sample(modality, row) if alone else None,
                    own_read={} if own is None else own.real,
                )
            )
        return shown

    def item(self, side: EmbeddingSet, place: int) -> Item:
        row = int(side.rows[place])
        if side.modality == "text":
            return Item(modality="text", caption=side.names[place])
        return self.sample(side.modality, row)

    def sample(self, modality: str, row: int) -> Item:
        if (modality, row) not in self.made:
            self.made[modality, row] = self.source(modality, row)
        info, src = self.split.infos[row], self.made[modality, row]
        return Item(modality=modality, key=info.key, caption=info.text or "", src=src)

    def source(self, modality: str, row: int) -> str:
        """A data: URI; empty for text, and for modalities of one's own."""
        sample = self.split.sample(row)
        if modality == "image":
            part = last_part(sample, "image")
            assert part is not None
            return picture_uri(*part)
        if modality == "audio" and (contracts := contracts_of(self.model.config, modality)):
            heard = read_example(sample, self.model.config, self.decode, wanted=("audio",)).audio
            assert heard is not None and not isinstance(contracts[0], ImagePreprocess)
            return sound_uri(heard, contracts[0].rate_hz)
        return ""


def picture_uri(kind: str, data: bytes) -> str:
    """The bytes as they are if they are few; else a JPEG of the same proportions, PICTURE_PX on its longer side."""
    if len(data) <= PICTURE_BYTES:
        return data_uri(f"image/{'jpeg' if kind == 'jpg' else kind}", data)
    image = decode_image(data)
    factor = min(1.0, PICTURE_PX / max(image.shape[1:]))
    small = resize(image, max(1, round(image.shape[1] * factor)), max(1, round(image.shape[2] * factor)))
    out = io.BytesIO()
    Image.fromarray(small.permute(1, 2, 0).numpy()).save(out, "JPEG", quality=85)
    return data_uri("image/jpeg", out.getvalue())


def made_uri(made: Made) -> str:
    """A data: URI of what a model drew or said; empty for a text."""
    if isinstance(made, Sound):
        return sound_uri(made.wave, made.rate_hz)
    if isinstance(made, str):
        return ""
    out = io.BytesIO()
    made.save(out, "PNG")
    return picture_uri("png", out.getvalue())


def sound_uri(samples: Float[Tensor, " samples"], rate_hz: int) -> str:
    """16-bit WAV of the first SOUND_SECONDS."""
    whole = (samples[: int(SOUND_SECONDS * rate_hz)].clamp(-1, 1) * 32_767).round().to(torch.int16)
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(whole.numpy().astype("<i2").tobytes())
    return data_uri("audio/wav", out.getvalue())


def data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def show(
    split: Split, model: Evaluable, retrieved: Sequence[Retrieved], decode: Decode, generated: Generated
) -> dict[str, Any]:
    """The retrievals, writings, drawings and sayings of all tasks, as the details hold them."""
    gallery = Gallery(split=split, model=model, decode=decode)
    return {
        "retrievals": [shown for found in retrieved for shown in gallery.retrievals(found)],
        "writings": [shown for task in split.written for shown in gallery.writings(task)],
        "generations": [shown for task in generated.products for shown in gallery.generations(task, generated)],
    }
