"""Forgetting to initialise is loud: memory that nobody wrote to holds nan here, and a fresh model has none."""

import pytest
import torch
from torch import nn
from toys import PAIRS, TEXT_IDS, toy_config

from mmfm.config import AudioCodec, ImageCodec, Model
from mmfm.models.model import build

CODECS = {
    "image_codec": ImageCodec(height_px=8, width_px=16, channels=1, patch_px=4, levels=(3, 3), width=8, depth=1),
    "audio_codec": AudioCodec(),
}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def poison(*args: object, **kwargs: object) -> torch.Tensor:
        found = empty(*args, **kwargs)
        return found.fill_(torch.nan) if found.is_floating_point() and not found.is_meta else found

    monkeypatch.setattr(torch, "empty", poison)


def forgotten(model: nn.Module) -> list[str]:
    return [name for name, value in model.state_dict().items() if value.isnan().any()]


def test_what_is_forgotten_is_seen() -> None:
    """Planted: a parameter that its module leaves as it was allocated."""
    model = nn.Linear(2, 2)
    assert forgotten(model) == []
    model.extra = nn.Parameter(torch.empty(3))
    assert forgotten(model) == ["extra"]


@pytest.mark.parametrize("cfg", [Model(), toy_config(), toy_config(**CODECS)], ids=["default", "toy", "codecs"])
def test_a_fresh_model_is_initialised(cfg: Model) -> None:
    """Every parameter and buffer of towers, trunk, codecs, heads and scales."""
    model = build(cfg, TEXT_IDS, PAIRS)
    assert len(model.state_dict()) > 40 and forgotten(model) == []
