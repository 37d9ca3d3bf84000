"""A model whose embeddings and texts are planted, small files and shards, and short ways to score them."""

import io
import math
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mmfm import config
from mmfm.config import RemoteCache
from mmfm.config.serialization import to_json
from mmfm.data.batch import Batch
from mmfm.data.sources import open_shards
from mmfm.evals import run
from mmfm.evals.config import EvalConfig
from mmfm.evals.heads import read_split
from mmfm.evals.metrics import Bootstrap
from mmfm.evals.records import Row, Scores
from mmfm.evals.split import ALONE, Split, at_rest
from mmfm.evals.suite import Suite, Task, default_suite
from mmfm.models.checkpoint import save
from mmfm.models.model import build
from mmfm.preprocessing.tokenizer import load_tokenizer
from mmfm.runtime.distributed import Collective

TELEPHONE = config.Mel(rate_hz=8_000, high_hz=3_800.0, bins=16)
SMALL = config.Model(
    image=config.Vit(height_px=8, width_px=8, patch_px=4, channels=1, width=16, depth=1, heads=2),
    audio=config.Conformer(mel=TELEPHONE, width=16, depth=1, heads=2, kernel=3),
    text=config.TextTower(width=16, depth=1, heads=2),
    trunk=config.Trunk(width=16, depth=1, heads=2, kv_heads=1),
    embed_dim=8,
)
QUICK = EvalConfig(bootstrap=Bootstrap(resamples=20), batch_size=3)


class Planted(nn.Module):
    """Embeddings by (modality, key) and by text; texts that are written by key; a surprise of one bit for each byte.

    `asked` counts what was encoded or written.
    """

    def __init__(
        self,
        vectors: Mapping[tuple[str, str], Sequence[float]],
        texts: Mapping[str, Sequence[float]] | None = None,
        written: Mapping[str, str] | None = None,
        tasks: tuple[str, ...] = (),
        cfg: config.Model = SMALL,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.vectors, self.texts, self.written, self.tasks = vectors, texts or {}, written or {}, tasks
        self.config, self.tokenizer = cfg, load_tokenizer("bytes")
        self.embed_dim = len(next(iter(self.texts.values()), [0.0] * 3))
        self.modalities = tuple(name for name in config.MODALITIES if getattr(cfg, name) is not None)
        self.asked: list[tuple[str, int]] = []

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        assert not self.training and not torch.is_grad_enabled()
        self.asked += [(name, len(items.rows)) for name, items in batch.items.items()]
        return {
            name: self._unit([self.vectors[name, batch.keys[row]] for row in items.rows.tolist()])
            for name, items in batch.items.items()
        }

    def encode_text(self, texts: list[str], normalize: bool = True) -> Tensor:
        assert normalize and not self.training
        return self._unit([self.texts[text] for text in texts])

    def write(self, task: str, batch: Batch, max_tokens: int) -> tuple[list[int], list[str]]:
        rows = batch.items[task.partition(">")[0]].rows.tolist()
        self.asked.append((task, len(rows)))
        return rows, [self.written[batch.keys[row]] for row in rows]

    def nats(self, task: str, batch: Batch) -> Tensor:
        return torch.tensor([math.nan if t is None else math.log(2) * len(t.encode()) for t in batch.texts])

    def _unit(self, rows: list[Sequence[float]]) -> Tensor:
        return F.normalize(self.weight * torch.tensor(rows), dim=-1)


def axis(*places: int) -> list[float]:
    """The sum of unit vectors of a space of three, the first ones weighing more."""
    return [sum(1.0 / (1 + n) for n, place in enumerate(places) if place == at) for at in range(3)]


def image_bytes(seed: int, layout: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8), np.uint8)).save(out, layout)
    return out.getvalue()


def sound_bytes(seed: int, rate_hz: int = 8_000) -> bytes:
    out = io.BytesIO()
    wave = 0.3 * np.random.default_rng(seed).standard_normal((rate_hz // 10, 2))
    soundfile.write(out, wave.clip(-1, 1), rate_hz, format="FLAC")
    return out.getvalue()


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_bytes(seed, "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"))
    return path


def sound(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.3 * np.random.default_rng(seed).standard_normal(800).clip(-3, 3)
    soundfile.write(path, wave, 8_000)
    return path


def shard(path: Path, samples: Mapping[str, Mapping[str, Any]]) -> str:
    """Write key -> {extension: str or bytes, "image" or "audio": seed} as a tar; the folder is returned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, parts in samples.items():
            for kind, value in parts.items():
                made = {"image": ("png", image_bytes), "audio": ("flac", sound_bytes)}.get(kind)
                name, data = (made[0], made[1](value)) if made else (kind, value)
                data = data.encode() if isinstance(data, str) else data
                member = tarfile.TarInfo(f"{key}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return str(path.parent)


def evaluate(
    model: Any, spec: str, config: EvalConfig = QUICK, *, split: str = "s", ranks: Collective = ALONE
) -> Scores:
    """Everything about one split; nothing for other ranks than the first."""
    return run.evaluate(model, default_suite({split: spec}), config, ranks=ranks).get(split, Scores())


def asked(model: Any, root: Path, *tasks: Task, config: EvalConfig = QUICK) -> Scores:
    """The scores of a suite of these tasks, all under its own name."""
    suite = Suite(name="s", tasks=tasks, layout="a place", source="a set")
    return run.evaluate(model, suite, config, root=root)["s"]


def read(model: Any, spec: str, config: EvalConfig = QUICK, **more: Any) -> Split:
    with at_rest(model):
        return read_split(model, open_shards([spec], RemoteCache()), name="s", source=spec, config=config, **more)


def value(scores: Scores | Sequence[Row], task: str, metric: str, key: str = "value") -> Any:
    rows = scores.rows if isinstance(scores, Scores) else scores
    (row,) = [row for row in rows if (row.task, row.metric) == (task, metric)]
    return getattr(row, key)


def tasks_of(scores: Scores) -> set[str]:
    return {row.task for row in scores.rows}


NAMES = ("cat", "dog", "owl")
NAMED = {name: axis(place) for place, name in enumerate(NAMES)}
PETS = {
    "a": ("cat", axis(0, 1)),  # right
    "b": ("cat", axis(0, 2)),  # right
    "c": ("cat", axis(1, 0)),  # taken for a dog
    "d": ("dog", axis(1, 2)),  # right
    "e": ("owl", axis(0, 2)),  # taken for a cat
}
CONFUSION = ((0, 0, 2), (0, 1, 1), (1, 1, 1), (2, 0, 1))


def pets(folder: Path, kind: str = "image", **parts: Mapping[str, str]) -> tuple[str, Planted]:
    """The five samples above; `parts` may replace the caption of a key by other parts."""
    samples = {key: {kind: n, **parts.get(key, {"txt": name})} for n, (key, (name, _)) in enumerate(PETS.items())}
    spec = shard(folder / "pets" / "0.tar", samples)
    return spec, Planted({(kind, key): vector for key, (_, vector) in PETS.items()}, NAMED)


def saved_run(
    folder: Path,
    val: str = "",
    model: config.Model = SMALL,
    tasks: tuple[str, ...] = ("image>text", "audio>text", ">text"),
    **changes: Any,
) -> config.Run:
    """A run of an untrained small model, as training leaves it."""
    objectives = tuple(config.Generative(task=task) for task in tasks)
    parts = {"name": "small", "data": config.Data(val=val), **changes}
    made = config.Run(model=model, generative=objectives, out=str(folder), **parts)
    torch.manual_seed(0)
    tokenizer = load_tokenizer("bytes")
    core = build(made.model, tokenizer.size, made.contrastive)
    made.folder.mkdir(parents=True)
    (made.folder / "run.json").write_text(to_json(made))
    save(made.folder, 1, made, tokenizer, core.state_dict(), {})
    return made


def numbers(folder: Path, words: Sequence[str]) -> str:
    """Two images and two sounds of each word, never together."""
    samples: dict[str, dict[str, Any]] = {}
    for n, word in enumerate([*words, *words]):
        samples[f"i{n}"] = {"image": n, "txt": word}
        samples[f"s{n}"] = {"audio": n, "txt": word}
    return shard(folder / "0.tar", samples)
