"""Every row of the table of encoders holds: ours are the library's tokens, before and after they are saved."""

from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from parity_rows import COMMITTED, ROWS, cases, check_row, check_saved, parity
from timm import data as timm

from mmfm.config import AudioPreprocess, ImagePreprocess

# torch's attention warns of the two kinds of mask that transformers' WavLM gives it.
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask:UserWarning")


@pytest.fixture(scope="module", params=list(cases(heavy=False)), ids=lambda case: case.name)
def tried(request, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[parity.Case, list[parity.Tried]]]:
    yield request.param, list(parity.tried(request.param, tmp_path_factory.mktemp("peer")))


def test_tokens_are_the_librarys(tried) -> None:
    """In each way that the table has for the model, and in no other."""
    case, ways = tried
    assert {found.way for found in ways} == {way for name, way in COMMITTED if name == case.name}
    for found in ways:
        check_row(found, case)


def test_a_saved_encoder_is_the_same(tried) -> None:
    """Of the wrapped ones; our own modules are saved in other tests."""
    for found in tried[1]:
        if found.encoder is not None:
            check_saved(found)


def test_the_table_is_whole() -> None:
    """A row for each encoder that the tool knows, none of another, forty and more, and each library among them."""
    assert len({row["model"] for row in ROWS}) == len({case.name for case in parity.CASES}) >= 40
    assert {name for name, _ in COMMITTED} == {case.name for case in parity.CASES}
    assert len(ROWS) == len(COMMITTED)
    of = Counter((row["library"], row["modality"]) for row in ROWS if row["way"] == "wrapped")
    assert len(of) == 10 and min(of.values()) >= 1


def test_every_preparation_is_measured() -> None:
    """Of pictures and sounds, no further than 2 of 255 from the library's own; texts and given frames have none."""
    for row in ROWS:
        if row["modality"] == "text" or row["model"] == "Conformer":
            assert row["preprocessing"] is None, row
        else:
            assert row["preprocessing"] is not None and row["preprocessing"] <= 2, row
    of = Counter(row["library"] for row in ROWS if row["preprocessing"] is not None)
    assert set(of) == {"timm", "open_clip", "hf", "torchaudio", "wheel"} and of["timm"] >= 22


TIMM = timm.create_transform((3, 32, 32), interpolation="bicubic", crop_pct=1.0, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize(
    ("wrong", "least", "most"),
    [
        ({}, 0, 0.01),
        ({"interpolation": "bilinear"}, 2.1, 255),
        ({"resize_mode": "stretch"}, 2.1, 255),
        ({"crop_pct": 0.875}, 2.1, 255),
        ({"mean": (0.52, 0.5, 0.5)}, 5, 5.2),
        ({"height_px": 33}, float("inf"), float("inf")),
    ],
)
def test_another_preparation_does_not_hold(wrong, least: float, most: float) -> None:
    """Planted: one setting of pictures that is not the library's; a mean that is 0.02 off is 5.1 levels off."""
    right = {"interpolation": "bicubic", "resizer": "pillow", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    pixels = ImagePreprocess(**{"height_px": 32, "width_px": 32, "resize_mode": "shortest", **right, **wrong})
    found = prepared_by(TIMM, pixels=pixels)
    assert found is not None and least <= found <= most
    row = {"preprocessing": found, "difference": 0.0, "size": 1.0}
    assert parity.holds(row) == (not wrong)


def test_other_features_of_sounds_do_not_hold() -> None:
    """Planted: features a fiftieth too loud, and a frame too many."""
    louder = prepared_by(
        lambda wave: wave, sound=AudioPreprocess(rate_hz=16_000), features=lambda x, keep: (x * 1.02, keep)
    )
    assert louder == pytest.approx(0.02 * 255, rel=1e-3)
    longer = lambda x, keep: (torch.nn.functional.pad(x, (0, 1)), keep)  # noqa: E731
    assert prepared_by(lambda wave: wave, sound=AudioPreprocess(rate_hz=16_000), features=longer) == float("inf")


def prepared_by(theirs, pixels=None, sound=None, features=None) -> float | None:
    blueprint = SimpleNamespace(pixels=pixels, sound=sound, words=None)
    encoder = SimpleNamespace(blueprint=blueprint, features=features)
    return parity.prepared(encoder, parity.Peer(source="", weights={}, run=lambda x, keep: x, prepare=theirs))


def test_only_these_see_their_padding() -> None:
    """Norms over time and convolutions that are not masked, as their libraries made them; ours never does."""
    seen = {(row["model"], row["way"]) for row in ROWS if row["invariant"] is False}
    names = ("Wav2Vec2, group norm", "Wav2Vec2Conformer", "WAV2VEC2_BASE and HUBERT_BASE (small)")
    assert seen == {(name, "wrapped") for name in names}
