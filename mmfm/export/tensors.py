"""Folders of graphs: ONNX files or torch.export programs, checked at other sizes than they were traced at.

OUT/image.onnx  audio.onnx  text.onnx  tokenizer.json  preprocess.json  export.json  README.md
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import ExportedProgram

from mmfm import config
from mmfm.config import UserError, require
from mmfm.export import onnx, program
from mmfm.export.folder import write_json
from mmfm.export.graphs import Arrays, Graph, Size, graphs, words_of
from mmfm.inference.interface import Interface

TOLERANCE = 1e-4  # largest difference of any output from the model's


class Target(NamedTuple):
    """A kind of file. `write` makes it of a traced graph; `open` gives what computes as it says."""

    write: Callable[[Graph, ExportedProgram, Path], Path]
    open: Callable[[Path], Callable[..., Arrays]]
    example: str


TARGETS = {
    "onnx": Target(
        onnx.write,
        onnx.Session,
        'session = onnxruntime.InferenceSession("{file}")\n{outputs} = session.run(None, {{{feed}}})',
    ),
    "torch_export": Target(
        program.write,
        program.Program,
        'module = torch.export.load("{file}").module()\n{outputs} = module({inputs})',
    ),
}


def write_tensors(model: Interface, to: str, folder: Path, modalities: Sequence[str]) -> dict[str, Any]:
    """Fills `folder`; returns what export.json should say. UserError where an output differs by over TOLERANCE."""
    target = TARGETS[to]
    entries = {}
    for graph in graphs(model.core, model.config, modalities, ids_of(model)):
        path = target.write(graph, program.trace(graph), folder)
        entries[path.name] = {
            "inputs": list(graph.inputs),
            "outputs": list(graph.outputs),
            "reads": graph.reads,
            "notes": list(graph.notes),
            "checked": compare(graph, _opened(graph, target, path)),
        }
    if "text" in modalities:
        (folder / "tokenizer.json").write_text(tokenizer_of(model), encoding="utf-8")
    write_json(folder / "preprocess.json", contract(model.config, modalities, model.tokenizer.longest))
    (folder / "README.md").write_text(readme(to, entries), encoding="utf-8")
    return {"tolerance": TOLERANCE, "torch": str(torch.__version__), "files": entries}


def _opened(graph: Graph, target: Target, path: Path) -> Callable[..., Arrays]:
    try:
        return target.open(path)
    except Exception as why:
        told = " ".join(str(why).split())[:300]
        raise UserError(f"the {graph.name} file cannot be opened ({told}); leave it out by --modality") from why


def compare(graph: Graph, other: Callable[..., Arrays]) -> list[dict[str, int | float]]:
    """The largest difference of any output, at each of the sizes to be checked."""
    return [_compare(graph, other, size) for size in graph.checked]


def _compare(graph: Graph, other: Callable[..., Arrays], size: Size) -> dict[str, int | float]:
    inputs = graph.example(size)
    with torch.no_grad():
        wanted = graph.module(*inputs)
    try:
        found = other(*inputs)
    except Exception as why:
        told = " ".join(str(why).split())[:300]
        where = _said(graph, size)
        raise UserError(f"the {graph.name} file fails at {where} ({told}); leave it out by --modality") from why
    difference = max(_distance(*pair) for pair in zip(wanted, found, strict=True))
    require(
        difference <= TOLERANCE,
        f"the {graph.name} file differs by {difference:g} from the model at {_said(graph, size)}, above {TOLERANCE}; "
        "leave it out by --modality",
    )
    length = {graph.lengths: size.length} if size.length else {}
    return {"batch": size.batch, **length, "difference": difference}


def _said(graph: Graph, size: Size) -> str:
    return f"batch {size.batch}" + f", {graph.lengths} {size.length}" * bool(size.length)


def _distance(wanted: Tensor, found: Tensor) -> float:
    """Infinite where shapes differ or a value is not finite."""
    if wanted.shape != found.shape:
        return math.inf
    if not wanted.numel():
        return 0.0
    largest = (wanted.double() - found.double()).abs().max().item()
    return largest if math.isfinite(largest) else math.inf


def tokenizer_of(model: Interface) -> str:
    """What the text path reads: the tower's own tokenizer, or the model's."""
    return (model.tokenizer.reader or model.tokenizer).to_json()


def ids_of(model: Interface) -> int:
    """How many ids the text path knows."""
    reader = model.tokenizer.reader
    return model.tokenizer.size if reader is None else reader.inner.get_vocab_size(with_added_tokens=False)


def contract(cfg: config.Model, modalities: Sequence[str], longest: int = 0) -> dict[str, Any]:
    """What must be done to a picture, a sound or a text before it goes in. longest: the most ids of a text; 0: any."""
    out: dict[str, Any] = {}
    if "image" in modalities and cfg.image is not None:
        out["image"] = dataclasses.asdict(cfg.image.pixels) | {"values": "uint8, 0 to 255, normalised inside"}
    if "audio" in modalities and cfg.audio is not None:
        out["audio"] = dataclasses.asdict(cfg.audio.sound) | {"channels": "mono, their mean", "values": "-1 to 1"}
    if "text" in modalities:
        words = words_of(cfg)
        own = {"begin": [], "end": [], "pad": 0, "lower": False, "context": longest or None}
        theirs = {} if words is None else dataclasses.asdict(words) | {"context": longest or words.context}
        out["text"] = {"tokenizer": "tokenizer.json"} | (theirs or own)
    return out


def readme(to: str, entries: dict[str, Any]) -> str:
    """What the files read and write, with the lines that run them."""
    parts = [f"# Exported by `mmfm export --to {to}`\n", PREAMBLE]
    for file, entry in entries.items():
        feed = ", ".join(f'"{name}": {name}' for name in entry["inputs"])
        lines = TARGETS[to].example.format(
            file=file, feed=feed, inputs=", ".join(entry["inputs"]), outputs=", ".join(entry["outputs"])
        )
        parts.append("\n".join([f"## {file}\n", *(f"- {item}" for item in (entry["reads"], *entry["notes"])), ""]))
        parts.append(f"```python\n{lines}\n```\n")
    return "\n".join(parts)


PREAMBLE = """\
Batch and length are free. `embedding` [batch, dim] is of length one: the products of two modalities' embeddings are
their cosines. `tokens` [batch, time, width] are the tower's; `tokens_keep` is True where one is real. What lies where
`keep` is False changes nothing. `preprocess.json` says how a picture, a sound or a text becomes the input, and
`export.json` by how much the files were found to differ from the model, at which sizes. Nothing here needs mmfm.
"""
