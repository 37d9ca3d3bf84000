"""Reference runs: each is built at its size without numbers, and its structure trains at a size that fits a test."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from test_codecs_known import TOYS

from mmfm.config import (
    Conformer,
    KnownCodec,
    Mel,
    Run,
    TextTower,
    Tower,
    Trunk,
    Vit,
)
from mmfm.config.load import read_run
from mmfm.config.serialization import from_json, to_json
from mmfm.models.checkpoint import steps_of
from mmfm.models.model import build
from mmfm.plan.batches import Assumed
from mmfm.plan.measure import settled
from mmfm.training import fit

TOOLS = Path(__file__).parent.parent / "tools"
sys.path.insert(0, str(TOOLS))
import reference  # noqa: E402

NAMES = [path.stem for path in reference.paths()]
MILLIONS = {"any": (700, 800), "clap": (150, 170), "clip": (155, 175), "siglip": (205, 230), "three": (1_200, 1_350)}
HELD = {("image", "text"): "image", ("audio", "text"): "audio", ("text",): "text"}


def run_of(name: str) -> Run:
    return read_run(reference.FOLDER / f"{name}.py")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_built_at_its_size(name: str) -> None:
    """Of the architectures that lie beside it, with no numbers; and what is saved of it is what is read."""
    run = run_of(name)
    assert from_json(to_json(run)) == run
    run, tokenizer, said = settled(run, Assumed(architectures=str(reference.FOLDER / "architectures")))
    assert tokenizer is None and len(said) == 1
    with torch.device("meta"):
        model = build(run.model, 32_768, run.contrastive, run.data.augment)
    low, high = MILLIONS[name]
    assert low < sum(parameter.numel() for parameter in model.parameters()) / 1e6 < high
    assert run.optim.precision == "bf16" and run.data.batch_size >= 2_048


@pytest.fixture(scope="module")
def planted(tmp_path_factory: Any, write_shard: Any, encode_image: Any, encode_audio: Any, sine: Any) -> Path:
    """Shards of pictures, of sounds and of texts alone; and tiny folders of what the runs import."""
    folder, draw = tmp_path_factory.mktemp("reference"), np.random.default_rng(0)
    samples: dict[str, dict[str, dict[str, bytes]]] = {"image": {}, "audio": {}, "text": {}}
    for i in range(12):
        text = f"the thing of number {i}".encode()
        pixels = draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        samples["image"][f"{i}"] = {"png": encode_image(pixels), "txt": text}
        samples["audio"][f"{i}"] = {"flac": encode_audio(sine(300.0 + 50 * i, 0.5)), "txt": text}
        samples["text"][f"{i}"] = {"txt": text}
    for name, held in samples.items():
        write_shard(folder / f"{name}.tar", held)
    how = {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32}
    whisper = hf.WhisperConfig(**how, encoder_layers=1, decoder_layers=1, num_mel_bins=80)
    for part in (whisper, hf.WhisperFeatureExtractor(feature_size=80)):
        part.save_pretrained(folder / "whisper")
    for name in ("janus", "mimi"):
        TOYS[name].save_pretrained(folder / name)
    return folder


def shrunk(run: Run, folder: Path) -> Run:
    """The run with its parts, objectives, schedule and precision, but narrow, shallow, and on planted data."""
    model, places = run.model, {"image": folder / "janus", "audio": folder / "mimi"}
    parts = {name: _small(getattr(model, name), folder) for name in ("image", "audio", "text", "trunk")}
    codecs = {
        f"{name}_codec": replace(codec, source=str(places[name]), weights="random", num_codebooks=0)
        for name, codec in model.codecs.items()
        if isinstance(codec, KnownCodec)
    }
    sources = tuple(replace(s, shards=str(folder / f"{HELD[s.modalities]}.tar")) for s in run.data.train)
    data = replace(run.data, train=sources, batch_size=4 * sum(s.weight for s in sources), num_workers=0)
    optim = replace(run.optim, steps=2, warmup_steps=1)
    how = {"out": str(folder / "runs"), "save_every_steps": 2, "keep_every_steps": 0, "accelerator": "cpu"}
    small = replace(model, **parts, **codecs, tokenizer="bytes", embed_dim=16)
    return replace(run, model=small, data=data, optim=optim, **how)


def _small(part: Any, folder: Path) -> Any:
    size = {"width": 32, "depth": 1, "heads": 4}
    match part:
        case Vit():
            return replace(part, **size, height_px=32, width_px=32)
        case Conformer():
            return replace(part, **size, mel=Mel(bins=16))
        case TextTower():
            return replace(part, **size)
        case Trunk():
            kv_heads = max(1, 4 * part.kv_heads // part.heads)
            return replace(part, **(size | {"depth": 2}), kv_heads=kv_heads, hidden=64 if part.hidden else 0)
        case Tower():
            return replace(part, source=str(folder / "whisper"), weights="random", window_seconds=1.0)
    return part


@pytest.mark.parametrize("name", NAMES)
def test_its_structure_trains(name: str, planted: Path) -> None:
    """Two steps, to a checkpoint, with finite losses that have a gradient."""
    run = shrunk(run_of(name), planted)
    assert [item.name for item in run.terms] == [item.name for item in run_of(name).terms]
    fit.train(run)
    assert steps_of(run.folder) == [2]
    text = (run.folder / "metrics.jsonl").read_text()
    assert "not_finite" not in text and all(f'"loss/{item.name}"' in text for item in run.terms)


SOURCE = '"""A run.\n\nWords.\n\n"""\n\nX = 1\n'


def test_a_block_is_written_once_and_read_back() -> None:
    """What is in the docstring is replaced, all else stays; words must be the same, figures nearly."""
    block = f"{reference.HEAD}\n\n    GPUs  s/step\n       8     10\n\n5 M parameters."
    first = reference.written(SOURCE, block)
    assert reference.written(first, block) == first and first.endswith('\n"""\n\nX = 1\n') and "Words." in first
    assert reference.current(first, block) and not reference.current(SOURCE, block)
    assert reference.current(first, block.replace("   10", "   10.5"))
    assert not reference.current(first, block.replace("   10", "   12.5"))
    assert not reference.current(first, block.replace("s/step", "ms/step"))
    assert not reference.current(first, block.replace("       8     10\n", ""))


@pytest.mark.parametrize("name", NAMES)
def test_its_docstring_holds_a_plan(name: str) -> None:
    """Of 8, 64 and 1,000 GPUs; tests/slow says whether it is the one that is planned now."""
    rows = reference.docstring((reference.FOLDER / f"{name}.py").read_text()).partition(reference.HEAD)[2].splitlines()
    assert [row.split()[0] for row in rows[3:6]] == ["8", "64", "1,000"]
