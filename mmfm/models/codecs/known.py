"""Codecs of transformers, used as they are: the library's own `encode` and `decode` behind ids and samples of ours.

`resolve` may download, through the library's own loader; `build` never does: it takes the architecture that `resolve`
told. architecture: JSON, {"config": the configuration as a dict, model_type included}.

A sound is run at its own length, filled with silence to whole frames, and sounds of as many frames are run together: so
padding changes nothing, though DAC and EnCodec look ahead, and all of them at what comes after a clip's end.
"""

import json
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from huggingface_hub import constants
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    DacModel,
    Emu3VQVAE,
    EncodecModel,
    JanusVQVAE,
    MimiModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from mmfm.config import AudioPreprocess, ImagePreprocess, KnownCodec, Tower, UserError, require
from mmfm.data.batch import Ids
from mmfm.data.vocabulary import CodeFormat
from mmfm.models.codecs.full_precision import Exact
from mmfm.pretrained import architecture_schema
from mmfm.pretrained.encoder import Weights
from mmfm.pretrained.hf_preprocessors import pixels_of
from mmfm.pretrained.preprocessing_parity import FITTING
from mmfm.pretrained.source import Source, fetching, parse, require_complete, require_safetensors

CLASSES: dict[str, dict[str, type[PreTrainedModel]]] = {
    "audio": {"dac": DacModel, "mimi": MimiModel, "encodec": EncodecModel},
    "image": {"janus_vqgan": JanusVQVAE, "emu3_vqgan": Emu3VQVAE},
}
INSIDE = {"janus": "vq_config", "emu3": "vq_config"}  # models that hold a codec, and where its configuration lies
NAMES = "DAC, Mimi or EnCodec for audio, the VQ models of Janus or Emu3 for image"


class Resolved(NamedTuple):
    """What a source gave. weights: for `build(codec).load_state_dict(weights)`; None where they are to be random."""

    codec: KnownCodec
    weights: Weights | None


def resolve(codec: KnownCodec, modality: str) -> Resolved:
    """The codec with its architecture, and its weights. Raises UserError where the source is no codec of `modality`."""
    source = parse(codec.source)
    require(source.kind == "hf", f"KnownCodec.source={codec.source!r} is not of transformers; give hf:NAME or a folder")
    with fetching(codec.source, f"the repository {source.name} (config.json)", str(constants.HF_HUB_CACHE), False):
        whole = architecture_schema.hf_config(
            AutoConfig.from_pretrained(source.name, trust_remote_code=False).to_dict(), codec.source
        )
    found = getattr(whole, INSIDE[whole.model_type]) if whole.model_type in INSIDE else whole
    made = _class_of(found, whole.model_type, modality, codec.source)
    _check(found, codec)
    described = replace(codec, architecture=json.dumps({"config": _plain(found)}))
    if modality == "image":
        described = replace(described, pixels=_pixels(found, whole.model_type, source, codec))
    else:
        described = replace(described, sound=AudioPreprocess(rate_hz=int(cast(Any, found).sampling_rate)))
    with torch.device("meta"):
        form = build(described).form
    described = replace(described, sizes=form.sizes, length=form.length)
    if codec.weights == "random":
        return Resolved(described, None)
    return Resolved(described, _weights(made, found, source, codec))


def build(codec: KnownCodec) -> "KnownImages | KnownSounds":
    """Of a resolved codec; offline, with fresh weights, the same ones under the same `torch.manual_seed`."""
    require(bool(codec.architecture), f"KnownCodec of {codec.source!r} is not resolved; open it through its run")
    where = f"the architecture of KnownCodec {codec.source!r}"
    try:
        found = architecture_schema.hf_config(json.loads(codec.architecture)["config"], where)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{where} is no configuration in JSON; do not trust it, or resolve the codec again") from None
    kinds = CLASSES["audio" if codec.pixels is None else "image"]
    told = f"{where} is a {found.model_type!r}, none of {', '.join(kinds)}; do not trust it"
    require(found.model_type in kinds, told)
    model = kinds[found.model_type](cast(Any, found))
    _scatter(model)
    return KnownSounds(model, codec.num_codebooks) if codec.pixels is None else KnownImages(model, codec.pixels)


class Known(Exact):
    """The library's module, which never trains."""

    form: CodeFormat

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model: Any = model
        self.requires_grad_(False)
        self.eval()

    @property
    def codes(self) -> int:
        return sum(self.form.sizes)

    @property
    def kind(self) -> str:
        return self.model.config.model_type

    def train(self, mode: bool = True) -> "Known":
        return super().train(False)


class KnownSounds(Known):
    """books: how many of its codebooks are written, the first ones; 0: all. A decoded sound has whole frames of `hop`.

    Codes are the library's own for each clip alone, its last frame filled with silence.
    """

    def __init__(self, model: PreTrainedModel, books: int = 0) -> None:
        super().__init__(model)
        made: Any = model.config
        self.hop = int(made.frame_size if made.model_type == "mimi" else made.hop_length)
        self.sound = AudioPreprocess(rate_hz=int(made.sampling_rate))
        self.step_samples = self.hop
        self.books = books or _books(made)
        self.form = CodeFormat(sizes=(int(made.codebook_size),) * self.books)

    @torch.no_grad()
    def encode(self, waves: Float[Tensor, "n samples"], keep: Bool[Tensor, "n samples"]) -> Ids:
        """[n, frames * books] ids, step by step. A last frame that is only begun counts; its rest is silence."""
        frames = (keep.sum(1) + self.hop - 1) // self.hop
        most = int(frames.max())
        real = torch.arange(most * self.books, device=keep.device) < frames[:, None] * self.books
        filled = F.pad(waves * keep, (0, max(most * self.hop - waves.shape[1], 0)))
        ids = torch.zeros(real.shape, dtype=torch.int64, device=keep.device)
        first = torch.arange(self.books, device=keep.device) * self.form.sizes[0]
        for count, rows in _alike(frames):
            with torch.autocast(waves.device.type, enabled=False):
                codes = self._encode(filled[rows, None, : count * self.hop].to(self.model.dtype))
            ids[rows, : count * self.books] = (codes.transpose(1, 2) + first).flatten(1)
        return Ids(ids, real)

    @torch.no_grad()
    def decode(
        self, ids: Int[Tensor, "n time"], keep: Bool[Tensor, "n time"]
    ) -> tuple[Float[Tensor, "n samples"], Bool[Tensor, "n samples"]]:
        """[n, frames * hop] samples in -1..1. DAC gives some samples less than its frames; zeros take their place."""
        steps = keep.sum(1)
        odd = next((count for count in steps.tolist() if count % self.books), 0)
        require(not odd, f"{odd} codes are no whole steps of {self.books} codebooks; cut the last {odd % self.books}")
        frames = steps // self.books
        first = torch.arange(self.books, device=ids.device) * self.form.sizes[0]
        waves = torch.zeros(len(ids), int(frames.max()) * self.hop, device=ids.device)
        for count, rows in _alike(frames):
            codes = ids[rows, : count * self.books].unflatten(1, (count, self.books)) - first
            _require_inside(codes, self.form.sizes[0], self.kind)
            with torch.autocast(waves.device.type, enabled=False):
                out = self._decode(codes.transpose(1, 2)).float()[:, : count * self.hop]
            waves[rows, : out.shape[1]] = out.clamp(-1, 1)
        return waves, torch.arange(waves.shape[1], device=ids.device) < frames[:, None] * self.hop

    def _encode(self, waves: Float[Tensor, "n 1 samples"]) -> Int[Tensor, "n books frames"]:
        match self.kind:
            case "dac":
                return self.model.encode(waves, self.books).audio_codes
            case "mimi":
                return self.model.encode(waves, num_quantizers=self.books).audio_codes
            case _:  # its codebooks are residual: those of a lower rate come first
                return self.model.encode(waves, None, max(self.model.config.target_bandwidths)).audio_codes[0][
                    :, : self.books
                ]

    def _decode(self, codes: Int[Tensor, "n books frames"]) -> Float[Tensor, "n samples"]:
        match self.kind:
            case "dac":
                return self.model.decode(audio_codes=codes).audio_values
            case "mimi":
                return self.model.decode(codes).audio_values[:, 0]
            case _:
                return self.model.decode(codes[None], [None]).audio_values[:, 0]


class KnownImages(Known):
    """Pictures of `pixels`; a picture's codes are those of its places, row by row."""

    step_samples = 0

    def __init__(self, model: PreTrainedModel, pixels: ImagePreprocess) -> None:
        super().__init__(model)
        self.pixels = pixels
        shrink = _shrink(model.config)
        self.grid = pixels.height_px // shrink, pixels.width_px // shrink
        if self.kind == "janus_vqgan":
            self.model.quantize.quant_state_dims = list(self.grid)
        size = "num_embeddings" if self.kind == "janus_vqgan" else "codebook_size"
        self.form = CodeFormat(sizes=(getattr(model.config, size),), length=self.grid[0] * self.grid[1])
        with torch.device("cpu"):  # constants are real even in a model that is built on the meta device
            self.mean = nn.Buffer(torch.tensor(pixels.mean).view(-1, 1, 1), persistent=False)
            self.std = nn.Buffer(torch.tensor(pixels.std).view(-1, 1, 1), persistent=False)

    @torch.no_grad()
    def encode(self, x: UInt8[Tensor, "n channels height width"], keep: Bool[Tensor, "n 1"]) -> Ids:
        with torch.autocast(x.device.type, enabled=False):
            pixels = ((x.float() / 255 - self.mean) / self.std).to(self.model.dtype)
            if self.kind == "janus_vqgan":
                ids = self.model.encode(pixels).image_tokens
            else:
                ids = torch.stack(self.model.encode(pixels, [x.shape[2:]] * len(x)).image_tokens)
        ids = ids.view(len(x), self.form.length) * keep
        return Ids(ids, keep.expand_as(ids))

    @torch.no_grad()
    def decode(
        self, ids: Int[Tensor, "n time"], keep: Bool[Tensor, "n time"]
    ) -> tuple[UInt8[Tensor, "n channels height width"], Bool[Tensor, "n 1"]]:
        """A picture where all codes are kept; black where they are not."""
        require(
            ids.shape[1] == self.form.length,
            f"{ids.shape[1]} codes are no picture of this codec: it has {self.grid[0]} x {self.grid[1]}",
        )
        real = keep.all(1, keepdim=True)
        _require_inside(ids * real, self.form.sizes[0], self.kind)
        places = (ids * real).long()
        with torch.autocast(ids.device.type, enabled=False):
            out = self.model.decode(places if self.kind == "janus_vqgan" else places.view(-1, *self.grid))
            x = ((out.float() * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return x * real[:, :, None, None], real


def _class_of(found: PreTrainedConfig, whole: str, modality: str, source: str) -> type[PreTrainedModel]:
    kind = found.model_type
    require(not kind.startswith("chameleon"), f"{source} is a {kind}: transformers has no decoder for its codes")
    known = {name for classes in CLASSES.values() for name in classes}
    require(kind in known, f"{source} is a {whole}, which is no codec; give {NAMES}")
    kinds = CLASSES[modality]
    require(kind in kinds, f"{source} is a {kind}, no codec for {modality}; give one of {', '.join(kinds)}")
    return kinds[kind]


def _check(found: Any, codec: KnownCodec) -> None:
    """What a stream of codes alone cannot hold."""
    if found.model_type not in CLASSES["audio"]:
        require(
            not codec.num_codebooks,
            f"KnownCodec.num_codebooks={codec.num_codebooks}: the codes of {found.model_type} are of one book",
        )
        return
    stereo = getattr(found, "audio_channels", 1) > 1
    scaled = getattr(found, "normalize", False) or getattr(found, "chunk_length_s", None) is not None
    require(
        not stereo and not scaled,
        f"{codec.source} codes stereo or a loudness beside its codes, which no code tells; give a mono one without",
    )
    most = _books(found)
    require(
        codec.num_codebooks <= most,
        f"KnownCodec.num_codebooks={codec.num_codebooks}: {codec.source} has {most}; give at most that",
    )
    sized = codec.height_px or codec.width_px
    require(not sized, f"KnownCodec: height_px and width_px are of pictures, and {codec.source} is for audio")
    least = getattr(found, "num_semantic_quantizers", 1)
    require(
        codec.num_codebooks in (0, *range(least, most + 1)),
        f"KnownCodec.num_codebooks={codec.num_codebooks}: at least {least} are read",
    )


def _books(found: Any) -> int:
    return int(found.n_codebooks if found.model_type == "dac" else found.num_quantizers)


def _shrink(found: Any) -> int:
    """Pixels to a code, each way."""
    return 2 ** (len(found.channel_multiplier) - 1)


def _pixels(found: Any, whole: str, source: Source, codec: KnownCodec) -> ImagePreprocess:
    shrink = _shrink(found)
    own = getattr(found, "num_patches", 0) * shrink
    height, width = codec.height_px or own, codec.width_px or own
    require(min(height, width) > 0, f"{codec.source} codes pictures of any size; say KnownCodec.height_px and width_px")
    for size in (height, width):
        require(size % shrink == 0, f"KnownCodec: a side of {size} px is no multiple of the {shrink} px of a code")
    return pixels_of(source.name, found, whole, Tower(source=codec.source, height_px=height, width_px=width), FITTING)


def _weights(made: type[PreTrainedModel], found: PreTrainedConfig, source: Source, codec: KnownCodec) -> Weights:
    if source.folder is not None:
        require_safetensors(source.folder)
    with fetching(codec.source, f"the repository {source.name} (model.safetensors)", str(constants.HF_HUB_CACHE)):
        loaded: Any = made.from_pretrained(
            source.name,
            config=cast(Any, found),
            dtype=torch.float32,
            output_loading_info=True,
            use_safetensors=True,
            key_mapping={r"^(model\.)?vqmodel\.": ""},
        )
        model, said = loaded
    require_complete(said["missing_keys"], codec.source)
    return {f"model.{name}": value.detach() for name, value in model.state_dict().items()}


def _plain(found: PreTrainedConfig) -> dict[str, Any]:
    return architecture_schema.described(found)


def _scatter(model: nn.Module) -> None:
    """EnCodec's and Mimi's codebooks are buffers that start as zeros, of which all codes would be the first."""
    for name, table in model.named_buffers():
        if name.rpartition(".")[2] in ("embed", "embed_sum") and not table.is_meta and not table.any():
            nn.init.normal_(table, std=0.1)


def _alike(frames: Int[Tensor, " n"]) -> list[tuple[int, Int[Tensor, " k"]]]:
    """Rows of as many frames, but for those of none."""
    return [(count, (frames == count).nonzero()[:, 0]) for count in frames.unique().tolist() if count]


def _require_inside(codes: Tensor, size: int, kind: str) -> None:
    wrong = codes[(codes < 0) | (codes >= size)]
    require(
        not len(wrong),
        f"a code of {int(wrong[0]) if len(wrong) else 0} is outside 0..{size - 1}, the range of this {kind}; "
        "these codes are another codec's, or not in the order of its books",
    )
