"""open_clip: the place where its loaders look up the class of a model, which it keeps to itself."""

from collections.abc import Callable
from typing import Any

import open_clip


def model_class() -> Any:
    """What `open_clip.create_model` makes of a configuration with "custom_text"."""
    return open_clip.factory.CustomTextCLIP


def choose_model_class(chooser: Callable[..., Any]) -> None:
    """From now on it makes what this gives."""
    open_clip.factory.CustomTextCLIP = chooser  # pyright: ignore[reportAttributeAccessIssue]
