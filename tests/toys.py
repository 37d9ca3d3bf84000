"""Small models and batches that several tests share."""

from dataclasses import replace

import torch
from torch import Tensor

from mmfm.config import Conformer, Contrastive, Generative, Mel, Model, Run, TextTower, Trunk, Vit
from mmfm.data.augment import DRAWS
from mmfm.data.batch import NO_TEXT, Batch, Conversations, Items
from mmfm.data.conversations import conversations_of
from mmfm.models.model import UnifiedModel, build
from mmfm.preprocessing.chat import ChatIds

TEXT_IDS = 20
PAIRS = (
    Contrastive(pair=("image", "text")),
    Contrastive(pair=("audio", "text"), loss="sigmoid"),
    Contrastive(pair=("image", "audio"), weight=0.5),  # of samples that may have no text to be the same
)
WRITES = (Generative(task="image>text"), Generative(task="audio>text", weight=0.5), Generative(task=">text"))


def toy_config(**changes: object) -> Model:
    parts = {
        "image": Vit(height_px=8, width_px=16, patch_px=4, channels=1, stem="conv", width=16, depth=1, heads=2),
        "audio": Conformer(mel=Mel(bins=16), width=16, depth=1, heads=2, kernel=5),
        "text": TextTower(width=16, depth=1, heads=2),
        "trunk": Trunk(width=16, depth=2, heads=4, kv_heads=2),
        "embed_dim": 8,
    }
    return Model(**(parts | changes))


def toy_model(seed: int = 0, contrast: tuple[Contrastive, ...] = PAIRS, **changes: object) -> UnifiedModel:
    """In float64, with every parameter away from its neutral start, so that nothing hides behind a zero or a one."""
    torch.manual_seed(seed)
    model = build(toy_config(**changes), TEXT_IDS, contrast).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "scales" not in name and parameter.is_floating_point():
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def toy_run(**changes: object) -> Run:
    parts = {"name": "toy", "model": toy_config(), "contrastive": PAIRS, "generative": WRITES}
    return Run(**(parts | changes))


def toy_batch(size: int = 6, seed: int = 0, repeats: bool = False) -> Batch:
    """Rows 0, 3, .. have an image and a text; 1, 4, .. a sound and a text; 2, 5, .. all three; the last has no text."""
    draw = torch.Generator().manual_seed(seed)
    image = torch.tensor([row for row in range(size) if row % 3 != 1])
    audio = torch.tensor([row for row in range(size) if row % 3 != 0])
    text = torch.arange(size - 1)
    waves = torch.randn(len(audio), 2_400, generator=draw, dtype=torch.float64)
    same = torch.arange(size) // 2 if repeats else torch.arange(size)
    lengths = 1 + torch.randint(0, 5, (len(text),), generator=draw)
    lengths[0] = 5
    items = {
        "image": Items(
            x=torch.randint(0, 256, (len(image), 1, 8, 16), generator=draw, dtype=torch.uint8),
            keep=torch.ones(len(image), 1, dtype=torch.bool),
            rows=image,
        ),
        "audio": padded(waves, 2_400 - 311 * torch.arange(len(audio)) % 1_500, audio),
        "text": padded(torch.randint(0, TEXT_IDS, (len(text), 5), generator=draw), lengths, text),
    }
    return Batch(size=size, items=items, positive_ids=torch.where(torch.arange(size) < size - 1, same, -1))


def random_batch(size: int, seed: int, texts: int = 3) -> Batch:
    """Any mixture: each row has each modality or lacks it, some have none; texts are of `texts` kinds, so that they
    repeat, and about half of the rows have none. Every item carries draws."""
    draw = torch.Generator().manual_seed(seed)
    held = {name: (torch.rand(size, generator=draw) < 0.6).nonzero()[:, 0] for name in ("image", "audio", "text")}
    kinds = torch.randint(0, texts, (size,), generator=draw)
    words = torch.randint(0, TEXT_IDS, (texts, 5), generator=draw)
    lengths = 1 + torch.randint(0, 5, (texts,), generator=draw)
    waves = torch.randn(size, 2_400, generator=draw, dtype=torch.float64)
    pixels = torch.randint(0, 256, (size, 1, 8, 16), generator=draw, dtype=torch.uint8)
    of_text = kinds[held["text"]]
    items = {
        "image": Items(x=pixels, keep=torch.ones(size, 1, dtype=torch.bool), rows=torch.arange(size)),
        "audio": padded(waves, 2_400 - 311 * torch.arange(size) % 1_500, torch.arange(size)),
    }
    items = {name: item.take(held[name]) for name, item in items.items() if len(held[name])}
    if len(of_text):
        items["text"] = padded(words[of_text], lengths[of_text], held["text"])
    numbers = torch.rand(size, 3, DRAWS, generator=draw)
    drawn = {name: replace(item, draws=numbers[item.rows, i]) for i, (name, item) in enumerate(items.items())}
    same = torch.full((size,), NO_TEXT).index_copy(0, held["text"], of_text)
    return Batch(size=size, items=drawn, positive_ids=same)


def toy_chats(batch: Batch, seed: int = 0) -> Batch:
    """The batch with a conversation for each sample but the last: of two turns, with the pictures and sounds that the
    sample has between the words of its questions."""
    draw = torch.Generator().manual_seed(seed)
    parts = [(name, -1 - at) for at, name in enumerate(("image", "audio")) if name in batch.items]
    talks = []
    for row in range(batch.size - 1):
        chat = ChatIds([], [], [])
        marks = [mark for name, mark in parts for _ in range(int((batch.items[name].rows == row).sum()))]
        for turn in range(4):
            count = 1 + int(torch.randint(0, 4, (1,), generator=draw))
            words = torch.randint(0, TEXT_IDS, (count,), generator=draw).tolist()
            if turn in (0, 2):
                words[1:1] = marks if turn == 0 and row % 2 else []
                words += marks if turn == 2 and not row % 2 else []
            else:
                words.append(-3)
            chat.ids.extend(words)
            chat.learn.extend([turn in (1, 3)] * len(words))
            chat.turns.extend([turn] * len(words))
        talks.append((row, chat))
    seeds = torch.randint(0, 2**40, (batch.size,), generator=draw)
    return replace(batch, chats=conversations_of(talks, seeds))


def padded(x: Tensor, lengths: Tensor, rows: Tensor) -> Items:
    """Items with padding that is not zero, since nothing may depend on it being so."""
    keep = torch.arange(x.shape[1]) < lengths[:, None]
    return Items(x=x, keep=keep, rows=rows)


def pick(batch: Batch, rows: list[int]) -> Batch:
    """The batch of these samples alone, in this order; a modality that none of them has is gone."""
    items = {}
    for name, item in batch.items.items():
        place = {row: i for i, row in enumerate(item.rows.tolist())}
        chosen = [place[row] for row in rows if row in place]
        if not chosen:
            continue
        new_rows = torch.tensor([i for i, row in enumerate(rows) if row in place])
        keep = item.keep[chosen]
        longest = int(keep.sum(1).max())
        x = item.x[chosen]
        draws = None if item.draws is None else item.draws[chosen]
        x = x if name == "image" else x[:, :longest]
        items[name] = Items(x=x, keep=keep[:, :longest], rows=new_rows, draws=draws)
    return Batch(size=len(rows), items=items, positive_ids=batch.positive_ids[rows], chats=_pick_chats(batch, rows))


def _pick_chats(batch: Batch, rows: list[int]) -> Conversations | None:
    if batch.chats is None:
        return None
    place = {row: at for at, row in enumerate(batch.chats.rows.tolist())}
    index = [place[row] for row in rows if row in place]
    at = torch.tensor([number for number, row in enumerate(rows) if row in place])
    held = {name: value[index] for name, value in vars(batch.chats).items() if name != "rows" and value is not None}
    return Conversations(rows=at, **held) if index else None
