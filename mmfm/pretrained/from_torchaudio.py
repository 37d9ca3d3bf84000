"""Speech encoders of torchaudio's bundles: waveforms in, the last layer's tokens out.

architecture: {"model": "Wav2Vec2" or "WavLM", "params": of its factory, "normalize": whether each clip is normalised}.
"""

import json
from typing import Any, cast

import torch
import torchaudio
import torchaudio.models
import torchaudio.pipelines
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchaudio.pipelines import Wav2Vec2Bundle

from mmfm.compat.torchaudio import described, file_of
from mmfm.config import AudioPreprocess, EncoderSpec, Tower, require
from mmfm.data.batch import Tokens
from mmfm.pretrained import architecture_schema
from mmfm.pretrained.encoder import Encoder, Resolved, architecture, finish, prefixed
from mmfm.pretrained.source import Source, fetching

MODELS = {"Wav2Vec2": torchaudio.models.wav2vec2_model, "WavLM": torchaudio.models.wavlm_model}
NORM_EPS = 1e-5  # of the layer norm that torchaudio puts over a whole clip


class TorchaudioSpeech(Encoder):
    """Lengths reach the model where torchaudio takes them (its WavLM sees all padding, as a group norm always does)."""

    def __init__(self, blueprint: EncoderSpec, trunk: nn.Module) -> None:
        super().__init__(blueprint, trunk)
        shape = architecture(blueprint)
        self.normalize, self.masked = bool(shape["normalize"]), shape["model"] != "WavLM"

    def features(
        self, waves: Float[Tensor, "batch samples"], keep: Bool[Tensor, "batch samples"]
    ) -> tuple[Tensor, Bool[Tensor, "batch time"]]:
        x = waves * keep
        if self.normalize:
            count = keep.sum(1, keepdim=True)
            mean = x.sum(1, keepdim=True) / count
            spread = ((x - mean).square() * keep).sum(1, keepdim=True) / count
            x = (x - mean) * keep / (spread + NORM_EPS).sqrt()
        return x, keep

    def forward(self, x: Tensor, keep: Bool[Tensor, "batch time"] | None = None) -> Tokens:
        assert keep is not None
        trunk: Any = self.trunk
        x, lengths = trunk.feature_extractor(x, keep.sum(1))
        x = trunk.encoder(x, lengths if self.masked else None)
        return Tokens(x, torch.arange(x.shape[1], device=x.device) < lengths.clamp(min=1)[:, None])


def resolve(source: Source, tower: Tower, modality: str) -> Resolved:
    require(modality == "audio", f"{tower.source} encodes sounds; torchaudio has no {modality} encoders")
    bundles = {name: each for name, each in vars(torchaudio.pipelines).items() if isinstance(each, Wav2Vec2Bundle)}
    require(
        source.name in bundles, f"torchaudio has no encoder {source.name!r}; there are {', '.join(sorted(bundles))}"
    )
    bundle = bundles[source.name]
    shape, sound = json.dumps(described(bundle)), AudioPreprocess(rate_hz=round(bundle.sample_rate))
    draft = EncoderSpec(library="torchaudio", modality="audio", architecture=shape, width=1, sound=sound)
    weights = None
    if tower.weights == "pretrained":
        cache = f"{torch.hub.get_dir()}/checkpoints"
        with fetching(tower.source, f"the file {file_of(bundle)}", cache):
            model: Any = bundle.get_model()
        weights = prefixed(getattr(model, "model", model).state_dict())
    return finish(draft, build, weights)


def build(blueprint: EncoderSpec) -> Encoder:
    where = "a blueprint of torchaudio"
    shape = architecture_schema.require_keys(architecture(blueprint), architecture_schema.TORCHAUDIO, where)
    require(shape.get("model") in MODELS, f"{where} is none of {', '.join(MODELS)}; do not trust it")
    return TorchaudioSpeech(blueprint, cast(nn.Module, MODELS[shape["model"]](**shape["params"])))
