"""What must hold of a row of tools/parity.json, for the quick ones and for those of real weights."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load, save

TOOLS = Path(__file__).parent.parent / "tools"
sys.path.insert(0, str(TOOLS))
import parity  # noqa: E402
from parity_models import Case  # noqa: E402

from mmfm.config import EncoderSpec, serialization  # noqa: E402
from mmfm.pretrained import build  # noqa: E402

ROWS = json.loads((TOOLS / "parity.json").read_text("utf-8"))["rows"]
COMMITTED = {(row["model"], row["way"]): row for row in ROWS}


def cases(heavy: bool) -> Iterator[Case]:
    return (case for case in parity.CASES if case.heavy == heavy)


def check_row(found: parity.Tried, case: Case) -> None:
    """The tokens are the library's, and the table says so, and says rightly whether padding changes them."""
    row, committed = parity.compare(found.ours, found.peer, found.given), COMMITTED[case.name, found.way]
    row["preprocessing"] = found.prepared
    assert parity.holds(row), row
    assert parity.holds(committed) and committed["width"] == row["width"]
    assert (committed["library"], committed["modality"]) == (case.library, case.modality)
    assert committed["invariant"] == row["invariant"], row


@torch.no_grad()
def check_saved(found: parity.Tried) -> None:
    """EncoderSpec as JSON and weights as safetensors, built anew and loaded strictly: equal tokens, to the last bit."""
    assert found.encoder is not None
    blueprint = serialization.parse(EncoderSpec, serialization.write(found.encoder.blueprint), "blueprint")
    assert blueprint == found.encoder.blueprint
    kept = save({name: value.clone() for name, value in found.encoder.state_dict().items()})
    torch.manual_seed(1)
    again = build(blueprint).eval()
    again.load_state_dict(load(kept), strict=True)
    before, after = (way(found.given) for way in (found.ours, parity.wrapped(again)))
    assert torch.equal(before.x, after.x) and torch.equal(before.keep, after.keep)
