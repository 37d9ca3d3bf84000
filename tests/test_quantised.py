"""Locked weights in few bits: what is lost, what is not, and that packing again changes nothing."""

import pytest
import torch
from gguf import GGMLQuantizationType, dequantize, quantize
from torch import Tensor

from mmfm.config import Lora, UserError
from mmfm.models.adapters import LoraLinear
from mmfm.models.quantised import FORMATS, NF4, dense, kept, locked_linear, pack_q4_1

OUT, WIDTH = 24, 128


def weight_of(seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(OUT, WIDTH, generator=torch.Generator().manual_seed(seed))


def q4_1(weight: Tensor) -> tuple[Tensor, Tensor]:
    """What gguf's own code makes of a matrix: the bytes of its blocks, and the numbers that it reads from them."""
    kind = GGMLQuantizationType.Q4_1
    data = quantize(weight.numpy(), kind)
    return torch.from_numpy(data), torch.from_numpy(dequantize(data, kind))


@pytest.mark.parametrize(("base", "most"), [("int8", 0.008), ("nf4", 0.1)])
def test_what_few_bits_lose(base: str, most: float) -> None:
    """Less than these formats are known to, more than nothing; a row of zeros stays one."""
    weight = weight_of()
    weight[3] = 0
    packed = kept(weight, base, "a layer")
    error = (dense(packed, base) - weight).norm() / weight.norm()
    assert packed.shape[1] == FORMATS[base].row_bytes(WIDTH) < 0.3 * 4 * WIDTH
    assert 1e-4 < error < most and not dense(packed, base)[3].any()


@pytest.mark.parametrize("base", ["int8", "nf4", "q4_1"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 3e4])
def test_packing_again_gives_the_same_bytes(base: str, scale: float) -> None:
    """So that what is saved, loaded and packed anew is to the bit what it was."""
    weight = weight_of() * scale
    weight = q4_1(weight)[1] if base == "q4_1" else weight
    packed = kept(weight, base, "a layer")
    assert torch.equal(kept(dense(packed, base), base, "a layer"), packed)


def test_nf4_takes_the_nearest_of_its_sixteen_numbers() -> None:
    """By a search over all of them, times the largest of each block of 64."""
    weight, table = weight_of(), torch.tensor(NF4)
    blocks = weight.view(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    nearest = table[(blocks / largest)[..., None].sub(table).abs().argmin(-1)] * largest
    torch.testing.assert_close(dense(kept(weight, "nf4", "a layer"), "nf4"), nearest.view_as(weight), rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(5))
def test_the_blocks_of_gguf_are_found_again_to_the_bit(seed: int) -> None:
    """From numbers alone, which gguf's own code quantised and read back: the same numbers, in as many bytes."""
    weight = weight_of(seed) * 10.0 ** (seed - 2)
    data, read = q4_1(weight)
    packed = pack_q4_1(read)
    assert torch.equal(dense(packed, "q4_1"), read)
    assert packed.shape == data.shape and (packed == data).float().mean() > 0.99, "and all but a few the same bytes"


def test_numbers_of_no_such_blocks_are_refused() -> None:
    with pytest.raises(UserError, match=r'a.b: base="q4_1" keeps 4 bits .* 96 of 96 blocks .*; take base="nf4"'):
        kept(weight_of(), "q4_1", "a.b")
    with pytest.raises(UserError, match=r'a.b has rows of 40 numbers, and .* multiples of 64; take base="int8"'):
        LoraLinear(torch.nn.Linear(40, 8), Lora(base="nf4"), "a.b")


@pytest.mark.parametrize("base", ["bf16", "int8", "nf4", "q4_1"])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_map_and_its_gradient_are_those_of_the_numbers(base: str, autocast: bool) -> None:
    """Of x and of the bias, as autograd gives them for a plain layer of the unpacked weight."""
    weight = q4_1(weight_of())[1]
    packed, bias = kept(weight, base, "a layer"), torch.randn(OUT)
    found = []
    for call in (locked_linear, lambda x, w, b, base: torch.nn.functional.linear(x, dense(w, base), b)):
        x, b = torch.ones(2, 3, WIDTH).cumsum(1).requires_grad_(), bias.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = call(x, packed, b, base)
        out.float().square().sum().backward()
        found.append((out, x.grad, b.grad))
    assert found[0][0].dtype == (torch.bfloat16 if autocast else torch.float32)
    tolerance = {"rtol": 2e-2, "atol": 2e-1} if autocast else {"rtol": 1e-5, "atol": 1e-5}
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)


@pytest.mark.parametrize("base", ["int8", "nf4", "q4_1"])
def test_nothing_but_bytes_is_kept_for_the_backward(base: str) -> None:
    """Or a model of 4 bits would be one of 32 by the end of a forward."""
    packed = kept(q4_1(weight_of())[1], base, "a layer")
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        locked_linear(torch.randn(2, WIDTH, requires_grad=True), packed, None, base)
    assert [t.dtype for t in saved] == [torch.uint8]
