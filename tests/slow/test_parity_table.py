"""The rows of the table of encoders with real weights."""

from pathlib import Path

import pytest
from parity_rows import COMMITTED, cases, check_row, check_saved, parity


@pytest.mark.parametrize("case", list(cases(heavy=True)), ids=lambda case: case.name)
def test_real_weights_give_the_librarys_tokens(case: parity.Case, tmp_path: Path) -> None:
    """As for the small ones: the same numbers, the same verdict on padding, and the same after saving."""
    ways = list(parity.tried(case, tmp_path))
    assert {found.way for found in ways} == {way for name, way in COMMITTED if name == case.name}
    for found in ways:
        check_row(found, case)
        if found.encoder is not None:
            check_saved(found)
