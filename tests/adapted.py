"""A toy run whose trunk is a tiny Llama that rests under adapters, which several tests share."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import doomed
from test_importing import language

import mmfm
from mmfm.config import Contrastive, Generative, Lora, Run
from mmfm.config.serialization import from_file, to_json
from mmfm.export import importer
from mmfm.inference.bundle.without_paths import TOKENIZER

LORA = Lora(rank=2, alpha=4.0)


def bundle_of_llama(folder: Path, tied: bool = True) -> Path:
    """FOLDER/bundle, imported from a tiny Llama of transformers in FOLDER/lm."""
    language(folder / "lm", tied)
    importer.import_source(str(folder / "lm"), folder / "bundle")
    return folder / "bundle"


def adapted_run(folder: Path, *adapters: Lora, tied: bool = True, **changes: Any) -> Run:
    """The run of FOLDER/toy.json: toy pictures, tones and their names."""
    bundle = bundle_of_llama(folder, tied)
    path = doomed.toy(folder)
    run = from_file(path)
    trunk, tokenizer = mmfm.native(str(bundle), "trunk"), str(bundle / TOKENIZER)
    model = replace(run.model, trunk=trunk, tokenizer=tokenizer, adapters=adapters or (LORA,))
    terms = {
        "contrastive": (Contrastive(pair=("image", "text")), Contrastive(pair=("audio", "text"))),
        "generative": (Generative(task="image>text"),),
    }
    run = replace(run, model=model, **({"save_every_steps": 2} | terms | changes))
    path.write_text(to_json(run), encoding="utf-8")
    return run
