"""Tiny models of other libraries, away from their neutral start, and our own modules with their weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import open_clip
import timm
import torch
import transformers
from torch import Tensor, nn

from mmfm.config import Conformer, TextTower, Trunk, Vit
from mmfm.models.conformer import AudioConformer
from mmfm.models.mappings import Converted, Foreign, Part, convert
from mmfm.models.text_transformer import TextTransformer
from mmfm.models.transformer import UnifiedTransformer
from mmfm.models.vit import VisionTransformer

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
PICTURE = {"image_size": 32, "patch_size": 8}
DINO = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2, **PICTURE}
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 4, "depth": 2}
SPEECH = {
    **SMALL,
    "feature_projection_input_dim": 16,
    "left_max_position_embeddings": 3,
    "right_max_position_embeddings": 2,
    "conv_depthwise_kernel_size": 5,
}
MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = {**SMALL, **MARKS, "vocab_size": 20, "max_position_embeddings": 12}
LANGUAGE = {**SMALL, **MARKS, "vocab_size": 20, "num_key_value_heads": 2}
OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 2, "width": 32, "head_width": 8, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 9, "vocab_size": 20, "width": 32, "heads": 4, "layers": 2},
}


@contextmanager
def double() -> Iterator[None]:
    """What is made within is in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def shaken(module: nn.Module) -> nn.Module:
    """Norms of ones, biases of zeros and fresh statistics would hide a swap."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    for name, buffer in module.named_buffers():
        if "running" in name:
            buffer.copy_(buffer + 0.5 * torch.rand_like(buffer))
    return module.eval()


def built(part: Part) -> nn.Module:
    match part:
        case Vit():
            return VisionTransformer(part).eval()
        case Conformer():
            return AudioConformer(part).eval()
        case TextTower():
            return TextTransformer(part, part.vocabulary).eval()
        case Trunk():
            return UnifiedTransformer(part).eval()


def ours(source: Foreign, weights: dict[str, Tensor]) -> tuple[Converted, nn.Module]:
    """Converted, and loaded strictly."""
    converted = convert(source, weights)
    module = built(converted.part)
    module.load_state_dict(converted.weights, strict=True)
    return converted, module


def of_timm(name: str, **kwargs: object) -> tuple[nn.Module, Foreign]:
    model = shaken(timm.create_model(name, pretrained=False, **(TINY | kwargs)))
    architecture = {"name": name, "kwargs": TINY | kwargs}
    return model, Foreign(library="timm", architecture=architecture, modality="image")


def of_hf(kind: str, modality: str, **config: object) -> tuple[nn.Module, Foreign]:
    """`kind`: the model's class; its configuration's is that without the task."""
    torch.manual_seed(0)
    model = getattr(transformers, kind)
    model = shaken(model(model.config_class(**config)))
    return model, Foreign(library="hf", architecture=model.config.to_dict(), modality=modality)


def of_open_clip(modality: str, **changes: object) -> tuple[nn.Module, Foreign]:
    cfg = OPEN_CLIP | changes
    kind = open_clip.CustomTextCLIP if "custom" in changes else open_clip.CLIP
    cfg.pop("custom", None)
    return shaken(kind(**cfg)), Foreign(library="open_clip", architecture=cfg, modality=modality)


def open_clip_tokens(model: nn.Module, modality: str, x: Tensor) -> Tensor:
    """All tokens of a tower after its last norm."""
    if modality == "text":
        how = {"text_indices": 1, "normalize_intermediates": True, "intermediates_only": True}
        return model.forward_intermediates(text=x, **how)["text_intermediates"][-1]
    out = model.visual.forward_intermediates(
        x, 1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
    )
    return torch.cat([out["image_intermediates_prefix"][-1], out["image_intermediates"][-1]], 1)


def padded(lengths: list[int], time: int) -> Tensor:
    """What is kept, padding on the right."""
    return torch.arange(time) < torch.tensor(lengths)[:, None]


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ids_of(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(3, 20, shape, generator=torch.Generator().manual_seed(seed))
