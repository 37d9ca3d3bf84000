"""Distillation of vectors: without the mean that all of them share; how a teacher reads texts and pictures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional
from toys import toy_batch, toy_config

from mmfm.config import Distil
from mmfm.models.model import build
from mmfm.objectives.distil import Teacher, embedding_loss, of_like_length, resized
from mmfm.preprocessing.tokenizer import load_tokenizer
from mmfm.runtime.distributed import SingleProcess
from mmfm.training.teachers import reading

ALONE = SingleProcess()
CENTERED = Distil(modality="text", teacher="t", features=1.0, center="batch")


def test_without_their_mean_vectors_are_those_of_numpy() -> None:
    """Of both losses, by another way: the teacher's vectors, and for similarities the student's, with the mean of all
    taken away."""
    draw = torch.Generator().manual_seed(0)
    x, t = (F.normalize(torch.randn(6, 3, generator=draw, dtype=torch.float64) + 2, dim=1) for _ in range(2))
    off = ~torch.eye(6, dtype=torch.bool)
    mine, theirs = (np.stack([row - one.numpy().mean(0) for row in one.numpy()]) for one in (x, t))
    mine, theirs = (torch.from_numpy(one / np.linalg.norm(one, axis=1)[:, None]) for one in (mine, theirs))
    both = replace(CENTERED, features=0.5, similarities=2.0, similarity_temperature=0.3)
    scores = [(one @ one.T / 0.3)[off].view(6, 5).log_softmax(1) for one in (mine, theirs)]
    near = F.kl_div(*scores, reduction="sum", log_target=True) / 6
    expected = 0.5 * (1 - F.cosine_similarity(x, theirs).mean()) + 2 * near
    torch.testing.assert_close(embedding_loss(both, x, t, ALONE, 32.0), expected)


def test_one_vector_for_all_items_is_next_to_all_of_a_loss_that_is_not_centered() -> None:
    """Teachers' vectors that are nearly parallel: the student that gives their mean loses nothing by cosine, and all of
    it where the mean is taken away."""
    draw = torch.Generator().manual_seed(0)
    t = F.normalize(torch.tensor([10.0, 0.0, 0.0, 0.0]) + torch.randn(20, 4, generator=draw), dim=1)
    alike = F.normalize(t.mean(0), dim=0).expand_as(t)
    cosine = replace(CENTERED, center="none")
    assert embedding_loss(cosine, alike, t, ALONE, 32.0) < 0.05
    assert embedding_loss(CENTERED, alike, t, ALONE, 32.0) > 0.8


@pytest.mark.parametrize("size", [0, 1, 2])
def test_few_items_without_their_mean_have_finite_gradients(size: int) -> None:
    """One is its own mean, and two that are alike are: nothing is left of the student's, which has no direction."""
    x = F.normalize(torch.ones(size, 3), dim=1).requires_grad_()
    loss = embedding_loss(replace(CENTERED, similarities=1.0), x, torch.eye(3)[:size], ALONE, 32.0)
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.isfinite() and gradient.isfinite().all()


def test_an_encoder_reads_texts_of_like_length_together_and_gives_them_in_their_order() -> None:
    """Every place once, none padded to more than twice its length; the vectors are those of each text alone."""
    lengths = torch.tensor([3, 17, 1, 8, 9, 2, 30, 15, 0])
    parts = of_like_length(lengths)
    assert torch.cat(parts).sort().values.tolist() == list(range(len(lengths))) and len(parts) > 2
    assert all(2 * int(lengths[part].min()) >= int(lengths[part].max()) for part in parts)
    words = load_tokenizer("bytes")
    model = build(toy_config(), words.size).double()
    del model.heads["text"]  # an encoder alone
    teacher = Teacher(model, items_of=reading(words))
    texts = ["ab", "a longer text about dogs", "a cat", "b", "two cats"]
    items = toy_batch(6).items["text"].take(torch.arange(5))
    alone = [teacher.embed("text", items.take(torch.tensor([at])), [text]) for at, text in enumerate(texts)]
    torch.testing.assert_close(teacher.embed("text", items, texts), torch.cat(alone))


def test_pictures_of_another_size_are_resized_as_torchvision_does() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (2, 3, 24, 32), generator=draw, dtype=torch.uint8)
    for size in ([12, 20], [48, 64]):
        expected = functional.resize_image(x, size, antialias=True).int()
        assert int((resized(x, (size[0], size[1])).int() - expected).abs().max()) <= 1
