"""A graph as an exported program of torch, and as a file that `torch.export.load` reads without mmfm."""

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.fx.experimental._config as symbols
from torch.export import Dim, ExportedProgram

from mmfm.config import UserError
from mmfm.export.graphs import Arrays, Graph, free_sizes

SUFFIX = ".pt2"


def trace(graph: Graph) -> ExportedProgram:
    """UserError where the module decides by values, or holds a size fast that should be free."""
    try:
        # Oblivious: that the traced batch is not 1 may not become a condition. Deferred: what can only be known about
        # a length when it is there is asserted then.
        with (
            warnings.catch_warnings(),
            torch.no_grad(),
            symbols.patch(backed_size_oblivious=True),  # pyright: ignore[reportAttributeAccessIssue]
        ):
            warnings.simplefilter("ignore")
            program = torch.export.export(
                graph.module.eval(),
                graph.example(graph.traced),
                dynamic_shapes=_shapes(graph),
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except Exception as why:
        told = " ".join(str(why).split())[:300]
        raise UserError(
            f"the {graph.name} path is no graph of free batch and length ({type(why).__name__}: {told}); "
            "leave it out by --modality"
        ) from why
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _shapes(graph: Graph) -> tuple[dict[int, Any], ...]:
    """The first axis is the batch; another free one is the length, the same in every input."""
    dims = {True: Dim("batch", min=1), False: Dim(graph.lengths, min=1, max=graph.longest)}
    return tuple({axis: dims[axis == 0] for axis, free in enumerate(each) if free} for each in free_sizes(graph))


def write(graph: Graph, program: ExportedProgram, folder: Path) -> Path:
    path = folder / f"{graph.name}{SUFFIX}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that share memory, for those who save from a GPU
        torch.export.save(program, path)
    return path


class Program:
    """A file of `write`, to be called."""

    def __init__(self, path: Path) -> None:
        self.module = torch.export.load(path).module()

    def __call__(self, *inputs: torch.Tensor) -> Arrays:
        with torch.no_grad():
            return tuple(self.module(*inputs))
