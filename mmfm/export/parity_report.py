"""An imported source and the bundle made of it, run on the same inputs: how far apart their tokens are."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmfm.config import require
from mmfm.data.batch import Items, Tokens
from mmfm.pretrained import Encoder

LARGEST = 1e-4  # difference from the source, as a fraction of the largest number that it gives
Run = Callable[[Items], Tokens]


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """How far apart the source's own module and the bundle are, on real tokens of padded inputs; logits of a trunk."""

    source: str
    modality: str
    part: str  # the class of the configuration: Tower where the source's module is wrapped
    versions: tuple[tuple[str, str], ...]
    inputs: int
    tokens: int
    difference: float  # the largest
    scale: float  # the largest number that the source gives
    padding: float  # largest difference between a row among others and by itself, of the bundle
    padding_invariant: bool
    longest: int  # inputs of the longest item: tokens of text, samples of sound; 0: pictures
    window: int  # inputs that the source takes at most; 0: any number
    source_seconds: float  # of one pass
    bundle_seconds: float

    @property
    def holds(self) -> bool:
        return self.difference <= LARGEST * self.scale

    def line(self) -> str:
        apart = "as alone" if self.padding_invariant else f"{self.padding:.1e} from alone, as in its source"
        padding = f" padded inputs are {apart};" * (self.modality != "image")
        long = f" the longest of {self.longest} (it takes {self.window or 'any number'});" * (self.longest > 0)
        versions = ", ".join(f"{name} {version}" for name, version in self.versions)
        return (
            f"Imported from {self.source} with {versions}: as a {self.part}, its numbers are at most "
            f"{self.difference:.1e} from the source's, of {self.scale:.3g};{long}{padding} "
            f"{self.bundle_seconds:.3f} s a pass, the source {self.source_seconds:.3f} s."
        )


def require_parity(report: ParityReport, remedy: str) -> None:
    """A UserError where the numbers are too far apart for the bundle to be written."""
    apart = f"differs from its source by {report.difference:.3g}, of numbers as large as {report.scale:.3g}"
    require(report.holds, f"{report.source} as a {report.part} {apart}, and is not written; {remedy}")


def run_encoder(encoder: Encoder, items: Items) -> Tokens:
    """The source's own module, on what our inputs mean to it."""
    pixels = encoder.blueprint.pixels
    if pixels is not None:
        mean, std = (torch.tensor(values)[:, None, None] for values in (pixels.mean, pixels.std))
        return encoder((items.x.float() / 255 - mean) / std)
    if encoder.blueprint.sound is not None:
        return encoder(*encoder.features(items.x, items.keep))
    return encoder(items.x, items.keep)


@torch.no_grad()
def with_long_item(proof: ParityReport, items: Items, theirs: Run, ours: Run) -> ParityReport:
    """With one long item, alone in its batch."""
    wanted, found = theirs(items), ours(items)
    told = f"{proof.source} as a {proof.part} gives other real tokens than its source of {items.x.shape[1]} inputs"
    require(wanted.x[wanted.keep].shape == found.x[found.keep].shape, f"{told}; say --layout wrapped")
    return replace(
        proof,
        inputs=proof.inputs + 1,
        longest=items.x.shape[1],
        tokens=proof.tokens + int(found.keep.sum()),
        difference=max(proof.difference, _apart(found.x[found.keep], wanted.x[wanted.keep])),
        scale=max(proof.scale, float(wanted.x[wanted.keep].abs().max())),
    )


@torch.no_grad()
def compare(source: str, modality: str, part: str, library: str, items: Items, theirs: Run, ours: Run) -> ParityReport:
    """Both on the same batch; real tokens are compared, of which both must have as many in each row."""
    (wanted, source_seconds), (found, bundle_seconds) = _timed(theirs, items), _timed(ours, items)
    real = [[x[keep] for x, keep in zip(*tokens, strict=True)] for tokens in (wanted, found)]
    for mine, its in zip(real[1], real[0], strict=True):
        told = f"{len(mine)} tokens of {mine.shape[-1]} numbers where its source gives {len(its)} of {its.shape[-1]}"
        require(mine.shape == its.shape, f"{source} as a {part} gives {told}, and is not written; say --layout wrapped")
    scale = max(float(its.abs().max()) for its in real[0])
    alone = [ours(_row(items, row)) for row in range(len(items.x))]
    padding = max(_apart(mine, x[0][keep[0]]) for mine, (x, keep) in zip(real[1], alone, strict=True))
    told = f"{source} as a {part} gives an input among longer ones other tokens than alone"
    require(padding < float("inf"), f"{told}, and is not written; give another encoder")
    return ParityReport(
        source=source,
        modality=modality,
        part=part,
        versions=tuple((name, str(sys.modules[name].__version__)) for name in ("torch", library)),
        inputs=len(items.x),
        tokens=sum(map(len, real[0])),
        difference=max(_apart(mine, its) for mine, its in zip(real[1], real[0], strict=True)),
        scale=scale,
        padding=padding,
        padding_invariant=padding <= LARGEST * scale,
        longest=items.x.shape[1] if items.x.shape[:2] == items.keep.shape else 0,
        window=0,
        source_seconds=source_seconds,
        bundle_seconds=bundle_seconds,
    )


def _timed(run: Run, items: Items) -> tuple[Tokens, float]:
    """The second pass counts: the first one also prepares."""
    run(items)
    start = time.perf_counter()
    return run(items), time.perf_counter() - start


def _apart(a: Tensor, b: Tensor) -> float:
    """Infinite for what is not finite, or of another size."""
    apart = float((a - b).abs().max()) if a.shape == b.shape else float("inf")
    return apart if apart == apart else float("inf")


def _row(items: Items, row: int) -> Items:
    """One row without its padding."""
    keep = items.keep[row]
    x = items.x[row][keep] if items.x.shape == items.keep.shape else items.x[row]
    return Items(x=x[None], keep=keep[keep][None], rows=torch.zeros(1, dtype=torch.int64))
