"""Llama, Mistral, Qwen2 and Qwen3 as the trunk: the same logits at any padding, in one pass and step by step."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peers import LANGUAGE, built, double, ids_of, of_hf, ours, padded
from safetensors.torch import load_file
from torch import Tensor, nn

from mmfm.config import Trunk, UserError
from mmfm.data.batch import Tokens
from mmfm.data.vocabulary import Vocabulary
from mmfm.models.mappings import Converted, Foreign, convert, place_embeddings
from mmfm.models.transformer import Segment, UnifiedTransformer

STRETCH = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
MODELS: dict[str, Callable[[], tuple[nn.Module, Foreign]]] = {
    "Llama": lambda: of_hf("LlamaForCausalLM", "text", **LANGUAGE),
    "Llama with biases": lambda: of_hf("LlamaForCausalLM", "text", **LANGUAGE, attention_bias=True, rms_norm_eps=1e-3),
    "Llama 3.1": lambda: of_hf("LlamaForCausalLM", "text", **LANGUAGE, rope_parameters=STRETCH),
    "SmolLM": lambda: of_hf("LlamaForCausalLM", "text", **LANGUAGE, tie_word_embeddings=True),
    "Mistral": lambda: of_hf("MistralForCausalLM", "text", **LANGUAGE, head_dim=12),
    "Qwen2": lambda: of_hf("Qwen2ForCausalLM", "text", **LANGUAGE, tie_word_embeddings=True),
    "Qwen3": lambda: of_hf(
        "Qwen3ForCausalLM", "text", **LANGUAGE, head_dim=16,
        rope_parameters={"rope_theta": 1e6, "rope_type": "default"},
    ),
}  # fmt: skip
TIME = 9
PADDINGS = {
    "none": padded([TIME] * 3, TIME),
    "right": padded([9, 5, 7], TIME),
    "left": padded([9, 5, 7], TIME).flip(1),
}
CLOSE = 1e-5  # rotary angles are fp32 on both sides


def logits(converted: Converted, states: Tensor) -> Tensor:
    table = converted.embedding if converted.output is None else converted.output
    assert table is not None and isinstance(converted.part, Trunk)
    assert converted.part.tie_embeddings == (converted.output is None)
    return F.linear(states, table)


def sentence(converted: Converted, ids: Tensor, keep: Tensor) -> Segment:
    assert converted.embedding is not None
    return Segment(Tokens(converted.embedding[ids], keep), causal=True)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", MODELS)
def test_the_trunk_is_the_language_model(name: str, padding: str) -> None:
    """The logits of real tokens, whatever side the padding is on, of the whole and of five tokens and then one by one,
    through the cache."""
    ids, keep = ids_of(3, TIME), PADDINGS[padding]
    with double():
        theirs, source = MODELS[name]()
        converted, trunk = ours(source, theirs.state_dict())
        expected = theirs(input_ids=ids, attention_mask=keep.long()).logits
        found = logits(converted, trunk([sentence(converted, ids, keep)])[0])
        torch.testing.assert_close(found[keep], expected[keep], rtol=0, atol=CLOSE)
        cache, parts = trunk.new_cache(), []
        for start, stop in ((0, 5), *((place, place + 1) for place in range(5, TIME))):
            piece = sentence(converted, ids[:, start:stop], keep[:, start:stop])
            parts.append(logits(converted, trunk([piece], cache)[0]))
        torch.testing.assert_close(torch.cat(parts, 1)[keep], expected[keep], rtol=0, atol=CLOSE)


@pytest.mark.parametrize("name", ["Llama 3.1", "Qwen2", "Qwen3"])
def test_it_writes_what_transformers_writes(name: str) -> None:
    """Twelve tokens, each the likeliest, behind prompts of two lengths that are padded on the left."""
    ids, keep = ids_of(2, 6), padded([6, 4], 6).flip(1)
    with double(), torch.no_grad():
        theirs, source = MODELS[name]()
        converted, trunk = ours(source, theirs.state_dict())
        how = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        expected = theirs.generate(input_ids=ids, attention_mask=keep.long(), eos_token_id=None, **how)[:, 6:]
        cache, piece, written = trunk.new_cache(), sentence(converted, ids, keep), []
        for _ in range(12):
            written.append(logits(converted, trunk([piece], cache)[0][:, -1:]).argmax(-1))
            piece = sentence(converted, written[-1], torch.ones_like(written[-1], dtype=torch.bool))
        assert torch.equal(torch.cat(written, 1), expected)
        assert len(expected.unique()) > 2


TRAPS = {
    "Qwen3": {"rope_theta": 10_000.0},
    "Llama with biases": {"eps": 1e-6},
    "Llama 3.1": {"rope_scaling": ()},
    "Mistral": {"activation": "gelu_tanh"},
}


@pytest.mark.parametrize("name", TRAPS)
def test_a_wrong_choice_is_another_function(name: str) -> None:
    """The weights fit all the same, and the logits are off by far more than parity allows."""
    ids, keep = ids_of(3, TIME), PADDINGS["none"]
    with double():
        theirs, source = MODELS[name]()
        converted, trunk = ours(source, theirs.state_dict())
        other = built(replace(converted.part, **TRAPS[name]))
        other.load_state_dict(converted.weights, strict=True)
        states = [module([sentence(converted, ids, keep)])[0] for module in (trunk, other)]
        assert (states[0] - states[1]).abs().max() > 100 * CLOSE


def test_names_on_disk_with_a_tied_head(tmp_path: Path) -> None:
    """A tied head is in memory and not in the file; both give the same. Two tables under a tie are an error."""
    theirs, source = MODELS["Qwen2"]()
    theirs.save_pretrained(tmp_path)
    saved, held = load_file(tmp_path / "model.safetensors"), theirs.state_dict()
    assert set(held) - set(saved) == {"lm_head.weight"}
    one, other = convert(source, saved), convert(source, held)
    assert one.output is None and other.output is None and torch.equal(one.embedding, other.embedding)
    assert all(torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items())
    with pytest.raises(UserError, match="the weights hold two tables"):
        convert(source, held | {"lm_head.weight": held["lm_head.weight"] + 1})


def test_a_model_without_a_head_and_one_of_the_older_configurations() -> None:
    """`LlamaModel` has no output; a configuration with rope_theta at its top, as older files have it, is read."""
    theirs, source = of_hf("LlamaModel", "text", **LANGUAGE)
    assert convert(source, theirs.state_dict()).output is None
    old = {key: value for key, value in source.architecture.items() if key not in ("rope_parameters", "head_dim")}
    part = convert(replace(source, architecture=old | {"rope_theta": 777.0}), theirs.state_dict()).part
    assert isinstance(part, Trunk) and part.rope_theta == 777.0 and part.head_dim == 8


def test_a_sliding_window_is_a_limit() -> None:
    """Within it the trunk is Mistral's; a longer sentence, of which layers would forget the beginning, is refused."""
    ids, keep = ids_of(1, 6), padded([6], 6)
    with double():
        theirs, source = of_hf("MistralForCausalLM", "text", **LANGUAGE, sliding_window=6)
        converted, trunk = ours(source, theirs.state_dict())
        found = logits(converted, trunk([sentence(converted, ids, keep)])[0])
        torch.testing.assert_close(found, theirs(input_ids=ids).logits, rtol=0, atol=CLOSE)
        with pytest.raises(UserError, match=r"a sentence of 7 tokens is longer than Trunk.max_position_embeddings=6"):
            trunk([sentence(converted, ids_of(1, 7), padded([7], 7))])
        cache = trunk.new_cache()
        trunk([sentence(converted, ids, keep)], cache)
        with pytest.raises(UserError, match="a sentence of 7 tokens"):
            trunk([sentence(converted, ids[:, :1], keep[:, :1])], cache)


def test_a_window_that_is_switched_off_is_none() -> None:
    _, source = of_hf("Qwen2ForCausalLM", "text", **LANGUAGE, sliding_window=4, use_sliding_window=False)
    theirs, _ = MODELS["Qwen2"]()
    part = convert(
        replace(source, architecture=source.architecture | {"tie_word_embeddings": True}), theirs.state_dict()
    )
    assert isinstance(part.part, Trunk) and part.part.max_position_embeddings == 0


REFUSED = {
    "yarn": (
        lambda: of_hf(
            "LlamaForCausalLM", "text", **LANGUAGE,
            rope_parameters={
                "rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 16
            },
        ),
        "yarn positions",
    ),
    "mlp": (lambda: of_hf("LlamaForCausalLM", "text", **LANGUAGE, mlp_bias=True), "MLPs with biases"),
    "gpt2": (lambda: of_hf("GPT2LMHeadModel", "text", n_embd=32, n_head=4, n_layer=1, vocab_size=20), "no layout"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_place_is_refused(name: str) -> None:
    make, said = REFUSED[name]
    theirs, source = make()
    with pytest.raises(UserError, match=said):
        convert(source, theirs.state_dict())


def test_tensors_that_are_too_many_or_too_few() -> None:
    theirs, source = MODELS["Qwen3"]()
    weights = theirs.state_dict()
    for lost, said in {
        "model.layers.1.self_attn.k_norm.weight": r"no tensor for \['blocks.1.attn.k_norm.weight'\] of Trunk",
        "model.layers.0.mlp.up_proj.weight": r"a part of what is 'blocks.0.mlp.gate_up.weight' here",
    }.items():
        with pytest.raises(UserError, match=said):
            convert(source, {name: tensor for name, tensor in weights.items() if name != lost})
    with pytest.raises(UserError, match=r"Trunk has no place for \['layers.0.attn.sinks'\]"):
        convert(source, weights | {"model.layers.0.attn.sinks": torch.zeros(4)})


def test_words_are_placed_among_marks_and_codes() -> None:
    """Text rows are the model's, bit for bit; the rest keep their direction, at the length of the model's own rows."""
    vocabulary = Vocabulary(text=12, image=5)
    draw = torch.Generator().manual_seed(0)
    table, fresh = 3 * torch.randn(20, 8, generator=draw), torch.randn(vocabulary.size, 8, generator=draw)
    placed, span = place_embeddings(table, fresh, vocabulary), vocabulary.span("text")
    assert torch.equal(placed[span.start : span.stop], table[:12]) and placed.shape == fresh.shape
    others = [place for place in range(vocabulary.size) if place not in span]
    assert F.cosine_similarity(placed[others], fresh[others]).min() > 1 - 1e-6
    ratio = placed[others].norm(dim=1) / fresh[others].norm(dim=1)
    torch.testing.assert_close(ratio * fresh.norm(dim=1).mean(), table[:12].norm(dim=1).mean().expand(len(others)))
    with pytest.raises(UserError, match="a table of 11 words x 8 does not fit a vocabulary of 12 words x 8"):
        place_embeddings(table[:11], fresh, vocabulary)


def test_a_source_before_the_words_is_seen_by_all_and_sees_none() -> None:
    """The language model as our trunk: a source changes what is written, and is the same whatever is written."""
    theirs, source = MODELS["Qwen3"]()
    converted, trunk = ours(source, theirs.state_dict())
    assert isinstance(trunk, UnifiedTransformer)
    draw = torch.Generator().manual_seed(0)
    picture = Segment(Tokens(torch.randn(3, 4, 32, generator=draw), torch.ones(3, 4, dtype=torch.bool)))
    words = [sentence(converted, ids_of(3, TIME, seed=seed), PADDINGS["right"]) for seed in (1, 2)]
    first, second = (trunk([picture, word]) for word in words)
    torch.testing.assert_close(first[0], second[0])
    assert not torch.allclose(first[1], trunk([words[0]])[0], atol=1e-2)
