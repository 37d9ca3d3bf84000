"""`mmfm show CONFIG`: the first batch of a run as a page, as a training step sees it: augmented, dropped and masked."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mmfm.config import Conformer, Contrastive, Generative, Run
from mmfm.config.task import parse_writing
from mmfm.data.augment import augment_frames, augment_images, hide_tokens
from mmfm.data.batch import Batch, Ids, Items
from mmfm.data.stream import TrainStream
from mmfm.data.stream_plan import Loaded
from mmfm.inference.media_files import encoded
from mmfm.inference.processing import Sound
from mmfm.models.conformer import AudioConformer
from mmfm.models.token_dropout import keep_mask
from mmfm.models.vit import normalise
from mmfm.objectives.task_pass import TARGET
from mmfm.objectives.task_rows import (
    BLIND,
    chosen_rows,
    item_places,
    masked_places,
    task_seeds,
)
from mmfm.preprocessing.chat import ChatIds, shown
from mmfm.preprocessing.tokenizer import Tokenizer
from mmfm.report.document import document, save_page
from mmfm.report.markup import Html, join, tag
from mmfm.runtime.randomness import splitmix64
from mmfm.training.initialize import prepare

HIDDEN = -1
STYLE = """
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 16px; padding: 0; }
.samples > li { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 14px 16px;
  list-style: none; }
.samples img { image-rendering: pixelated; min-height: 96px; max-width: 100%; display: block; margin: 6px 0; }
.samples audio { width: 100%; } .samples h3 { margin: 0; font-size: .92rem; overflow-wrap: anywhere; }
.tokens { font-family: ui-monospace, monospace; font-size: .8rem; line-height: 1.9; overflow-wrap: anywhere; }
.tokens span { border: 1px solid var(--rule); border-radius: 4px; padding: 1px 4px; margin-right: 2px; }
.tokens .masked { background: var(--quiet); color: var(--card); }
"""


def show(run: Run, html: str, samples: int = 16) -> Path:
    """Writes the page of the first `samples` samples of the first batch, and returns its path."""
    prepared = prepare(run)
    run = prepared.run
    stream = TrainStream(run, prepared.tokenizer, rank=0, world=1)
    first = stream.plan[0]
    if not isinstance(first, Loaded):
        assert isinstance(first, Exception)
        raise first
    return save_page(page(run, first.batch, prepared.tokenizer, samples), Path(html))


def page(run: Run, batch: Batch, tokenizer: Tokenizer, samples: int) -> Html:
    taking = {item.name: _rows(item, batch) for item in (*run.contrastive, *run.generative)}
    taking |= {item.name: set(_of(batch, item.modality)) for item in run.reconstruction}
    taking |= {item.name: set(_of(batch, item.modality)) for item in run.distil}
    if run.chat is not None:
        taking[run.chat.name] = set() if batch.chats is None else set(batch.chats.rows.tolist())
    pictures, sounds = _pictures(run, batch), _sounds(run, batch)
    texts = [*_texts(run, batch, tokenizer), *_chats(batch, tokenizer)]
    cards = []
    for row in range(min(samples, batch.size)):
        parts = [part for source in (pictures, sounds, texts) for at, part in source if at == row]
        goals = ", ".join(name for name, rows in taking.items() if row in rows) or "nothing"
        cards.append(
            tag(
                "li",
                tag("h3", batch.keys[row]),
                *parts,
                tag("p", f"taken by: {goals}", class_="quiet"),
                class_="sample",
            )
        )
    counts = (tag("li", f"{name}: {len(rows)} of {batch.size} samples") for name, rows in taking.items())
    header = tag("header", tag("p", "mmfm show", class_="kicker"), tag("h1", run.name))
    about = f"{batch.size} samples of the first step, seed {run.seed}; the first {len(cards)} are shown"
    main = tag("main", tag("p", about), tag("ul", *counts), tag("ol", *cards, class_="samples"))
    return document(f"{run.name}: first batch", header, main, more_style=STYLE, active=False)


def _rows(item: Contrastive | Generative, batch: Batch) -> set[int]:
    """The samples that an objective takes of this batch; one that cuts an item in two, those that hold one."""
    if isinstance(item, Contrastive):
        return set(_of(batch, item.pair[0])) & set(_of(batch, item.pair[1]))
    task = parse_writing(item.task)
    if not task.fill and task.target in task.sources:
        return set.intersection(*(set(_of(batch, name)) for name in task.sources))
    rows = chosen_rows(batch, task, item.sample_fraction)
    return set() if rows is None else set(rows.tolist())


def _of(batch: Batch, name: str) -> list[int]:
    return batch.items[name].rows.tolist() if name in batch.items else []


def _pictures(run: Run, batch: Batch) -> list[tuple[int, Html]]:
    """As the tower sees them, after augmentation."""
    items = batch.items.get("image")
    if items is None:
        return []
    x = normalise(items.x, torch.float32)
    x = x if items.draws is None else augment_images(x, items.draws, run.data.augment)
    pixels = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [(row, _picture(one)) for row, one in zip(items.rows.tolist(), pixels, strict=True)]


def _picture(pixels: Tensor) -> Html:
    """[channels, height, width] or [height, width] of bytes."""
    array = (pixels if pixels.ndim == 2 else pixels.permute(1, 2, 0).squeeze(2)).contiguous().numpy()
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return tag("img", src=_uri("image/png", out.getvalue()), alt=f"{array.shape[1]} by {array.shape[0]} pixels")


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _sounds(run: Run, batch: Batch) -> list[tuple[int, Html]]:
    """The sound as it was read, and its frames as the tower sees them."""
    items, tower = batch.items.get("audio"), run.model.audio
    if items is None:
        return []
    contract = tower or run.model.audio_codec
    assert contract is not None and contract.sound is not None
    found = []
    for at, row in enumerate(items.rows.tolist()):
        data = encoded(Sound(items.x[at][items.keep[at]].float(), contract.sound.rate_hz))
        found.append((row, tag("audio", src=_uri("audio/wav", data), controls=True, preload="none")))
    if isinstance(tower, Conformer):
        found += _frames(tower, items, run)
    return found


def _frames(tower: Conformer, items: Items, run: Run) -> list[tuple[int, Html]]:
    frames = AudioConformer(tower).mel(items.x.float(), items.keep)
    frames = frames if items.draws is None else augment_frames(frames, items.draws, run.data.augment)
    found = []
    for row, x, keep in zip(items.rows.tolist(), *frames, strict=True):
        real = x[keep].T.flip(0)  # low frequencies at the bottom
        low, high = float(real.min()), float(real.max())
        grey = (real - low) * (255 / max(high - low, 1e-6))
        found.append((row, _picture(grey.round().to(torch.uint8))))
    return found


def _texts(run: Run, batch: Batch, tokenizer: Tokenizer) -> Iterator[tuple[int, Html]]:
    """Of each text: itself, what a tower reads of it, and its tokens as each kind of objective is given them."""
    items = batch.items.get("text")
    if items is None:
        return
    for row, text in enumerate(batch.texts):
        if text is not None:
            yield row, tag("p", text)
    written = items.written or Ids(items.x, items.keep)
    augment = run.data.augment
    if run.model.text is not None and items.written is None:
        hidden = _hidden(items, items.x, augment.source_token_dropout, 0)
        yield from _tokens("read", items, items.x, items.keep, hidden, tokenizer)
    for item in run.generative:
        task = parse_writing(item.task)
        rows = chosen_rows(batch, task, item.sample_fraction)
        if task.target == "text" and rows is not None:
            index = item_places(items, rows, 1)
            own, ids, keep = items.take(index), written.ids[index], written.keep[index]
            hidden = _hidden(own, ids, augment.target_token_dropout, TARGET)
            if task.fill:
                hidden = masked_places(keep, task_seeds(batch, task, rows), item)
            elif item.target_dropout and (seeds := own.seeds()) is not None:
                hidden |= ~keep_mask(splitmix64(seeds + BLIND), keep, item.target_dropout)
            yield from _tokens(f"written by {task}", own, ids, keep, hidden, tokenizer)


def _chats(batch: Batch, tokenizer: Tokenizer) -> Iterator[tuple[int, Html]]:
    """Each conversation, what is learned of it dark."""
    if batch.chats is None:
        return
    chats = batch.chats
    for at, row in enumerate(chats.rows.tolist()):
        ids, learn, turns = (x[at][chats.keep[at]].tolist() for x in (chats.ids, chats.learn, chats.turns))
        pieces = (
            tag("span", repr(text)[1:-1], class_="masked" if learned else None)
            for text, learned in shown(ChatIds(ids, learn, turns), tokenizer)
        )
        yield row, tag("p", tag("b", "conversation "), join(pieces), class_="tokens")


def _hidden(items: Items, ids: Tensor, chance: float, salt: int) -> Tensor:
    """True where a token is not seen, though it may be asked for."""
    if items.draws is None or not chance:
        return torch.zeros_like(ids, dtype=torch.bool)
    return hide_tokens(ids, items.draws, chance, HIDDEN, salt=salt) == HIDDEN


def _tokens(
    name: str, items: Items, ids: Tensor, keep: Tensor, hidden: Tensor, tokenizer: Tokenizer
) -> Iterator[tuple[int, Html]]:
    """The tokens of each text as pieces with their ids; those that are hidden are dark."""
    for at, row in enumerate(items.rows.tolist()):
        own = list(zip(ids[at][keep[at]].tolist(), hidden[at][keep[at]].tolist(), strict=True))
        pieces = (
            tag("span", repr(tokenizer.decode([token]))[1:-1], title=f"id {token}", class_="masked" if dark else None)
            for token, dark in own
        )
        numbers = " ".join(str(token) for token, _ in own)
        yield row, tag("p", tag("b", f"{name} "), join(pieces), tag("span", numbers, class_="quiet"), class_="tokens")
