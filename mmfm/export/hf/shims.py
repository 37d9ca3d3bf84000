"""What torchmetrics asks of a model, which is a little less than transformers 5 gives: plain tensors.

torchmetrics up to 1.9 takes `get_*_features` to return tensors, as transformers 4 did; these two classes unwrap them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from mmfm.export.hf.model import MMFMModel
from mmfm.export.hf.processing import MMFMProcessor


class PlainFeatures(nn.Module):
    """Of a model's folder. Called, it embeds pictures; FID and KID take it as their `feature`."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.model, self.processor = MMFMModel.from_pretrained(folder), MMFMProcessor.from_pretrained(folder)
        self.config, self.num_features = self.model.config, self.model.config.projection_dim

    def forward(self, pictures: UInt8[Tensor, "n channels height width"]) -> Float[Tensor, "n dim"]:
        return self.get_image_features(self.processor(images=list(pictures.cpu()), return_tensors="pt")["pixel_values"])

    @torch.no_grad()
    def get_image_features(self, pixel_values: Tensor) -> Float[Tensor, "n dim"]:
        return self.model.get_image_features(pixel_values.to(self.model.device)).pooler_output

    @torch.no_grad()
    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Float[Tensor, "n dim"]:
        return self.model.get_text_features(input_ids, attention_mask).pooler_output


def clip_score_shim(folder: str | Path) -> Callable[[], tuple[PlainFeatures, Any]]:
    """For `torchmetrics.multimodal.CLIPScore(model_name_or_path=...)`, whose pictures are uint8 tensors."""

    def load() -> tuple[PlainFeatures, Any]:
        features = PlainFeatures(folder)
        return features, features.processor

    return load
