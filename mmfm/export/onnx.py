"""A graph as an ONNX file, whose inputs and outputs have names, and the runtime that it is checked in."""

import contextlib
import io
import warnings
from pathlib import Path

import onnxruntime
import torch
from torch.export import ExportedProgram

from mmfm.compat.onnxscript import set_integer
from mmfm.config import UserError
from mmfm.export.graphs import Arrays, Graph

SUFFIX = ".onnx"
INLINE_BYTES = 1 << 30  # a file of protocol buffers ends at two gibibytes; above this the weights lie in one beside it


def write(graph: Graph, program: ExportedProgram, folder: Path) -> Path:
    """UserError where an operation of the graph has no counterpart in ONNX."""
    path = folder / f"{graph.name}{SUFFIX}"
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program, graph.example(graph.traced), dynamo=True, verbose=False, input_names=graph.inputs
            )
        assert made is not None
        name(made.model, graph)
        weights = sum(value.nbytes for value in program.state_dict.values())
        made.save(path, external_data=weights > INLINE_BYTES)
    except Exception as why:
        told = " ".join(str(why).split())[:300]
        raise UserError(
            f"the {graph.name} path cannot be written in ONNX ({type(why).__name__}: {told}); "
            "leave it out by --modality, or take --to torch_export"
        ) from why
    return path


def name(model, graph: Graph) -> None:
    """Outputs and free sizes get the graph's names; what else bore one of them gets another. Traces of code go."""
    taken, inner = {*graph.outputs}, model.graph
    for value in [value for name, value in inner.initializers.items() if name in taken]:
        inner.initializers.pop(value.name)
        value.name = f"inner_{value.name}"
        inner.register_initializer(value)
    for node in inner:
        node.metadata_props.clear()  # paths of this machine
        if node.op_type == "Reshape" and not _copies(node.inputs[1]):  # a length of 0 is a length, not "as it was"
            set_integer(node, "allowzero", 1)
        for value in node.outputs:
            if value.name in taken:
                value.name = f"inner_{value.name}"
    for value, wanted in zip(model.graph.outputs, graph.outputs, strict=True):
        value.name = wanted
    for value in model.graph.inputs:
        value.metadata_props.clear()
    free = {str(axis) for value in model.graph.inputs for axis in value.shape if not isinstance(axis, int)}
    first = str(model.graph.inputs[0].shape[0])
    _rename_axes(model, {axis: "batch" if axis == first else graph.lengths for axis in free})


def _copies(shape) -> bool:
    """Whether a shape that is fixed says of an axis that it stays as it was."""
    return shape.const_value is not None and 0 in shape.const_value.numpy()


def _rename_axes(model, names: dict[str, str]) -> None:
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = type(value.shape)([names.get(str(axis), axis) for axis in value.shape])


class Session:
    """A file of `write` in ONNX Runtime, to be called."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.inner = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, *inputs: torch.Tensor) -> Arrays:
        given = {slot.name: array.numpy() for slot, array in zip(self.inner.get_inputs(), inputs, strict=True)}
        return tuple(map(torch.from_numpy, self.inner.run(None, given)))
