"""The encoders of tools/parity.py: how each library itself builds one, writes it to a folder, and runs it.

Weights are random, drawn from the model's name, and what is usually all ones or zeros (norms, biases, layer scales,
running means) is drawn too: two norms that were taken for each other would show. Small sizes, real architectures.
"""

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import open_clip
import timm
import tokenizers
import torch
import torchaudio
import transformers as hf
from open_clip.model import CustomTextCLIP
from safetensors.torch import save_file
from timm import data as timm_data
from timm.models import save_for_hf
from torch import Tensor, nn

from mmfm.config import AudioPreprocess, EncoderSpec
from mmfm.models.mappings import Foreign

AnyModule = TypeVar("AnyModule", bound=nn.Module)
Library = Literal["timm", "open_clip", "hf", "torchaudio", "wheel"]
Modality = Literal["image", "text", "audio"]
IDS = 64  # in the vocabulary of a small text encoder; the first five are marks
MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True, kw_only=True)
class Peer:
    """An encoder at hand. `run`: as its library runs it, from [batch, ...] and what is real of it, to padded tokens.

    source: where it was written, for `Tower.source`; the blueprint, of a library that writes no folders; or what our
    own layouts take, of what is no tower of another library. given: its input, where no blueprint says what that is.
    """

    source: str | EncoderSpec | Foreign
    weights: Mapping[str, Tensor]
    run: Callable[[Tensor, Tensor], Tensor]
    given: tuple[Tensor, Tensor] | None = None
    prepare: Callable[[Any], Any] | None = None  # a picture, or a clip, as the library's own processor makes it


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row of the table. `make`: builds the encoder and writes it into an empty folder."""

    name: str
    library: Library
    modality: Modality
    make: Callable[[Path], Peer]
    heavy: bool = False
    seed: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", zlib.crc32(self.name.encode()))


@torch.no_grad()
def drawn(model: AnyModule) -> AnyModule:
    """With vectors that are far from ones and zeros."""
    for parameter in model.parameters():
        if parameter.ndim < 2:
            parameter.add_(0.3 * torch.randn_like(parameter))
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.add_(torch.rand_like(buffer))
    return model.eval()


def timm_case(name: str, **kwargs: Any) -> Case:
    def make(folder: Path) -> Peer:
        model = drawn(timm.create_model(name, pretrained=False, **kwargs))
        size = {"input_size": (3, *kwargs["img_size"])} if "img_size" in kwargs else None
        save_for_hf(model, str(folder), model_args=kwargs, safe_serialization=True, data_config=size)

        def run(pixels: Tensor, keep: Tensor) -> Tensor:
            out = model.forward_features(pixels)
            out = out["patches"] if isinstance(out, dict) else out
            if out.ndim == 3:
                return out
            last = out.shape[-1] == model.num_features and out.shape[1] != model.num_features
            return out.flatten(1, 2) if last else out.flatten(2).mT

        return Peer(source=str(folder), weights=model.state_dict(), run=run, prepare=timm_transform(folder))

    return Case(name=name, library="timm", modality="image", make=make)


def timm_transform(folder: Path | str) -> Callable[[Any], Any]:
    """timm's own, of a folder that it wrote or of one of its names."""
    name = f"local-dir:{folder}" if isinstance(folder, Path) else folder
    data = timm_data.resolve_model_data_config(timm.create_model(name, pretrained=False))
    return timm_data.create_transform(**data, is_training=False)


def open_clip_case(name: str, modality: Modality, cfg: Mapping[str, Any]) -> Case:
    """The tokens are caught on their way: what enters the last norm, with that norm where it is before the pool."""

    def make(folder: Path) -> Peer:
        model: Any = drawn(open_clip_model(cfg))
        written = {"model_cfg": cfg, "preprocess_cfg": {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}}
        (folder / "open_clip_config.json").write_text(json.dumps(written))
        save_file(dict(model.state_dict()), folder / "open_clip_model.safetensors")
        tower = model.visual if modality == "image" else model.text if hasattr(model, "text") else model

        def run(x: Tensor, keep: Tensor) -> Tensor:
            caught: list[Tensor] = []
            timm_trunk = getattr(tower, "trunk", None)
            inner = tower.transformer if timm_trunk is None else timm_trunk.norm
            hook = inner.register_forward_hook(lambda module, given, out: caught.append(out))
            model.encode_image(x) if modality == "image" else model.encode_text(x * keep)
            hook.remove()
            after = tower.ln_final if modality == "text" else getattr(tower, "ln_post", None)
            pooled_first = modality == "image" and getattr(tower, "attn_pool", None) is not None
            return caught[0] if after is None or pooled_first else after(caught[0])

        *_, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        return Peer(source=str(folder), weights=model.state_dict(), run=run, prepare=transform)

    return Case(name=name, library="open_clip", modality=modality, make=make)


def open_clip_model(cfg: Mapping[str, Any]) -> nn.Module:
    cfg = json.loads(json.dumps(cfg))
    custom = cfg.pop("custom_text", False)
    if "multimodal_cfg" in cfg:
        return open_clip.CoCa(**cfg)
    return CustomTextCLIP(**cfg) if custom else open_clip.CLIP(**cfg)


def hf_case(
    name: str,
    modality: Modality,
    build: Callable[[], nn.Module],
    extractor: Callable[[], Any] | None = None,
    **more: Any,
) -> Case:
    """`more`: of Case. A text encoder that sees padding as text gets none: `filled`."""
    filled = more.pop("filled", False)

    def make(folder: Path) -> Peer:
        model: Any = drawn(build())
        model.save_pretrained(folder)
        made = None if extractor is None else extractor()
        if made is not None:
            made.save_pretrained(folder)
        if modality == "text":
            write_tokenizer(folder, filled)
        part = hf_part(model, modality)
        run = {"image": hf_image, "text": hf_text, "audio": hf_sound}[modality]
        return Peer(
            source=str(folder), weights=part.state_dict(), run=run(part, made), prepare=hf_prepare(modality, folder)
        )

    return Case(name=name, library="hf", modality=modality, make=make, **more)


def hf_prepare(modality: Modality, folder: Path) -> Callable[[Any], Tensor] | None:
    """transformers' own processor, read from the folder and called with nothing but one picture or clip."""
    if modality == "image":
        images = hf.AutoImageProcessor.from_pretrained(folder)
        return lambda picture: torch.as_tensor(images(images=picture, return_tensors="pt")["pixel_values"])[0]
    if modality == "audio":
        sounds = hf.AutoFeatureExtractor.from_pretrained(folder)
        return lambda wave: heard_by(sounds, wave)
    return None


def heard_by(extractor: Any, wave: Tensor) -> Tensor:
    given = extractor(wave.numpy(), sampling_rate=extractor.sampling_rate, return_tensors="pt")
    return next(given[name] for name in ("input_features", "input_values") if name in given)[0]


def hf_part(model: Any, modality: str) -> Any:
    own = {"image": "vision_model", "text": "text_model", "audio": "audio_model"}[modality]
    if hasattr(model, own):
        return getattr(model, own)
    return model.encoder if model.config.is_encoder_decoder else model


def hf_image(part: Any, _: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def run(pixels: Tensor, keep: Tensor) -> Tensor:
        out = part(pixel_values=pixels).last_hidden_state
        return out if out.ndim == 3 else out.flatten(2).mT

    return run


def hf_text(part: Any, _: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda ids, keep: part(input_ids=ids * keep, attention_mask=keep.long()).last_hidden_state


def hf_sound(part: Any, extractor: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Clips of their own lengths go to the library's extractor, and all that it says to the model.

    That of wav2vec 2.0 normalises a padded clip with its padding, if it is not asked for a mask: it always is, here.
    """
    fixed = any(hasattr(extractor, name) for name in ("chunk_length", "max_length", "max_length_s"))
    options = {} if fixed else {"padding": True, "return_attention_mask": True}

    def run(waves: Tensor, keep: Tensor) -> Tensor:
        clips = [wave[real].numpy() for wave, real in zip(waves, keep, strict=True)]
        given = extractor(clips, sampling_rate=extractor.sampling_rate, return_tensors="pt", **options)
        if isinstance(extractor, hf.Wav2Vec2FeatureExtractor) and not extractor.return_attention_mask:
            given.pop("attention_mask")
        out = part(**given).last_hidden_state
        return out if out.ndim == 3 else out.flatten(2).mT

    return run


def write_tokenizer(folder: Path, filled: bool) -> None:
    """One word for each id; a text is [CLS] words [SEP]."""
    words = {word: number for number, word in enumerate([*MARKS, *(f"w{n}" for n in range(len(MARKS), IDS))])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    marks = {f"{mark[1:-1].lower()}_token": mark for mark in MARKS}
    inputs = ["input_ids"] if filled else ["input_ids", "attention_mask"]
    hf.PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=inputs, **marks).save_pretrained(folder)


def conformer_case(name: str, **params: Any) -> Case:
    """torchaudio's Conformer takes frames as wide as itself: no bundle has it as a tower, our own layouts do.

    Its convolutions see the padding, ours do not: each clip is run there without.
    """

    def make(folder: Path) -> Peer:
        model = drawn(torchaudio.models.Conformer(**params))
        given = torch.randn(2, 50, params["input_dim"]), torch.arange(50) < torch.tensor([[50], [30]])

        def alone(frames: Tensor, keep: Tensor) -> Tensor:
            clips = [clip[real][None] for clip, real in zip(frames, keep, strict=True)]
            found = [model(clip, torch.tensor([clip.shape[1]]))[0][0] for clip in clips]
            return nn.utils.rnn.pad_sequence(found, batch_first=True)

        return Peer(
            source=Foreign(library="torchaudio", architecture=params, modality="audio"),
            weights=model.state_dict(),
            run=alone,
            given=given,
        )

    return Case(name=name, library="torchaudio", modality="audio", make=make)


def torchaudio_case(name: str, **params: Any) -> Case:
    def make(folder: Path) -> Peer:
        model = drawn(torchaudio.models.wav2vec2_model(**params))
        shape = {"model": "Wav2Vec2", "params": params, "normalize": False}
        made = EncoderSpec(
            library="torchaudio",
            modality="audio",
            architecture=json.dumps(shape),
            width=params["encoder_embed_dim"],
            sound=AudioPreprocess(rate_hz=16_000),
        )
        run = lambda waves, keep: model(waves * keep, keep.sum(1))[0]  # noqa: E731
        return Peer(source=made, weights=model.state_dict(), run=run, prepare=lambda wave: wave)

    return Case(name=name, library="torchaudio", modality="audio", make=make)
