"""Of several draws the planted best is kept; 8 bits write nearly what fp32 writes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from toys import pick, toy_batch, toy_model

from mmfm.config import UserError
from mmfm.config.task import parse
from mmfm.data.batch import Items
from mmfm.generation import GenerationConfig, embed_items, int8, nearness, source_embeddings, write
from mmfm.generation.best_of import best
from mmfm.generation.int8 import Int8Linear
from mmfm.runtime.randomness import splitmix64


def test_the_best_of_each_row_s_draws():
    scores = torch.tensor([0.1, 0.9, 0.3, -0.2, -0.5, -0.2])
    assert best(scores, 3) == ([1, 3], [pytest.approx(0.9), pytest.approx(-0.2)])


def test_nearness_is_the_mean_cosine_over_the_sources():
    """Two sources, of which each sample has its own embedding; what was written is embedded once for all."""
    draw = torch.Generator().manual_seed(0)
    image, audio, made = (F.normalize(torch.randn(n, 4, generator=draw), dim=1) for n in (3, 2, 3))
    judge = nearness({"image": ([1, 4, 6], image), "audio": ([4, 6], audio)}, lambda ids: made[[row[0] for row in ids]])
    found = judge([4, 4, 6], [[0], [2], [1]])
    expected = [(made[m] @ image[i] + made[m] @ audio[a]) / 2 for m, i, a in ((0, 1, 0), (2, 1, 0), (1, 2, 1))]
    torch.testing.assert_close(found, torch.stack(expected))


def test_the_planted_draw_is_kept():
    """A judge that likes one candidate of each row gets it; candidates are what the seeds of the draws give alone."""
    model, batch, task = toy_model(3), toy_batch(), parse("image>text")
    seen = {}

    def judge(rows, ids):
        for row, each in zip(rows, ids, strict=True):
            seen.setdefault(row, []).append(each)
        return torch.tensor([float(at % 5 == row % 5) for at, row in enumerate(rows)])

    how = GenerationConfig(max_tokens=8, temperature=1.5, best_of=5)
    rows, ids, _, scores, *_ = write(model, task, batch, how, seeds=torch.arange(6), judge=judge)
    assert ids == [seen[row][row % 5] for row in rows] and scores == [1.0] * len(rows)
    assert all(len({tuple(each) for each in draws}) > 1 for draws in seen.values())
    one = write(model, task, batch, GenerationConfig(max_tokens=8, temperature=1.5), seeds=torch.arange(6)).ids
    assert one == [seen[row][0] for row in rows]
    other = write(
        model, task, pick(batch, [rows[1]]), GenerationConfig(max_tokens=8, temperature=1.5),
        seeds=splitmix64(torch.tensor([rows[1]]) + 2 * torch.tensor(-7046029254386353131)),
    )  # fmt: skip
    assert other.ids == [seen[rows[1]][2]]
    with pytest.raises(UserError, match="best_of=5 needs what judges them"):
        write(model, task, batch, how)


def test_the_model_judges_by_its_own_embeddings():
    """Texts drawn for a picture, embedded by the model's own tower: the kept one has the largest cosine of its row."""
    model, batch, task = toy_model(3), toy_batch(), parse("image>text")
    sources = source_embeddings(model, task, batch)
    every = {}

    def embed(ids):
        x = torch.nn.utils.rnn.pad_sequence([torch.tensor(row or [0]) for row in ids], batch_first=True)
        keep = torch.arange(x.shape[1]) < torch.tensor([max(len(row), 1) for row in ids])[:, None]
        z = embed_items(model, "text", Items(x=x, keep=keep, rows=torch.arange(len(ids))))
        every["ids"], every["z"] = ids, z
        return z

    how = GenerationConfig(max_tokens=5, temperature=2.0, best_of=6)
    rows, ids, _, scores, *_ = write(model, task, batch, how, seeds=torch.arange(6), judge=nearness(sources, embed))
    assert list(sources) == ["image"] and sources["image"][0] == rows
    cosines = (every["z"] * sources["image"][1].repeat_interleave(6, 0)).sum(1).view(-1, 6)
    assert scores == pytest.approx(cosines.amax(1).tolist()) and (cosines.std(1) > 0).all()
    assert ids == [every["ids"][6 * at + int(cosines[at].argmax())] for at in range(len(rows))]


def test_a_linear_map_of_8_bits_is_near_and_its_rows_are_its_rows():
    """Within what rounding allows of weights and inputs, a bias included; and exactly what its own integers say."""
    draw = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(*size, generator=draw) for size in ((24, 64), (24,), (5, 64)))
    weight *= torch.linspace(0.01, 10, 24)[:, None]  # a scale for each output
    small = Int8Linear.of(weight, bias)
    error = (small(x) - F.linear(x, weight, bias)).abs() / weight.norm(dim=1)
    assert 0 < error.max() < 0.1
    torch.testing.assert_close(small.rows(range(7, 9), (2,))(x), small(x)[:, [7, 8, 2]])
    torch.testing.assert_close(
        small.weight * small.scale[:, None], weight, rtol=0, atol=float(weight.abs().max()) / 250
    )


def test_a_model_in_8_bits_writes_the_same_form_and_nearly_the_same_scores():
    """The original is left alone; what is written keeps to its range; states differ by little, and do differ."""
    model = toy_model(3, image_codes=9).float()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small, batch = int8(copy.deepcopy(model)), toy_batch()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert isinstance(small.output, Int8Linear) and model.output is None
    assert isinstance(small.trunk.blocks[0].attn.qkv, Int8Linear)
    ids = write(small, parse("image>text"), batch, GenerationConfig(max_tokens=7)).ids
    assert any(ids) and all(0 <= local < 20 for row in ids for local in row)
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    low, high = (m.logits(x) for m in (small, model))
    assert 0 < (low - high).abs().max() < 0.05 * high.abs().max()
    with pytest.raises(UserError, match=r"8 bits are for a model on a CPU in fp32, and this one is torch\.float64"):
        int8(toy_model())
