"""Runs and folders of shards that several tests of exports share."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from toys import PAIRS, toy_config, toy_run

from mmfm.config import Contrastive, Model, Run, Vit
from mmfm.config.serialization import to_json
from mmfm.models import checkpoint
from mmfm.models.model import build
from mmfm.preprocessing.tokenizer import Tokenizer, train_tokenizer

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 210), "grey": (128, 128, 128)}
NAMES = (*COLOURS, "black", "white")
TEMPLATES = ("a {}", "something {} & small")


def words() -> Tokenizer:
    return train_tokenizer([f"a {name} picture, something {name}" for name in NAMES] * 3, 280)


def square(**changes: object) -> Model:
    """A toy that sees colours."""
    return toy_config(image=Vit(height_px=16, width_px=16, patch_px=4, width=16, depth=1, heads=2), **changes)


def saved(folder: Path, model: Model, contrastive: tuple[Contrastive, ...] = PAIRS, **changes: object) -> Run:
    """A run's folder with one checkpoint, every parameter away from zero and one."""
    torch.manual_seed(0)
    tokenizer = words()
    core = build(model, tokenizer.size, contrastive)
    with torch.no_grad():
        for name, parameter in core.named_parameters():
            parameter += (0.05 if "log_scales" in name else 0.3) * torch.randn_like(parameter)
    run = toy_run(model=model, contrastive=contrastive, **changes)
    checkpoint.save(folder, 3, run, tokenizer, core.state_dict(), {"step": 3})
    (folder / "run.json").write_text(to_json(run))
    return run


def pictures(count: int, side: int = 16) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


def png(picture: Image.Image) -> bytes:
    stored = io.BytesIO()
    picture.save(stored, "PNG")
    return stored.getvalue()


def classification(root: Path, write_shard: Callable[..., Path], count: int = 24, side: int = 16) -> Path:
    """A folder as CLIP_benchmark has it: pictures with a .cls; and our list of classes and templates beside it."""
    samples = {
        f"{i:04d}": {"png": png(picture), "cls": str(i % len(NAMES)).encode()}
        for i, picture in enumerate(pictures(count, side))
    }
    _layout(root, write_shard, samples)
    (root / "classnames.txt").write_text("\n".join(NAMES))
    (root / "zeroshot_classification_templates.txt").write_text("\n".join(t.replace("{}", "{c}") for t in TEMPLATES))
    (root / "templates.txt").write_text("\n".join(TEMPLATES))
    return root


def retrieval(root: Path, write_shard: Callable[..., Path], count: int = 24) -> Path:
    """Pictures with one caption each, no two alike."""
    samples = {
        f"{i:04d}": {"png": png(picture), "txt": f"a {NAMES[i % 6]} picture number {i}".encode()}
        for i, picture in enumerate(pictures(count))
    }
    _layout(root, write_shard, samples)
    (root / "dataset_type.txt").write_text("retrieval")
    return root


def _layout(root: Path, write_shard: Callable[..., Path], samples: dict[str, dict[str, bytes]]) -> None:
    write_shard(root / "test" / "0.tar", samples)
    (root / "test" / "nshards.txt").write_text("1")
