"""The tests' own check of annotations, without which a shape in mmfm would be a comment."""

from collections.abc import Iterator

import checked
import jaxtyping
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from mmfm.data.batch import Items
from mmfm.models.layers import positions_of
from mmfm.models.mel import LogMel

KEEP = torch.ones(2, 3, dtype=torch.bool)


def outer(x: Float[Tensor, "n"], y: Float[Tensor, "m"], swap: bool = False) -> Float[Tensor, "n m"]:
    return y[:, None] * x if swap else x[:, None] * y


def parts(x: Float[Tensor, "n"], keep: int) -> Iterator[Float[Tensor, "k"]]:
    yield x[:keep]


def refused(call, *args) -> None:
    with pytest.raises(Exception, match=r"violates type hint|Type-check error|is not an instance"):
        call(*args)


def test_mmfm_is_checked() -> None:
    """Functions, methods and dataclasses: a dimension too few, a float for a truth, a text for a tensor."""
    assert positions_of(KEEP).shape == (2, 3)
    refused(positions_of, KEEP[0])
    refused(positions_of, KEEP.float())
    refused(lambda x: Items(x=x, keep=KEEP, rows=torch.arange(2)), "pixels")
    refused(LogMel.forward, None, "wave", KEEP)


def test_a_letter_is_one_size_in_a_call_and_another_in_the_next() -> None:
    call = checked.checked(outer)
    assert call(torch.ones(2), torch.ones(3)).shape == (2, 3)
    assert call(torch.ones(4), torch.ones(5)).shape == (4, 5)
    refused(call, torch.ones(2), torch.ones(3), True)  # the result is m n
    refused(call, torch.ones(2), torch.ones(3), "yes")
    assert call(torch.ones(2), torch.ones(2), True).shape == (2, 2)


def test_a_generator_is_checked_when_it_is_called() -> None:
    call = checked.checked(parts)
    assert [len(part) for part in call(torch.ones(4), 2)] == [2]
    refused(lambda: list(call(torch.ones(4, 4), 2)))


def test_it_can_be_switched_off() -> None:
    """As a trace needs it, whose sizes are no numbers."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        assert positions_of(KEEP.long()).shape == (2, 3)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
