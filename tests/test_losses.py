"""The losses against open_clip's, against planted answers, and their gradients."""

import open_clip.loss
import pytest
import torch
import torch.nn.functional as F

from mmfm.objectives.contrastive_loss import sigmoid_contrast, softmax_contrast
from mmfm.objectives.cross_entropy import token_cross_entropy


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


def test_token_cross_entropy_is_the_mean_over_tokens():
    """Known logits: log v for a uniform guess, and torch's own mean otherwise; nothing to predict is zero."""
    uniform = torch.zeros(4, 10)
    assert token_cross_entropy(uniform, torch.tensor([1, 2, 3, 4])).item() == pytest.approx(
        torch.tensor(10.0).log().item()
    )
    logits, labels = torch.randn(5, 10, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 9, 3, 3, 1])
    torch.testing.assert_close(token_cross_entropy(logits, labels), F.cross_entropy(logits, labels))
    assert token_cross_entropy(logits[:0], labels[:0]).item() == 0
