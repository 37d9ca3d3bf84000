"""What evaluation saves by sharing: one decode and one tower pass a sample, against each head on its own.

The heads are embedding, and of each task of the run that writes a text its writing and its likelihood, on batches of
one split. `together` is what `mmfm eval` does with a batch; `alone` reads the batch anew for each head and asks it
without what another has computed. Both run in turn in one process; what they give is the same, and checked to be.

    mmfm data numbers data/numbers
    mmfm train configs/quickstart.py
    python tools/bench_eval.py [--run runs/quickstart] [--data data/numbers/val] [--samples 256]
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measure import in_turns, ratios, row, seconds, write_report
from torch import Tensor

from mmfm.config import RemoteCache
from mmfm.config.task import parse
from mmfm.data.batch import Batch
from mmfm.data.decode import decode_of
from mmfm.data.sources import open_shards
from mmfm.evals.predict import SplitReader
from mmfm.evals.reading import Reader
from mmfm.evals.split import slices, spread, writing_tasks
from mmfm.inference.interface import Interface
from mmfm.inference.load import load_model

BATCH, TOKENS, ROUNDS = 64, 32, 9
Head = Callable[[Batch], Any]


def heads(model: Interface) -> list[tuple[set[str], Head]]:
    """Each head, with the modalities whose towers it asks."""
    found: list[tuple[set[str], Head]] = [({*model.modalities} - {"text"}, lambda batch: embedded(model, batch))]
    for name in writing_tasks(model):
        sources = {*parse(name).sources}
        if sources:
            found.append((sources, lambda batch, name=name: model.write(name, batch, TOKENS)))
        found.append((sources, lambda batch, name=name: model.nats(name, batch)))
    return found


def embedded(model: Interface, batch: Batch) -> dict[str, Tensor]:
    """Of what is seen and heard; texts are encoded by themselves, once each."""
    return {name: x for name, x in model.embed(batch).items() if name != "text"}


def together(model: Interface, load: Callable[[], Iterator[Batch]]) -> Iterator[list[Any]]:
    asked = heads(model)
    names = set().union(*(sources for sources, _ in asked))
    for batch in load():
        known = model.encoded(batch, names)
        yield [head(known) for _, head in asked]


def alone(model: Interface, load: Callable[[], Iterator[Batch]]) -> Iterator[list[Any]]:
    columns = [[head(batch) for batch in load()] for _, head in heads(model)]
    yield from map(list, zip(*columns, strict=True))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a.nan_to_num(-1.0), b.nan_to_num(-1.0)) if isinstance(a, Tensor) else a == b


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="runs/quickstart")
    parser.add_argument("--data", default="data/numbers/val")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, shards = load_model(args.run), open_shards([args.data], RemoteCache())
    reader = Reader(model=model.config, decode=decode_of(model.run.data), sources=model.run.data.train)
    places = spread(len(shards), args.samples)
    source = SplitReader(reader=reader, tokenizer=model.tokenizer, samples=shards, places=places, own=len(places))

    def load() -> Iterator[Batch]:
        return (source.load(list(range(len(places)))[part]).batch for part in slices(len(places), BATCH))

    with torch.no_grad():
        for found, wanted in zip(together(model, load), alone(model, load), strict=True):
            assert all(same(a, b) for a, b in zip(found, wanted, strict=True)), "the heads disagree"
        ways = {"together": together, "alone": alone}
        taken = in_turns(
            {name: lambda way=way: seconds(lambda: list(way(model, load))) for name, way in ways.items()}, args.rounds
        )
    rows = [
        row("each head alone over all together", ratios(taken["alone"], taken["together"]), unit="x", goal=">= 1.5"),
        row("all together, a sample", [1_000 * value / len(places) for value in taken["together"]], unit="ms"),
    ]
    write_report(
        args.out,
        rows,
        {"torch": torch.__version__},
        samples=len(places),
        batch=BATCH,
        trained_steps=model.run.optim.steps,
    )


if __name__ == "__main__":
    main()
