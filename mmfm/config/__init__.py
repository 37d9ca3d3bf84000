"""What a run is: frozen dataclasses, checked when built. Standard library only.

A reference run is a Python file in `configs/` whose `config()` returns a `Run`; a saved run is `run.json`, which
`strict` reads and writes.
"""

from mmfm.config.base import LONGEST_MESSAGE, MODALITIES, Checked, UserError, one_line, positive, require
from mmfm.config.codecs import AudioCodec, ImageCodec, KnownCodec
from mmfm.config.data import Augment, Data, Source, Store, Text
from mmfm.config.encoders import Blueprint, Pixels, Sound, Tower, Words
from mmfm.config.model import Model
from mmfm.config.run import Contrast, Eval, Optim, Rate, Reconstruct, Run, Write
from mmfm.config.towers import Conformer, Mel, TextTower, Trunk, Vit

__all__ = [
    "LONGEST_MESSAGE",
    "MODALITIES",
    "AudioCodec",
    "Augment",
    "Blueprint",
    "Checked",
    "Conformer",
    "Contrast",
    "Data",
    "Eval",
    "ImageCodec",
    "KnownCodec",
    "Mel",
    "Model",
    "Optim",
    "Pixels",
    "Rate",
    "Reconstruct",
    "Run",
    "Sound",
    "Source",
    "Store",
    "Text",
    "TextTower",
    "Tower",
    "Trunk",
    "UserError",
    "Vit",
    "Words",
    "Write",
    "one_line",
    "positive",
    "require",
]
