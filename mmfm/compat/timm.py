"""timm: its registry of models, which writes into the module that it is called from."""

import sys
from collections.abc import Callable
from typing import Any

import timm
from timm.models import register_model


def register_entry(entry: Callable[..., Any]) -> None:
    """`timm.create_model` knows this function's name from now on; twice is as once."""
    if timm.is_model(entry.__name__):
        return
    own = sys.modules[entry.__module__]
    names = getattr(own, "__all__", None)
    register_model(entry)
    if names is None:
        vars(own).pop("__all__", None)  # timm notes the name there, which would hide the others
