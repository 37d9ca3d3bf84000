"""A graph as an exported program of torch, and as a file that `torch.export.load` reads without mmfm."""

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from mmfm.compat.torch import asserts_scalar, traced_sizes_are_free
from mmfm.config import UserError
from mmfm.export.graphs import Arrays, Graph, free_sizes

SUFFIX = ".pt2"
NOT_ONE = re.compile(r"expression Ne\((.+, [01]|[01], .+)\) on")


def trace(graph: Graph) -> ExportedProgram:
    """UserError where the module decides by values, or holds a size fast that should be free."""
    try:
        # Deferred: what can only be known about a length when it is there is asserted then.
        with warnings.catch_warnings(), torch.no_grad(), traced_sizes_are_free():
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
    return _cleaned(program)


def _cleaned(program: ExportedProgram) -> ExportedProgram:
    """Without paths of this machine, and without conditions that a batch or length is not 1.

    Those come of shortcuts that torch takes for more than one row; that the general way is right for one is checked.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        node.meta.pop("stack_trace", None)
        if asserts_scalar(node) and NOT_ONE.search(str(node.args[1])):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _shapes(graph: Graph) -> tuple[dict[int, Any], ...]:
    """What is free is so from the least that the graph can do to the most that it is asked for."""
    length = Dim.DYNAMIC if graph.longest is None else Dim.DYNAMIC(max=graph.longest)
    dims = {True: Dim.DYNAMIC, False: length}  # the first axis is the batch
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
