"""A run on the terminal: what stands below its bar, and the newest figures in words."""

from collections.abc import Iterable, Mapping

from rich.console import RenderableType
from rich.progress import Progress
from rich.text import Text

TOLD_WAIT = 0.05  # share of the time that a run waits for data, above which the bar says so


class Lines(Progress):
    """The bar, and below it, as wide as the terminal, what would not fit beside it."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield from (Text(task.fields["losses"]) for task in self.tasks if task.fields["losses"])


def describe(line: Mapping[str, float]) -> str:
    """The newest line of metrics.jsonl in words."""
    if not line:
        return ""
    losses = [f"{key.removeprefix('loss/')} {value:.3f}" for key, value in line.items() if key.startswith("loss/")]
    speed = [f"{line['steps_per_s']:.2f} steps/s", f"{line['samples_per_s']:.0f} samples/s"]
    speed += [f"{line['tokens_per_s']:.3g} tokens/s"]
    speed += [f"MFU {line['mfu']:.0%}"] if "mfu" in line else []
    speed += [f"waits for data {line['data_wait']:.0%}"] if line["data_wait"] > TOLD_WAIT else []
    return "  ".join((*speed, *losses))
