"""Texts, pictures and sounds as people hold them, to what a model reads: one way, for encode, generate and bundles."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor

from mmfm.config import AudioPreprocess, Data, ImagePreprocess, Run, UserError, require
from mmfm.data.batch import Batch, Items
from mmfm.data.decode import Example, collate, contracts_of, shape_of
from mmfm.inference.processing import WORDS, Sound, Things
from mmfm.preprocessing.audio import load_audio
from mmfm.preprocessing.image import load_picture, of_given
from mmfm.preprocessing.tiles import tiled
from mmfm.preprocessing.tokenizer import Tokenizer
from mmfm.preprocessing.validation import (
    check_ids,
    check_pixels,
    check_waves,
    clip_given,
    one_or_many,
    padded,
    picture_given,
    texts_given,
)


def read_thing(contract: ImagePreprocess | AudioPreprocess, thing: Any, data: Data) -> Tensor:
    """A picture or sound as this contract wants it, cut and decoded as `data` says. UserError for what is neither."""
    if isinstance(thing, Tensor) and thing.dtype == torch.uint8:
        return thing  # a tile, as it is read
    if isinstance(contract, ImagePreprocess):
        return load_picture(picture_given(thing), **shape_of(contract), exact=data.exact_decode)
    length = {"rate_hz": contract.rate_hz, "max_seconds": data.max_seconds, "crop_seconds": data.crop_seconds}
    if isinstance(thing, str | Path | bytes):
        return load_audio(thing, **length)
    wave, from_hz = (thing.wave, thing.rate_hz) if isinstance(thing, Sound) else (thing, contract.rate_hz)
    return clip_given(wave, from_hz=from_hz, **length)


class Processor:
    """Of the run of a model, which says what its towers and codecs expect. UserError for what cannot be read."""

    def __init__(self, run: Run, tokenizer: Tokenizer) -> None:
        self.run, self.tokenizer = run, tokenizer

    def transform(self, picture: Any) -> Tensor:
        """A picture as uint8 [channels, height, width] of the model's size; the model itself normalizes."""
        return self._read(self._tower("image").pixels, picture)

    def tiles(self, picture: Any) -> list[Tensor]:
        """A picture as `transform` gives it, and then its parts (`Model.tiles`)."""
        how = shape_of(self._tower("image").pixels)
        return of_given(picture_given(picture), lambda data: tiled(data, self.run.model.tiles, **how))

    def tokenize(self, texts: Any) -> Int[Tensor, "n time"]:
        """Ids as the text tower reads them, padded with -1 to the longest.

        A text longer than is read (`mmfm.preprocessing.text_limits`) is cut there, with a warning; a UserError where
        the run says data.long_text="skip".
        """
        rows = texts_given(texts)
        told = next((told for text in rows if (told := self.tokenizer.excess(text))), "")
        require(not (told and self.tokenizer.limits.skip), f"{told}, or set data.long_text='truncate'")
        if told:
            warnings.warn(f"only the beginning of a long text is read: {told}", stacklevel=4)
        return self.tokenizer(rows)

    def items(self, modality: str, inputs: Any, keep: Bool[Tensor, "n time"] | None = None) -> Items:
        """What a tower reads of one input or of several.

        image: paths, Pillow's pictures, uint8 arrays [height, width(, channels)], or a Tensor uint8 [n, channels,
        height, width] of `transform`. audio: paths, `Sound`s, waveforms [samples] at the tower's rate, or a Tensor of
        them with `keep`. text: strings, or a Tensor of `tokenize`.
        """
        self._tower(modality)
        require(keep is None or modality == "audio", "keep is of sounds: of other inputs it is known what is real")
        if modality == "audio":
            x, kept = self._waves(inputs, keep)
        else:
            x, kept = self._pixels(inputs) if modality == "image" else self._ids(inputs)
        return Items(x=x, keep=kept, rows=torch.arange(len(x), device=x.device))

    def _pixels(self, images: Any) -> tuple[Tensor, Tensor]:
        contract = self._tower("image").pixels
        if not isinstance(images, Tensor):
            given = one_or_many(images, (str, Path, bytes, Image.Image))
            made = [one if isinstance(one, Tensor) else self.transform(one) for one in given]
            empty = torch.zeros(0, contract.channels, contract.height_px, contract.width_px)
            images = torch.stack(made) if made else empty
        x = check_pixels(images, contract)
        return x, torch.ones(len(x), 1, dtype=torch.bool, device=x.device)

    def _waves(self, sounds: Any, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        if isinstance(sounds, Tensor):
            return check_waves(sounds, keep)
        require(keep is None, "keep is given with a tensor only: of other inputs the lengths are known")
        contract = self._tower("audio").sound
        return padded([self._read(contract, one) for one in one_or_many(sounds, (str, Path, bytes, Sound))])

    def _ids(self, texts: Any) -> tuple[Tensor, Tensor]:
        reader = self.tokenizer.reader
        known = self.tokenizer.size if reader is None else reader.inner.get_vocab_size(with_added_tokens=True)
        ids = check_ids(texts, known) if isinstance(texts, Tensor) else self.tokenize(texts)
        return ids.clamp(min=0), ids >= 0

    def _tower(self, modality: str) -> Any:
        towers = self.run.model.towers
        if modality not in towers:
            raise UserError(f"this model has no {modality} tower; it reads {', '.join(towers)}")
        return towers[modality]

    def _read(self, contract: ImagePreprocess | AudioPreprocess, thing: Any) -> Tensor:
        return read_thing(contract, thing, self.run.data)

    def batch(self, samples: Sequence[Things]) -> Batch:
        """A batch of these samples, which may hold several things of a modality, for towers and codecs alike. What is
        given twice is read once. UserError where only the beginning of a text would be read."""
        owners, examples, loaded = [], [], {}
        for row, things in enumerate(samples):
            for text in things.get("text", ()):
                told = self.tokenizer.excess(text)
                require(not told, told)
            for at in range(max((len(given) for given in things.values()), default=0)):
                owners.append(row)
                item = {name: given[at] for name, given in things.items() if at < len(given)}
                examples.append(self._example(item, loaded))
        nothing = torch.full((len(samples),), -1)
        if not examples:
            return Batch(size=len(samples), items={}, positive_ids=nothing)
        batch, index = collate(examples, self.tokenizer), torch.tensor(owners)
        items = {name: replace(given, rows=index[given.rows]) for name, given in batch.items.items()}
        return Batch(size=len(samples), items=items, positive_ids=nothing)

    def _example(self, things: Mapping[str, Any], loaded: dict[tuple[str, int], list[Tensor]]) -> Example:
        values, raw = {}, {}
        for name in ("image", "audio"):
            if name in things:
                key = name, id(things[name])
                if key not in loaded:
                    contracts = contracts_of(self.run.model, name)
                    told = f"this model has neither a tower nor a codec for {name}; leave the {WORDS[name]} out"
                    require(bool(contracts), told)
                    loaded[key] = [self._read(contract, things[name]) for contract in contracts]
                values[name], *others = loaded[key]
                raw |= dict(zip([name], others, strict=False))
        return Example(key="given", text=things.get("text"), raw=raw, **values)
