"""The losses against open_clip's, against planted answers, and their gradients."""

import math

import open_clip.loss
import pytest
import torch
import torch.nn.functional as F
from ranks import on_ranks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmfm.objectives.contrastive_loss import sigmoid_contrast, softmax_contrast
from mmfm.objectives.cross_entropy import linear_cross_entropy


def vectors(n: int = 7, d: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(F.normalize(torch.randn(n, d, generator=draw, dtype=torch.float64), dim=-1) for _ in range(2))


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def test_softmax_without_repeats_is_open_clips():
    """Value and gradients, that of the scale too, equal ClipLoss where no two texts are the same."""
    a, b = (x.requires_grad_() for x in vectors())
    scale = number(9.0)
    ours = softmax_contrast(a, b, torch.arange(7), scale)
    grads = torch.autograd.grad(ours, (a, b, scale))
    theirs = open_clip.loss.ClipLoss()(a, b, scale)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(grads, torch.autograd.grad(theirs, (a, b, scale)))


def test_sigmoid_without_repeats_is_open_clips():
    """The same for SigLipLoss and its bias."""
    a, b = (x.requires_grad_() for x in vectors())
    scale, bias = number(9.0), number(-4.0)
    ours = sigmoid_contrast(a, b, torch.arange(7), scale, bias)
    grads = torch.autograd.grad(ours, (a, b, scale, bias))
    theirs = open_clip.loss.SigLipLoss()(a, b, scale, bias)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(grads, torch.autograd.grad(theirs, (a, b, scale, bias)))


@pytest.mark.parametrize("loss", [softmax_contrast, sigmoid_contrast])
def test_perfect_embeddings_of_repeated_texts_reach_the_floor(loss):
    """Six samples of three texts, embedded by text: softmax can do no better than the entropy of its two positives, and
    sigmoid goes to zero; with the repeats taken for negatives neither would."""
    same = torch.tensor([0, 1, 2, 0, 1, 2])
    z = torch.eye(3, dtype=torch.float64)[same]
    floor = {softmax_contrast: torch.tensor(2.0).log().item(), sigmoid_contrast: 0.0}[loss]
    apart = loss(z, z, torch.arange(6), number(50.0), number(-25.0))
    assert loss(z, z, same, number(50.0), number(-25.0)).item() == pytest.approx(floor, abs=1e-6)
    assert apart.item() > 0.5


@pytest.mark.parametrize("loss", [softmax_contrast, sigmoid_contrast])
def test_the_order_of_the_batch_does_not_matter(loss):
    a, b = vectors()
    same, order = torch.tensor([0, 1, 2, 0, 4, 5, 5]), torch.randperm(7, generator=torch.Generator().manual_seed(1))
    scale, bias = number(7.0), number(-3.0)
    torch.testing.assert_close(loss(a, b, same, scale, bias), loss(a[order], b[order], same[order], scale, bias))


@pytest.mark.parametrize("loss", [softmax_contrast, sigmoid_contrast])
def test_an_empty_share_is_zero_and_not_nan(loss):
    """No pair in the whole batch: zero, with a gradient of zero for the scale."""
    scale, nothing = number(7.0), torch.zeros(0, 5, dtype=torch.float64)
    value = loss(nothing, nothing, torch.zeros(0, dtype=torch.int64), scale, number(0.0))
    value.backward()
    assert value.item() == 0 and scale.grad.item() == 0


def test_a_positive_pulls_and_a_negative_pushes():
    """Descent moves a row towards its positives and away from the rest."""
    a, b = vectors()
    a.requires_grad_()
    softmax_contrast(a, b, torch.tensor([0, 1, 2, 3, 4, 5, 0]), number(10.0)).backward()
    towards = -(a.grad @ b.T)
    assert towards[0, 0] + towards[0, 6] > 0 and towards[0, 1:6].mean() < 0


def naive_softmax(a, b, same, scale, bias=None):
    """The loss as it is written down, with the whole square of scores."""
    target = (same[:, None] == same).to(a.dtype)
    target = target / target.sum(1, keepdim=True)
    return sum(-(target * (scale * x @ y.T).log_softmax(1)).sum() for x, y in ((a, b), (b, a))) / (2 * len(a))


def naive_sigmoid(a, b, same, scale, bias):
    sign = 2 * (same[:, None] == same).to(a.dtype) - 1
    return -F.logsigmoid(sign * (scale * a @ b.T + bias)).sum() / len(a)


NAIVE = [(softmax_contrast, naive_softmax), (sigmoid_contrast, naive_sigmoid)]


@pytest.mark.parametrize(("tiled", "naive"), NAIVE)
@pytest.mark.parametrize("rows", [1, 5, 11, 12, 100])
def test_tiles_of_any_size_are_the_whole_square(tiled, naive, rows: int):
    """11 pairs with repeats, in tiles of so many rows: value and all gradients, in float64."""
    a, b = (x.requires_grad_() for x in vectors(11))
    same, scale, bias = torch.tensor([0, 1, 2, 0, 4, 5, 5, 7, 0, 9, 9]), number(7.0), number(-3.0)
    inputs = (a, b, scale) if naive is naive_softmax else (a, b, scale, bias)
    ours = tiled(a, b, same, scale, bias, tile_mb=rows * 11 * 8 / 2**20)
    theirs = naive(a, b, same, scale, bias)
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=0)
    found, expected = (torch.autograd.grad(3 * loss, inputs) for loss in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("tiled", "naive"), NAIVE)
@pytest.mark.parametrize("held", [(3, 8), (0, 11), (5, 0, 4, 2)])
def test_ranks_share_the_loss_and_its_gradients(tiled, naive, held: tuple[int, ...]):
    """On ranks that hold so many rows each: shares add up, and each rank's gradients are those of its rows."""
    a, b = vectors(11)
    same = torch.tensor([0, 1, 2, 0, 4, 5, 5, 7, 0, 9, 9])
    inputs = [x.requires_grad_() for x in (a, b, number(7.0), number(-3.0))]
    whole = naive(inputs[0], inputs[1], same, *inputs[2:])
    expected = torch.autograd.grad(whole, inputs, allow_unused=True)
    bounds = [sum(held[:rank]) for rank in range(len(held) + 1)]

    def work(joined):
        rows = slice(bounds[joined.rank], bounds[joined.rank + 1])
        mine = [x.detach()[rows].requires_grad_() for x in (a, b)] + [number(7.0), number(-3.0)]
        loss = tiled(mine[0], mine[1], same[rows], *mine[2:], joined, 2 * 11 * 8 / 2**20)
        return loss.detach(), torch.autograd.grad(loss, mine, allow_unused=True)

    found = on_ranks(len(held), work)
    torch.testing.assert_close(sum(loss for loss, _ in found), whole.detach(), rtol=1e-13, atol=0)
    for at, joined in enumerate((torch.cat, torch.cat, sum, sum)):
        parts = [gradients[at] for _, gradients in found]
        if expected[at] is None:
            assert parts == [None] * len(held)
        else:
            torch.testing.assert_close(joined(parts), expected[at], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("tiled", "naive"), NAIVE)
def test_no_square_is_ever_held(tiled, naive):
    """2,048 pairs in tiles of 16 rows: no tensor that is made on the way has more numbers than 64 rows of scores."""
    a, b = (x.float().requires_grad_() for x in vectors(2_048, 8))
    sizes: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))
            return out

    scale, bias, same = torch.tensor(7.0), torch.tensor(-3.0), torch.arange(2_048)
    with Watch():
        tiled(a, b, same, scale, bias, tile_mb=16 * 2_048 * 4 / 2**20).backward()
    assert max(sizes) <= 64 * 2_048
    sizes.clear()
    with Watch():
        naive(a, b, same, scale, bias)
    assert max(sizes) == 2_048**2


def test_without_gradients_the_losses_are_the_same():
    a, b = vectors()
    for loss in (softmax_contrast, sigmoid_contrast):
        learned = loss(a.clone().requires_grad_(), b, torch.arange(7), number(7.0), number(-3.0))
        with torch.no_grad():
            assert loss(a, b, torch.arange(7), number(7.0), number(-3.0)) == learned


def test_cross_entropy_of_nothing_and_of_a_guess():
    """Known logits: log v a token for a uniform guess; no token is zero, with a gradient of zero for the table."""
    states, weight = torch.randn(4, 3), torch.zeros(10, 3, requires_grad=True)
    assert linear_cross_entropy(states, weight, torch.tensor([1, 2, 3, 4])).item() == pytest.approx(4 * math.log(10.0))
    none = linear_cross_entropy(states[:0], weight, torch.tensor([], dtype=torch.int64))
    none.backward()
    assert none.item() == 0 and weight.grad is not None and not weight.grad.any()


@pytest.mark.parametrize("tokens", [1, 4, 6, 7, 100])
def test_cross_entropy_in_tiles_is_torchs_own(tokens: int):
    """7 tokens of a vocabulary of 10, in tiles of so many, the last one short: value and gradients, in float64."""
    draw = torch.Generator().manual_seed(0)
    states, weight = (
        torch.randn(size, generator=draw, dtype=torch.float64, requires_grad=True) for size in ((7, 5), (10, 5))
    )
    labels = torch.tensor([0, 9, 3, 3, 1, 0, 7])
    ours = linear_cross_entropy(states, weight, labels, tile_mb=tokens * 10 * 8 / 2**20)
    theirs = F.cross_entropy(states @ weight.T, labels, reduction="sum")
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=0)
    found, expected = (torch.autograd.grad(2 * loss, (states, weight)) for loss in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_cross_entropy_of_bf16_weights_adds_up_in_single_precision():
    """A thousand tiles of one token: in bf16 the table's gradient would lose what each adds to a large sum."""
    draw = torch.Generator().manual_seed(0)
    states = torch.rand(1_000, 4, generator=draw).bfloat16().requires_grad_()
    weight = torch.zeros(8, 4, dtype=torch.bfloat16, requires_grad=True)
    loss = linear_cross_entropy(states, weight, torch.zeros(1_000, dtype=torch.int64), tile_mb=8 * 4 / 2**20)
    loss.backward()
    assert loss.dtype == torch.float32 and weight.grad is not None and weight.grad.dtype == torch.bfloat16
    exact = -(states.double().sum(0) * 7 / 8)
    torch.testing.assert_close(weight.grad[0].double(), exact.detach(), rtol=5e-3, atol=0)
