"""One sample decoded, and several of them as a batch: what training, evaluation and `mmfm generate` all read by."""

import hashlib
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmfm import config
from mmfm.config import MODALITIES, modality_names
from mmfm.data.augment import DRAWS
from mmfm.data.batch import NO_TEXT, Batch, Ids, Items, Raw, seeds_of
from mmfm.data.codes import stored_codes
from mmfm.data.conversations import conversations_of
from mmfm.data.documents import Example, joined, own_draws, steps_of
from mmfm.data.index import MODALITY, numbered
from mmfm.data.sample import Sample, text_of
from mmfm.data.vocabulary import CodeFormat
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.audio import decode_audio
from mmfm.preprocessing.image import picture
from mmfm.preprocessing.tiles import tiled
from mmfm.preprocessing.tokenizer import Tokenizer

OF_ITEMS = len(MODALITIES) * DRAWS  # a position's draws: first those of its items, then these two
TEXT_DRAW, CROP_DRAW = OF_ITEMS, OF_ITEMS + 1
WORDS = ("txt", "json", "cls")


@dataclass(frozen=True, kw_only=True)
class Decode:
    """How bytes become tensors. See config.Data, which says the same."""

    max_seconds: float = 30.0
    crop_seconds: float = 0.0
    exact: bool = False
    crop: float = 0.0  # of pictures, in training
    mirror: bool = False
    codes: tuple[str, ...] = ()  # modalities whose stored codes are read, and not made anew by the codec
    tiles: int = 0  # of pictures, as Model.tiles, where they are those of conversations

    @property
    def random(self) -> bool:
        return self.crop_seconds > 0 or self.crop > 0 or self.mirror


def decode_of(data: config.Data) -> Decode:
    return Decode(
        max_seconds=data.max_seconds,
        crop_seconds=data.crop_seconds,
        exact=data.exact_decode,
        crop=data.augment.crop,
        mirror=data.augment.horizontal_flip,
    )


def read_example(
    sample: Sample,
    model: config.Model,
    decode: Decode,
    wanted: Collection[str] | None = None,
    draws: Float[np.ndarray, " k"] | None = None,
) -> Example:
    """The modalities of `wanted` that `sample` has and `model` reads. Raises BadSample, naming shard and key.

    `draws`, of one position, choose the part of a picture and of a long clip; without them it is the middle. Of a
    document all items are read.
    """
    wanted = modality_names() if wanted is None else wanted
    steps = [_step(step, model, decode, wanted, draws) for step in steps_of(sample)]
    whole = joined([one for some in steps for one in some])
    if decode.tiles:
        counts = (sum(one.image is not None for one in some) for some in steps)
        whole = replace(whole, tiles=tuple(count for count in counts if count))
    words = {name: data for name, data in sample.parts.items() if numbered(name)[1] in WORDS}
    return replace(whole, words=Sample(sample.key, words, sample.where))


def _step(
    sample: Sample, model: config.Model, decode: Decode, wanted: Collection[str], draws: Float[np.ndarray, " k"] | None
) -> list[Example]:
    """A sample without counted parts; its picture's tiles are pictures behind it."""
    named = {MODALITY[name]: data for name, data in sample.parts.items() if name in MODALITY}
    values: dict[str, Tensor] = {}
    raw: dict[str, Tensor] = {}
    tiles: list[Tensor] = []
    try:
        for name in ("image", "audio"):
            if name not in named or name not in wanted or not (contracts := contracts_of(model, name)):
                continue
            if name == "image" and decode.tiles:
                assert isinstance(contracts[0], config.ImagePreprocess)
                values[name], *tiles = tiled(named[name], decode.tiles, **shape_of(contracts[0]))
                continue
            values[name], *others = [decode_part(named[name], contract, decode, draws) for contract in contracts]
            raw |= dict(zip([name], others, strict=False))
        own = {name: part.decode(named[name]) for name, part in model.own.items() if name in named and name in wanted}
        codes = {name: _codes(sample, model, name) for name in decode.codes if name in values}
    except BadSample as why:
        raise BadSample(why.code, f"{sample.where}: {why}") from None
    text = text_of(sample) if "text" in wanted else None
    image, audio = values.get("image"), values.get("audio")
    first = Example(key=sample.key, image=image, audio=audio, text=text, raw=raw, codes=codes, own=own)
    return [first, *(Example(key=sample.key, image=tile) for tile in tiles)]


def _codes(sample: Sample, model: config.Model, name: str) -> Int[Tensor, " t"]:
    """Those that `mmfm data encode` has stored."""
    codec = model.codecs[name]
    found = stored_codes(sample, name, CodeFormat(codec.sizes, codec.length))
    if found is None:
        raise BadSample("codes_missing", f"{sample.where} has no stored codes of its {name}; encode the shards again")
    return found


def contracts_of(model: config.Model, name: str) -> list[config.ImagePreprocess | config.AudioPreprocess]:
    """What the tower expects of a picture or sound, and then the codec, where it expects something else."""
    tower, codec = getattr(model, name), model.codecs.get(name)
    field = {"image": "pixels", "audio": "sound"}[name]
    asked = [getattr(part, field) for part in (tower, codec) if part is not None]
    return asked[:1] if len(asked) == 2 and _alike(*asked) else asked


def _alike(
    tower: config.ImagePreprocess | config.AudioPreprocess, codec: config.ImagePreprocess | config.AudioPreprocess
) -> bool:
    """Whether one decoding serves both; how a tower normalises is its own matter."""
    if isinstance(tower, config.ImagePreprocess) and isinstance(codec, config.ImagePreprocess):
        return shape_of(tower) == shape_of(codec)
    assert isinstance(tower, config.AudioPreprocess) and isinstance(codec, config.AudioPreprocess)
    return tower.rate_hz == codec.rate_hz


def decode_part(
    data: bytes,
    contract: config.ImagePreprocess | config.AudioPreprocess,
    decode: Decode,
    draws: Float[np.ndarray, " k"] | None = None,
) -> Tensor:
    """A picture or sound as a tower or codec wants it. Raises BadSample."""
    if isinstance(contract, config.ImagePreprocess):
        crop = {} if draws is None else {"draws": draws[:DRAWS], "crop": decode.crop, "mirror": decode.mirror}
        return picture(data, **shape_of(contract), exact=decode.exact, **crop)
    return decode_audio(
        data,
        rate_hz=contract.rate_hz,
        max_seconds=decode.max_seconds,
        crop_seconds=decode.crop_seconds,
        where=None if draws is None else float(draws[CROP_DRAW]),
    )


def shape_of(how: config.ImagePreprocess) -> dict[str, Any]:
    """What `picture` is told of a tower's contract; its mean and deviation are the tower's own matter."""
    return {name: value for name, value in vars(how).items() if name not in ("mean", "std")}


def collate(
    examples: Sequence[Example], tokenizer: Tokenizer, draws: Float[Tensor, "n modalities k"] | None = None
) -> Batch:
    """Items in the order of `examples`, padded at the end to the longest. `draws` has a row for each of MODALITIES."""
    items, truncated = {}, set[int]()
    chains = [(row, one) for row, example in enumerate(examples) for one in (*example.before, example)]
    for at, name in enumerate(modality_names()):
        held = [(row, one) for row, one in chains if one.item(name) is not None]
        if not held:
            continue
        values = [one.item(name) for _, one in held]
        index, written, raw, cut = torch.tensor([row for row, _ in held]), None, None, None
        if name == "text":
            texts = list(map(tokenizer.held, values))
            x, keep = _ids([text.read for text in texts])
            if tokenizer.reader is not None or any(len(text.read) < len(text.written) for text in texts):
                written = Ids(*_ids([text.written for text in texts]))
            if any(text.written_cut for text in texts):
                cut = torch.tensor([text.written_cut for text in texts])
            both = zip(held, texts, strict=True)
            truncated = {row for (row, _), text in both if text.read_cut or text.written_cut}
        else:
            join = _images if name != "audio" and len({value.shape for value in values}) == 1 else _padded
            x, keep = join(values)
            if others := [one.raw[name] for _, one in held if name in one.raw]:
                raw = Raw(*join(others))
            if stored := [one.codes[name] for _, one in held if name in one.codes]:
                written = Ids(*_padded(stored))
        mine = None if draws is None else _draws(draws[index], at)
        found = Items(x=x, keep=keep, rows=index, draws=mine, written=written, raw=raw, cut=cut)
        items[name] = replace(found, draws=own_draws(found)) if len(chains) > len(examples) else found
    texts = tuple(example.text for example in examples)
    truncated |= {row for row, example in enumerate(examples) if example.chat_cut}
    same = torch.tensor([text_hash(text) for text in texts], dtype=torch.int64)
    known = {"keys": tuple(e.key for e in examples), "texts": texts, "truncated": tuple(sorted(truncated))}
    talks = [(row, example.chat) for row, example in enumerate(examples) if example.chat is not None]
    chats = conversations_of(talks, None if draws is None else seeds_of(draws.flatten(1)))
    return Batch(size=len(examples), items=items, positive_ids=same, chats=chats, **known)


def _draws(draws: Float[Tensor, "n modalities k"], at: int) -> Float[Tensor, "n k"]:
    """Those of the modality at this place; those of one's own get the first one's, in another order."""
    return draws[:, at] if at < draws.shape[1] else draws[:, 0].roll(at, dims=1)


def require_short(example: Example, tokenizer: Tokenizer, where: str) -> None:
    """BadSample where a text is too long and such samples are to be skipped (`Data.long_text`)."""
    if not tokenizer.limits.skip:
        return
    for one in (*example.before, example):
        if one.text is not None and (told := tokenizer.excess(one.text)):
            raise BadSample("text_too_long", f"{where}: {told}, or set data.long_text='truncate'")


def text_hash(text: str | None) -> int:
    """63 bits, equal for equal texts; NO_TEXT for none."""
    if text is None:
        return NO_TEXT
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little") >> 1


def padded(values: Sequence[Tensor], device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
    """Pictures, or sounds of several lengths, as a codec takes them: x and keep."""
    x, keep = (_images if values[0].ndim > 1 else _padded)(list(values))
    return x.to(device), keep.to(device)


def _images(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    return torch.stack(values), torch.ones(len(values), 1, dtype=torch.bool)


def _padded(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Zeros after the end of each."""
    lengths = torch.tensor([len(value) for value in values])
    keep = torch.arange(int(lengths.max())) < lengths[:, None]
    return torch.nn.utils.rnn.pad_sequence(values, batch_first=True), keep


def _ids(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Zeros after the end of each; all at once, as a tensor of each text's own takes longer than its tokens."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    keep = np.arange(lengths.max()) < lengths[:, None]
    x = np.zeros(keep.shape, np.int64)
    x[keep] = np.fromiter(itertools.chain.from_iterable(rows), np.int64, lengths.sum())
    return torch.from_numpy(x), torch.from_numpy(keep)
