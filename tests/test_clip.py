"""CLIP without waste is CLIP: its features, losses and gradients are open_clip's, whatever is shared or left out."""

import open_clip
import pytest
import torch
from torch import Tensor

from mmfm.config import UserError
from mmfm.losses import softmax_contrast
from mmfm.towers.clip import Clip, from_open_clip, prefix_tree

START, END, CONTEXT = 48, 49, 77
ROWS = ([7, 3, 5], [7, 3, 5, 2, 9], [7], [4, 7, 3, 5], [7, 3, 5])  # shared beginnings, one a prefix, two alike


@pytest.fixture
def reference() -> open_clip.CLIP:
    torch.manual_seed(0)
    vision = {"image_size": 24, "layers": 3, "width": 32, "head_width": 8, "patch_size": 8}
    text = {"context_length": CONTEXT, "vocab_size": 50, "width": 16, "heads": 2, "layers": 3}
    model = open_clip.CLIP(24, vision, text, output_dict=True)
    for p in model.parameters():  # biases and norms start at a value that hides mistakes
        p.data += 0.1 * torch.randn_like(p)
    return model.double()


@pytest.fixture
def model(reference: open_clip.CLIP) -> Clip:
    return from_open_clip(reference.state_dict(), head_dim=8).double()


def marked(rows: tuple[list[int], ...], time: int = CONTEXT) -> Tensor:
    """As open_clip's tokenizer gives them: start, text, end, zeros."""
    return torch.tensor([[START, *row, END] + [0] * (time - len(row) - 2) for row in rows])


def pixels(count: int) -> Tensor:
    return torch.randn(count, 3, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def loss_of(model: Clip, ids: Tensor) -> Tensor:
    image, text = model.encode_image(pixels(len(ids)), normalize=True), model.encode_text(ids, normalize=True)
    return softmax_contrast(image, text, torch.arange(len(ids)), model.logit_scale.exp())


def test_loss_and_gradients_are_open_clips(reference: open_clip.CLIP, model: Clip) -> None:
    """With copied weights: the same loss, and the same gradient of every parameter."""
    ids = marked(ROWS)
    expected = open_clip.ClipLoss()(**reference(pixels(len(ids)), ids))
    expected.backward()
    loss = loss_of(model, ids)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    gradients = {name: p.grad for name, p in reference.named_parameters()}
    named = from_open_clip(gradients, head_dim=8).double().state_dict()  # the renaming serves gradients too
    assert len(named) == len(gradients)
    for name, p in model.named_parameters():
        torch.testing.assert_close(
            p.grad, named[name], rtol=1e-5, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("normalize", [False, True])
def test_features_are_open_clips(reference: open_clip.CLIP, model: Clip, normalize: bool) -> None:
    ids = marked(ROWS)
    torch.testing.assert_close(model.encode_text(ids, normalize), reference.encode_text(ids, normalize))
    torch.testing.assert_close(model.encode_image(pixels(2), normalize), reference.encode_image(pixels(2), normalize))


def test_padding_and_company_change_nothing(model: Clip) -> None:
    """Padded to 77, cut to the batch's longest, or alone: the same features; ids behind the end mark are not read."""
    whole = model.encode_text(marked(ROWS))
    cut = marked(ROWS, max(map(len, ROWS)) + 2)
    torch.testing.assert_close(model.encode_text(cut), whole)
    torch.testing.assert_close(torch.cat([model.encode_text(marked((row,), len(row) + 2)) for row in ROWS]), whole)
    noisy = marked(ROWS)
    noisy[:, 20:] = START
    torch.testing.assert_close(model.encode_text(noisy), whole)


def test_tree_has_each_beginning_once() -> None:
    """Nodes are the distinct prefixes; following a path gives back the text."""
    ids = marked(ROWS)
    tree = prefix_tree(ids)
    texts = [[START, *row, END] for row in ROWS]
    assert len(tree.token) == len({tuple(text[: i + 1]) for text in texts for i in range(len(text))})
    for text, path, end in zip(texts, tree.path, tree.end, strict=True):
        assert tree.token[path[: end + 1]].tolist() == text
        assert tree.depth[path[: end + 1]].tolist() == list(range(len(text)))
    assert torch.equal(tree.path.flatten()[tree.place], torch.arange(len(tree.token)))


def test_bf16_stays_near(reference: open_clip.CLIP, model: Clip) -> None:
    """Under autocast to bf16 the loss is no further from the exact one than open_clip's; every gradient is finite."""
    ids = marked(ROWS)
    exact = loss_of(model, ids)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = open_clip.ClipLoss()(**reference.float()(pixels(5).float(), ids))
        image, text = model.float().encode_image(pixels(5).float(), True), model.encode_text(ids, True)
        loss = softmax_contrast(image, text, torch.arange(5), model.logit_scale.exp())
    loss.backward()
    assert abs(loss - exact) <= max(abs(theirs - exact), 0.02)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("ln_pre", "image.norm_pre.bias"),
        ("c_fc", "image.blocks.0.mlp.fc1.bias"),
        ("visual.conv1", "image.patch.weight"),
    ],
)
def test_a_missing_tensor_is_named(reference: open_clip.CLIP, change: str, named: str) -> None:
    state = {name: tensor for name, tensor in reference.state_dict().items() if change not in name}
    with pytest.raises(UserError, match=named):
        from_open_clip(state, head_dim=8)


def test_an_unknown_tensor_is_named(reference: open_clip.CLIP) -> None:
    with pytest.raises(UserError, match="attn_pool"):
        from_open_clip({**reference.state_dict(), "visual.attn_pool.query": torch.zeros(1)}, head_dim=8)
