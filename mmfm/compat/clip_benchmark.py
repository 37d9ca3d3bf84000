"""CLIP_benchmark: its table of loaders, and the accuracy of its zero-shot classification."""

from collections.abc import Callable
from typing import Any

import clip_benchmark.cli
import clip_benchmark.metrics.zeroshot_classification as zeroshot
import clip_benchmark.models as models

main = clip_benchmark.cli.main


def register_loader(name: str, load: Callable[[str, str, str | None, str], tuple[Any, Any, Any]]) -> None:
    """`--model_type NAME` is known to it from now on; twice is as once."""
    models.TYPE2FUNC[name] = load
    if name not in models.MODEL_TYPES:
        models.MODEL_TYPES.append(name)


def choose_accuracy(accuracy: Callable[..., list[float]]) -> None:
    """From now on it scores by this function of output, target and topk."""
    zeroshot.accuracy = accuracy
