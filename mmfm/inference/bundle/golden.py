"""The proof that a model's folder carries with it: fixed inputs, and what came out of them when it was written.

Weights that arrive whole can still give other numbers: under another version of a library, another decoder, another
tokenizer. So the inputs are kept as a person gives them (pictures, waveforms, sentences), with what the model reads of
them, and what it makes of that.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmfm.config import AudioPreprocess, UserError, require
from mmfm.data.batch import Items, Tokens
from mmfm.inference.bundle.contents import GOLDEN
from mmfm.inference.bundle.encoder import BundledEncoder
from mmfm.models.model import UnifiedModel
from mmfm.models.transformer import Segment, UnifiedTransformer

SENTENCES = ("A bird on a stone, and another.", "forty-two", "Über 7 kleine Katzen: miau!")
TOLERANCE = 1e-4  # of the largest number: sums of fp32 in another order
SECONDS = (0.9, 0.4)  # of the sounds, so that one is padded
LEVEL = 1.0  # of 255: resizing may round the other way
KEPT = 16  # tokens of each row, and a few more
FRAMES = 8  # of a sound of codes
OTHERS = 0.1  # of the codes
REMEDY = "use the versions that its README names, or pass check=False to go on all the same"

Tensors = Mapping[str, Tensor]


def make(encoder: BundledEncoder, sentences: Sequence[str] = SENTENCES) -> dict[str, Tensor]:
    """Inputs, what is read of them, and the outputs, by name: "image.given", "image.x", "image.tokens", ..."""
    given = _given(encoder)
    items = prepared(encoder, _as_people_do(encoder, given, sentences))
    found = given | {"x": items.x, "keep": items.keep} | _outputs(encoder, items)
    return {f"{encoder.modality}.{name}": value.cpu().clone() for name, value in found.items()}


def inputs(encoder: BundledEncoder) -> list[Any]:
    """What `make` gives it: pictures, sounds and sentences of different lengths."""
    return _as_people_do(encoder, _given(encoder), SENTENCES)


def check(encoder: BundledEncoder, golden: Tensors, sentences: Sequence[str], tolerance: float, where: str | Path):
    """A UserError where this encoder, on this machine, gives other numbers than those that were written."""
    start = f"{encoder.modality}."
    stored = {name.removeprefix(start): value for name, value in golden.items() if name.startswith(start)}
    lacking = {"x", "keep", "tokens", "tokens.keep"} - stored.keys()
    require(not lacking, f"{where}: its {GOLDEN} has no {start}{min(lacking, default='')}; {REMEDY}")
    here = prepared(encoder, _as_people_do(encoder, stored, sentences))
    level = LEVEL if encoder.modality == "image" else 0.0
    for name, value in (("x", here.x), ("keep", here.keep)):
        _compare(f"{start}{name}", value, stored[name], level, where)
    rows = torch.arange(len(stored["x"]))
    found = _outputs(encoder, Items(x=stored["x"], keep=stored["keep"], rows=rows))
    for name, value in found.items():
        require(name in stored, f"{where}: its {GOLDEN} has no {start}{name}; {REMEDY}")
        _compare(f"{start}{name}", value, stored[name], tolerance * float(stored[name].double().abs().max()), where)


def prepared(encoder: BundledEncoder, given: list[Any]) -> Items:
    """What is read of them. That a sentence is longer than a short window is no news here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="only the beginning of a long text is read")
        return encoder.prepare(given)


def make_trunk(trunk: UnifiedTransformer) -> dict[str, Tensor]:
    """Of a trunk: seeded vectors of a source and a target, some of them padding, and its states."""
    x = torch.randn(2, 9, trunk.width, generator=torch.Generator().manual_seed(0))
    keep = torch.arange(9) < torch.tensor([[9], [7]])
    return {"trunk.x": x, "trunk.keep": keep, "trunk.states": _states(trunk, x, keep)}


def check_trunk(trunk: UnifiedTransformer, golden: Tensors, tolerance: float, where: str | Path) -> None:
    lacking = {"trunk.x", "trunk.keep", "trunk.states"} - golden.keys()
    require(not lacking, f"{where}: its {GOLDEN} has no {min(lacking, default='')}; {REMEDY}")
    stored = golden["trunk.states"]
    found = _states(trunk, golden["trunk.x"], golden["trunk.keep"])
    _compare("trunk.states", found, stored, tolerance * float(stored.abs().max()), where)


@torch.no_grad()
def make_codecs(core: UnifiedModel) -> dict[str, Tensor]:
    """Of each codec: codes, what they show or sound like, and the codes of that."""
    made = {}
    for name in core.codecs:
        form, codec = core.forms[name], core.codec(name)
        spans = [form.candidates(step) for step in range(form.length or FRAMES * len(form.sizes))]
        codes = torch.tensor([[span[7 * step % len(span)] for step, span in enumerate(spans)]], device=core.device)
        shown, keep = codec.decode(codes, torch.ones_like(codes, dtype=torch.bool))
        made |= {f"codec.{name}.codes": codes, f"codec.{name}.shown": shown, f"codec.{name}.keep": keep}
        made[f"codec.{name}.again"] = codec.encode(shown, keep).ids
    return {name: value.cpu().clone() for name, value in made.items()}


@torch.no_grad()
def check_codecs(core: UnifiedModel, stored: Tensors, tolerance: float, where: str | Path) -> None:
    """A UserError where a codec shows something else, or where more than a few codes of it are others: one that lies
    between two may fall to either."""
    for name in core.codecs:
        parts = [stored.get(f"codec.{name}.{part}") for part in ("codes", "shown", "keep", "again")]
        require(all(part is not None for part in parts), f"{where}: its {GOLDEN} has no codec.{name}; {REMEDY}")
        codes, shown, keep, again = (part for part in parts if part is not None)
        here, _ = core.codec(name).decode(codes, torch.ones_like(codes, dtype=torch.bool))
        most = LEVEL if name == "image" else tolerance * float(shown.abs().max())
        _compare(f"codec.{name}.shown", here, shown, most, where)
        codes = core.codec(name).encode(shown, keep).ids
        others = 1.0 if codes.shape != again.shape else float((codes != again).float().mean())
        told = f"{where} does not give what it gave when it was written: {others:.0%} of the codes of its {name}"
        require(others <= OTHERS, f"{told} are others; {REMEDY}")


@torch.no_grad()
def _states(trunk: UnifiedTransformer, x: Tensor, keep: Tensor) -> Tensor:
    dtype = next(trunk.parameters()).dtype
    source, target = (Tokens(x[:, part].to(dtype), keep[:, part]) for part in (slice(0, 4), slice(4, None)))
    states = trunk([Segment(source), Segment(target, causal=True)])
    return (torch.cat(states, 1) * keep.unsqueeze(-1)).cpu().clone()


def _given(encoder: BundledEncoder) -> dict[str, Tensor]:
    """Seeded pictures and sounds; the sentences stand in config.json."""
    draw = np.random.default_rng(0)
    if encoder.modality == "image":
        ramp = 2.0 * np.arange(40)[:, None, None] + np.arange(56)[None, :, None] * np.array([1.0, 2.0, 0.5])
        noise = draw.integers(0, 60, (2, 40, 56, 3))
        return {"given": torch.from_numpy((ramp + noise).clip(0, 255).astype(np.uint8))}
    if encoder.modality == "audio":
        rate_hz = _rate(encoder)
        times = np.arange(round(max(SECONDS) * rate_hz)) / rate_hz
        tones = np.stack([np.sin(2 * np.pi * hz * times * (1 + times)) for hz in (220.0, 700.0)])
        waves = 0.3 * tones + 0.05 * draw.standard_normal(tones.shape)
        return {"given": torch.from_numpy(waves.astype(np.float32))}
    return {}


def _as_people_do(encoder: BundledEncoder, given: Tensors, sentences: Sequence[str]) -> list[Any]:
    if encoder.modality == "text":
        return list(sentences)
    if encoder.modality == "image":
        return [Image.fromarray(pixels.numpy()) for pixels in given["given"]]
    lengths = [round(seconds * _rate(encoder)) for seconds in SECONDS]
    return [wave[:length] for wave, length in zip(given["given"], lengths, strict=True)]


def _rate(encoder: BundledEncoder) -> int:
    contract = encoder.preprocess
    assert isinstance(contract, AudioPreprocess)
    return contract.rate_hz


@torch.no_grad()
def _outputs(encoder: BundledEncoder, items: Items) -> dict[str, Tensor]:
    x, keep = encoder.tokens(items)
    some = torch.arange(0, x.shape[1], max(1, x.shape[1] // KEPT), device=x.device)
    found = {"tokens": (x * keep.unsqueeze(-1))[:, some], "tokens.keep": keep}
    return found | ({"embedding": encoder.embed(items)} if encoder.embed_dim else {})


def _compare(name: str, found: Tensor, stored: Tensor, most: float, where: str | Path) -> None:
    """Numbers as far apart as `most`, or a UserError. What is not finite differs from everything."""
    told = f"{where} does not give what it gave when it was written: {name}"
    if found.shape != stored.shape:
        raise UserError(f"{told} has shape {list(found.shape)}, not {list(stored.shape)}; {REMEDY}")
    apart = float((found.cpu().double() - stored.double()).abs().max())
    if not apart <= most:
        raise UserError(f"{told} differs by {apart:.3g}, more than {most:.3g}; {REMEDY}")
