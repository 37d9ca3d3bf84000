"""From scores to ids: what survives is what survives in transformers, draws follow the softmax and belong to a row."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mmfm.config import UserError
from mmfm.config.task import parse
from mmfm.generation import GenerationConfig, check_guidance
from mmfm.generation.sampling import drawn_seeds, filtered_logits, sample, waits

IDS = torch.arange(10, 60)


def planted(rows: int = 64) -> torch.Tensor:
    """Logits of very different sharpness."""
    draw = torch.Generator().manual_seed(0)
    return torch.randn(rows, len(IDS), generator=draw, dtype=torch.float64) * torch.linspace(0.1, 8, rows)[:, None]


@pytest.mark.parametrize(
    ("how", "warpers"),
    [
        ({"top_k": 7}, [TopKLogitsWarper(7)]),
        ({"top_p": 0.8}, [TopPLogitsWarper(0.8)]),
        ({"top_p": 1e-6}, [TopPLogitsWarper(1e-6)]),
        ({"min_p": 0.2}, [MinPLogitsWarper(0.2)]),
        (
            {"top_k": 20, "top_p": 0.9, "min_p": 0.05},
            [TopKLogitsWarper(20), TopPLogitsWarper(0.9), MinPLogitsWarper(0.05)],
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_what_survives_is_what_survives_in_transformers(how, warpers, temperature):
    scores = planted()
    theirs = LogitsProcessorList([TemperatureLogitsWarper(temperature), *warpers])(torch.empty(0), scores)
    ours = filtered_logits(scores / temperature, GenerationConfig(temperature=temperature, **how))
    assert torch.equal(ours, theirs > -torch.inf)
    assert 1 <= ours.sum(1).min() < ours.sum(1).max() or how.get("top_k") == 7 or how.get("top_p") == 1e-6


def test_a_nucleus_of_many_and_of_equals():
    """Flat scores over 2,000 ids, next to sharp ones: the survivors are transformers', and equals stay together."""
    draw = torch.Generator().manual_seed(1)
    scores = torch.randn(4, 2_000, generator=draw, dtype=torch.float64) * torch.tensor([0.1, 1.0, 3.0, 9.0])[:, None]
    theirs = TopPLogitsWarper(0.9)(torch.empty(0), scores)
    together = filtered_logits(scores, GenerationConfig(temperature=1.0, top_p=0.9))
    assert torch.equal(together, theirs > -torch.inf) and together.sum(1)[0] > 1_000 > 100 > together.sum(1)[3]
    for row in range(4):
        assert torch.equal(
            filtered_logits(scores[[row]], GenerationConfig(temperature=1.0, top_p=0.9))[0], together[row]
        )
    equal = torch.tensor([[3.0, 1.0, 1.0, 1.0, -9.0]])
    assert filtered_logits(equal, GenerationConfig(temperature=1.0, top_p=0.8)).tolist() == [
        [True, True, True, True, False]
    ]


def test_draws_follow_the_softmax():
    """Planted logits: frequencies over 20,000 seeds lie within five deviations of the softmax at the temperature."""
    scores, how = torch.tensor([2.0, 1.0, 0.0, -1.0]), GenerationConfig(temperature=2.0)
    for step in (0, 3):
        drawn = sample(scores.expand(20_000, 4), IDS[:4], torch.arange(20_000), step, how)
        expected = (scores / 2).softmax(0)
        deviation = (expected * (1 - expected) / 20_000).sqrt()
        assert ((drawn.bincount(minlength=4) / 20_000 - expected).abs() < 5 * deviation).all()


def test_only_survivors_are_drawn_and_the_first_alone_is_greedy():
    scores, seeds = planted(), torch.arange(64)
    for how in ({"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.3}):
        decoding = GenerationConfig(temperature=1.5, **how)
        drawn = torch.stack([sample(scores, IDS, seeds, step, decoding) for step in range(50)], 1)
        assert filtered_logits(scores / 1.5, decoding).gather(1, drawn).all()
        assert len(drawn.unique()) > 10
    first = sample(scores, IDS, seeds, 0, GenerationConfig(temperature=1.5, top_k=1))
    assert torch.equal(first, scores.argmax(1)) and torch.equal(
        first, sample(scores, IDS, seeds, 0, GenerationConfig())
    )


def test_noise_belongs_to_seed_step_and_id():
    """Rows and columns may come in any order and company; another seed, step or id has another noise."""
    seeds, ids = torch.tensor([5, 0, 7]), torch.tensor([11, 2, 30])
    noise = waits(seeds, 4, ids)
    torch.testing.assert_close(waits(seeds[[2, 0]], 4, ids[[1, 2]]), noise[[2, 0]][:, [1, 2]], rtol=0, atol=0)
    assert len(torch.cat([noise, waits(seeds, 5, ids)]).unique()) == 18
    many = waits(torch.arange(100), 0, torch.arange(1_000))
    assert many.min() > 0 and abs(many.mean() - 1) < 0.02 and abs(many.var() - 1) < 0.05


def test_the_first_draw_is_the_row_s_own():
    """Draws of a row differ, and the first has the seed that the row has alone."""
    seeds = drawn_seeds(torch.tensor([3, 9]), 4).view(2, 4)
    assert seeds[:, 0].tolist() == [3, 9] and len(seeds.unique()) == 8


MISTAKES = {
    "max_tokens=0 must be above 0": {"max_tokens": 0},
    "temperature=-1.0 must not be negative": {"temperature": -1.0},
    "top_p=0.0 must be above 0 and at most 1": {"temperature": 1.0, "top_p": 0.0},
    "min_p=2.0 must be between 0 and 1": {"temperature": 1.0, "min_p": 2.0},
    "top_k=5 is for draws, and temperature 0 draws nothing; give temperature=1.0": {"top_k": 5},
    "best_of=4 is for draws": {"best_of": 4},
    "num_beams=4 looks for the likeliest: leave out temperature=1.0, or the beams": {
        "num_beams": 4,
        "temperature": 1.0,
    },
    "num_beams=2 looks for the likeliest: leave out stop": {"num_beams": 2, "stop": ("\n",)},
    "stop holds an empty string": {"stop": ("",)},
    "guide names a source twice: image, image": {"guide": (("image", 2.0), ("image", 3.0))},
    "are two scales for one source": {"guidance": 2.0, "guide": (("image", 2.0),)},
}


@pytest.mark.parametrize("words", MISTAKES)
def test_what_does_not_go_together_is_refused_in_one_line(words):
    with pytest.raises(UserError, match=words) as caught:
        GenerationConfig(**MISTAKES[words])
    assert "\n" not in str(caught.value).replace("('\\n',)", "")


def test_guidance_needs_sources_scales_for_all_and_a_model_that_was_trained_without_them():
    with pytest.raises(UserError, match="guidance needs sources, and this task has none"):
        GenerationConfig(guidance=2.0).passes(())
    with pytest.raises(UserError, match="guide gives image; it must give one for each of image, audio"):
        GenerationConfig(guide=(("image", 2.0),)).passes(("image", "audio"))
    with pytest.raises(UserError, match="guidance of image>text needs a model trained with Generative"):
        check_guidance(GenerationConfig(guidance=2.0), parse("image>text"), 0.0)
    check_guidance(GenerationConfig(guidance=2.0), parse("image>text"), 0.1)
    check_guidance(GenerationConfig(), parse("image>text"), 0.0)
