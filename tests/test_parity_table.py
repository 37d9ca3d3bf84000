"""Every row of the table of encoders holds: ours are the library's tokens, before and after they are saved."""

from collections import Counter
from collections.abc import Iterator

import pytest
from parity_rows import COMMITTED, ROWS, cases, check_row, check_saved, parity

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


def test_only_these_see_their_padding() -> None:
    """Norms over time and convolutions that are not masked, as their libraries made them; ours never does."""
    seen = {(row["model"], row["way"]) for row in ROWS if row["invariant"] is False}
    names = ("Wav2Vec2, group norm", "Wav2Vec2Conformer", "WAV2VEC2_BASE and HUBERT_BASE (small)")
    assert seen == {(name, "wrapped") for name in names}
