"""What a run is: frozen dataclasses, checked when built. Standard library only.

A reference run is a Python file in `configs/` whose `config()` returns a `Run`; a saved run is `run.json`, which
`strict` reads and writes.
"""

from mmfm.config.adapters import Lora
from mmfm.config.base import LONGEST_MESSAGE, MODALITIES, Checked, UserError, one_line, positive, require
from mmfm.config.chat import CHATML, MESSAGES, Chat, ChatTemplate, Embedded
from mmfm.config.codecs import AudioCodec, ImageCodec, KnownCodec
from mmfm.config.data import Augment, Data, RemoteCache, Source, Text
from mmfm.config.distil import Distil
from mmfm.config.encoders import AudioPreprocess, EncoderSpec, ImagePreprocess, TokenizerSpec, Tower
from mmfm.config.extend import Callback, Extension, Logger, Metric, Objective
from mmfm.config.modalities import Modality, media_names, modality_names
from mmfm.config.model import Model
from mmfm.config.parallel import Parallel
from mmfm.config.projectors import Projector
from mmfm.config.run import Contrastive, Ema, Eval, Generative, Optim, ParamGroup, Reconstruction, Run
from mmfm.config.towers import Conformer, Mel, TextTower, Trunk, Vit

__all__ = [
    "CHATML",
    "LONGEST_MESSAGE",
    "MESSAGES",
    "MODALITIES",
    "AudioCodec",
    "AudioPreprocess",
    "Augment",
    "Callback",
    "Chat",
    "ChatTemplate",
    "Checked",
    "Conformer",
    "Contrastive",
    "Data",
    "Distil",
    "Ema",
    "Embedded",
    "EncoderSpec",
    "Eval",
    "Extension",
    "Generative",
    "ImageCodec",
    "ImagePreprocess",
    "KnownCodec",
    "Logger",
    "Lora",
    "Mel",
    "Metric",
    "Modality",
    "Model",
    "Objective",
    "Optim",
    "Parallel",
    "ParamGroup",
    "Projector",
    "Reconstruction",
    "RemoteCache",
    "Run",
    "Source",
    "Text",
    "TextTower",
    "TokenizerSpec",
    "Tower",
    "Trunk",
    "UserError",
    "Vit",
    "media_names",
    "modality_names",
    "one_line",
    "positive",
    "require",
]
