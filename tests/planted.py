"""A model whose embeddings and texts are planted, and small files on disk, for tests of evaluation."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mmfm import config
from mmfm.data.batch import Batch
from mmfm.preprocessing.tokenizer import load_tokenizer

TELEPHONE = config.Mel(rate_hz=8_000, high_hz=3_800.0, bins=16)
SMALL = config.Model(
    image=config.Vit(height_px=8, width_px=8, patch_px=4, channels=1, width=16, depth=1, heads=2),
    audio=config.Conformer(mel=TELEPHONE, width=16, depth=1, heads=2, kernel=3),
    text=config.TextTower(width=16, depth=1, heads=2),
    trunk=config.Trunk(width=16, depth=1, heads=2, kv_heads=1),
    embed_dim=8,
)


class Planted(nn.Module):
    """Embeddings by (modality, key) and by text; written texts by key. `asked` counts what was encoded or written."""

    def __init__(
        self,
        vectors: Mapping[tuple[str, str], Sequence[float]],
        texts: Mapping[str, Sequence[float]] | None = None,
        written: Mapping[str, str] | None = None,
        tasks: tuple[str, ...] = (),
        cfg: config.Model = SMALL,
        dim: int = 3,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.vectors, self.texts, self.written, self.tasks = vectors, texts or {}, written or {}, tasks
        self.config, self.tokenizer, self.embed_dim = cfg, load_tokenizer("bytes"), dim
        self.modalities = tuple(name for name in config.MODALITIES if getattr(cfg, name) is not None)
        self.asked: list[tuple[str, int]] = []

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        self.asked += [(name, len(items.rows)) for name, items in batch.items.items()]
        return {
            name: self._unit([self.vectors[name, batch.keys[row]] for row in items.rows.tolist()])
            for name, items in batch.items.items()
        }

    def encode_text(self, texts: list[str], normalize: bool = True) -> Tensor:
        return self._unit([self.texts[text] for text in texts])

    def write(self, task: str, batch: Batch, max_tokens: int) -> tuple[list[int], list[str]]:
        rows = batch.items[task.partition(">")[0]].rows.tolist()
        self.asked.append((task, len(rows)))
        return rows, [self.written[batch.keys[row]] for row in rows]

    def nats(self, task: str, batch: Batch) -> Tensor:
        return torch.full((batch.size,), math.nan)

    def _unit(self, rows: list[Sequence[float]]) -> Tensor:
        return F.normalize(self.weight * torch.tensor(rows), dim=-1)


def axis(*places: int) -> list[float]:
    """The sum of unit vectors of a space of three, the first ones weighing more."""
    return [sum(1.0 / (1 + n) for n, place in enumerate(places) if place == at) for at in range(3)]


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    out, layout = io.BytesIO(), "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8), np.uint8)).save(out, layout)
    path.write_bytes(out.getvalue())
    return path


def sound(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.3 * np.random.default_rng(seed).standard_normal(800).clip(-3, 3)
    soundfile.write(path, wave, 8_000)
    return path
