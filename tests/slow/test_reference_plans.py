"""What reference runs say of their cost is what `mmfm plan` says now, and planning holds no weights."""

import resource
import sys
from pathlib import Path

import pytest

from mmfm.config.load import read_run

TOOLS = Path(__file__).parent.parent.parent / "tools"
sys.path.insert(0, str(TOOLS))
import reference  # noqa: E402


@pytest.mark.parametrize("path", reference.paths(), ids=lambda path: path.stem)
def test_figures_are_current(path: Path) -> None:
    new = reference.block(reference.plans(read_run(path)))
    assert reference.current(path.read_text("utf-8"), new), f"python tools/reference.py writes them:\n{new}"


def test_a_billion_weights_are_planned_without_them() -> None:
    """After all of these the process has never held what the weights, gradients and moments of the largest take."""
    assert 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 16 * 1.2e9 / 2
