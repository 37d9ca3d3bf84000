"""The face that transformers sees: our models under its Auto classes, and a folder that it loads by itself."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from mmfm.export.hf.causal import MMFMForCausalLM
from mmfm.export.hf.config import MMFMConfig
from mmfm.export.hf.model import MMFMModel
from mmfm.export.hf.processing import (
    MMFMAudioTextProcessor,
    MMFMFeatureExtractor,
    MMFMImageProcessor,
    MMFMImageTextProcessor,
    MMFMProcessor,
)
from mmfm.export.hf.shims import PlainFeatures, clip_score_shim

__all__ = [
    "MMFMAudioTextProcessor",
    "MMFMConfig",
    "MMFMFeatureExtractor",
    "MMFMForCausalLM",
    "MMFMImageProcessor",
    "MMFMImageTextProcessor",
    "MMFMModel",
    "MMFMProcessor",
    "PlainFeatures",
    "clip_score_shim",
    "register",
]


def register() -> None:
    """Make transformers' Auto classes know ours. What loads a folder with remote code calls it through the folder."""
    AutoConfig.register(MMFMConfig.model_type, MMFMConfig, exist_ok=True)
    for auto, kind in (
        (AutoModel, MMFMModel),
        (AutoModelForZeroShotImageClassification, MMFMModel),
        (AutoModelForCausalLM, MMFMForCausalLM),
        (AutoModelForMultimodalLM, MMFMForCausalLM),
        (AutoProcessor, MMFMProcessor),
        (AutoFeatureExtractor, MMFMFeatureExtractor),
    ):
        auto.register(MMFMConfig, kind, exist_ok=True)
    backends = {"pil": MMFMImageProcessor, "torchvision": MMFMImageProcessor}
    AutoImageProcessor.register(MMFMConfig, image_processor_classes=backends, exist_ok=True)
    AutoTokenizer.register(MMFMConfig, tokenizer_class=PreTrainedTokenizerFast, exist_ok=True)
