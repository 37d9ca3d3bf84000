"""Small whole models of transformers in folders, with the pictures, sounds and shards that they are asked about."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import soundfile
import torch
import transformers as hf
from PIL import Image
from torch import Tensor, nn
from toy_encoders import BLOCKS, PICTURE, WORDS, hf_folder, wordpieces

SENTENCES = ["a cat", "the dog sat on the cat.", "bird"]
NAMES, TEMPLATES = ("cat", "the dog", "bird"), ("{}", "a {}.")
CLOSE = 1e-5
RATE_HZ = 8_000
FILLED = 24  # tokens of a text of SigLIP
HALF = {"eos_token_id": 3, "pad_token_id": 0, "bos_token_id": 2, "vocab_size": WORDS["vocab_size"], **BLOCKS}
Made = tuple[nn.Module, Any, Any]  # transformers' own model, tokenizer, and processor of pictures or sounds


def pictures() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    shapes = ((50, 40, 3), (33, 71, 3), (32, 32, 3))
    return [Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


def sounds() -> list[np.ndarray]:
    times = [np.arange(round(seconds * RATE_HZ)) / RATE_HZ for seconds in (0.7, 0.3, 1.4)]
    return [(0.3 * np.sin(2 * np.pi * (300 + 200 * at) * time)).astype(np.float32) for at, time in enumerate(times)]


def photographs(count: int = 30) -> list[bytes]:
    draw, made = np.random.default_rng(3), []
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((50, 40)).save(file, "PNG")
        made.append(file.getvalue())
    return made


def clips(count: int = 12) -> list[bytes]:
    draw, times, made = np.random.default_rng(4), np.arange(RATE_HZ) / RATE_HZ, []
    for at in range(count):
        file = io.BytesIO()
        wave = 0.4 * np.sin(2 * np.pi * (200 + 100 * at) * times) + 0.02 * draw.standard_normal(RATE_HZ)
        soundfile.write(file, wave, RATE_HZ, format="WAV")
        made.append(file.getvalue())
    return made


def shards(folder: Path, files: list[bytes], end: str) -> Path:
    """Sample n is of class n modulo three; the names of the classes and templates lie beside."""
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for at, data in enumerate(files):
            parts = {end: data, "cls": f"{at % 3}".encode(), "txt": NAMES[at % 3].encode()}
            for name, part in parts.items():
                entry = tarfile.TarInfo(f"{at:04d}.{name}")
                entry.size = len(part)
                tar.addfile(entry, io.BytesIO(part))
    (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in NAMES))
    (folder / "templates.txt").write_text("".join(f"{template}\n" for template in TEMPLATES))
    return folder


# Models


def clip(folder: Path) -> Made:
    text = {**HALF, "max_position_embeddings": 40}
    config = hf.CLIPConfig(text_config=text, vision_config=PICTURE, projection_dim=12)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    parts = wordpieces(), hf.CLIPImageProcessor(**size)
    return hf_folder(folder, config, *parts), *parts


def clip_with_its_tokenizer(folder: Path) -> Made:
    """CLIP's own BPE, whose padding is its end mark: a text is pooled at the first of these."""
    theirs = open_clip.SimpleTokenizer()
    end, begin = theirs.eot_token_id, theirs.sot_token_id
    text = {**BLOCKS, "max_position_embeddings": 20, "vocab_size": theirs.vocab_size}
    text |= {"eos_token_id": end, "bos_token_id": begin, "pad_token_id": end}
    config = hf.CLIPConfig(text_config=text, vision_config=PICTURE, projection_dim=12)
    marks = {"bos_token": "<start_of_text>", **dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<end_of_text>")}
    tokenizer = hf.CLIPTokenizer(vocab=theirs.encoder, merges=list(theirs.bpe_ranks), **marks)
    tokenizer.model_max_length = 20
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    parts = tokenizer, hf.CLIPImageProcessor(**size)
    return hf_folder(folder, config, *parts), *parts


def siglip(folder: Path) -> Made:
    """Texts are filled to the context, and no mask says so; its inverse temperature is beyond CLIP's bound of 100."""
    text = {**HALF, "max_position_embeddings": FILLED, "projection_size": 16}
    tokenizer = wordpieces(FILLED)
    tokenizer.model_input_names = ["input_ids"]
    parts = tokenizer, hf.SiglipImageProcessor(size={"height": 32, "width": 32})
    model: Any = hf_folder(folder, hf.SiglipConfig(text_config=text, vision_config=PICTURE), *parts)
    with torch.no_grad():
        model.logit_scale.fill_(np.log(117.33))
        model.logit_bias.fill_(-12.93)
    model.save_pretrained(folder)
    return model, *parts


def dual(folder: Path) -> Made:
    """Any two encoders of transformers under one projection each: a class of neither's family."""
    vision, text = hf.ViTConfig(**PICTURE), hf.BertConfig(**WORDS, **BLOCKS, max_position_embeddings=40)
    config = hf.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=12)
    parts = wordpieces(), hf.ViTImageProcessor(size={"height": 32, "width": 32})
    return hf_folder(folder, config, *parts), *parts


def groupvit(folder: Path) -> Made:
    """Its picture encoder says of itself that it reads nothing by name."""
    stages = {"depths": [1, 1, 1], "num_group_tokens": [8, 4, 0], "num_output_groups": [8, 4, 4]}
    vision = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    text = {**HALF, "max_position_embeddings": 40}
    how = {"projection_dim": 12, "projection_intermediate_dim": 16}
    config = hf.GroupViTConfig(text_config=text, vision_config=vision | stages | {"num_hidden_layers": 3}, **how)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    parts = wordpieces(), hf.CLIPImageProcessor(**size)
    return hf_folder(folder, config, *parts), *parts


def clap(folder: Path) -> Made:
    text = {**HALF, "max_position_embeddings": 42, "type_vocab_size": 1}
    audio = {
        "spec_size": 64, "num_mel_bins": 16, "patch_size": 4, "patch_stride": [4, 4], "patch_embeds_hidden_size": 16,
        "depths": [1, 1], "num_attention_heads": [2, 2], "hidden_size": 32, "window_size": 4, "enable_fusion": False,
        "num_classes": 4,
    }  # fmt: skip
    heard = hf.ClapFeatureExtractor(
        feature_size=16, sampling_rate=RATE_HZ, hop_length=80, max_length_s=2, fft_window_size=256,
        frequency_min=50, frequency_max=3_900, truncation="rand_trunc", padding="repeatpad",
    )  # fmt: skip
    config = hf.ClapConfig(text_config=text, audio_config=audio, projection_dim=12)
    return hf_folder(folder, config, wordpieces(), heard), wordpieces(), heard


def louder(made: Made, folder: Path) -> Made:
    """With larger weights, so that no class is the nearest of all."""
    with torch.no_grad():
        for parameter in made[0].parameters():
            parameter *= 3.0 if parameter.ndim > 1 else 1.0
    made[0].save_pretrained(folder)  # pyright: ignore[reportCallIssue]
    return made


def inputs(made: Made, texts: list[str]) -> dict[str, Tensor]:
    """Pictures or sounds, and texts, as the library's own processor and tokenizer prepare them."""
    _, tokenizer, other = made
    masked = "attention_mask" in tokenizer.model_input_names
    how = {"padding": True, "truncation": True} if masked else {"padding": "max_length", "max_length": FILLED}
    read = tokenizer(texts, return_tensors="pt", **how)
    if hasattr(other, "sampling_rate"):
        given = other(sounds(), sampling_rate=RATE_HZ, return_tensors="pt")
    else:
        given = other(pictures(), return_tensors="pt")
    return {name: x for name, x in (*read.items(), *given.items()) if name != "token_type_ids"}
