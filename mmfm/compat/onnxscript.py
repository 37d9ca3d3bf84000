"""onnxscript: how it writes down an attribute of a node."""

from typing import Any

from onnxscript import ir


def set_integer(node: Any, name: str, value: int) -> None:
    node.attributes[name] = ir.AttrInt64(name, value)
