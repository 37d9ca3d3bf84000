"""A model as a folder that transformers loads: weights, configuration, tokenizer, processors, and a stub of code.

    config.json  model.safetensors  generation_config.json  tokenizer.json  tokenizer_config.json
    processor_config.json  modeling_mmfm.py  README.md  writer/

The tokenizer is the one that texts are read by; where the text tower brought its own, the one for writing lies in
`writer`.

The stub imports this package and registers it, so that programs which never import mmfm can load the folder too.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import GenerationConfig

from mmfm.config import Run, require
from mmfm.export.hf.cache_parity import check_cache
from mmfm.export.hf.card import card
from mmfm.export.hf.config import MMFMConfig, config_of
from mmfm.export.hf.processing import PROCESSOR, MMFMFeatureExtractor, MMFMImageProcessor
from mmfm.export.hf.tokenizer import hf_tokenizer, reading_tokenizer
from mmfm.inference.interface import Interface
from mmfm.runtime.files import whole_folder

WRITER = "writer"


def write(model: Interface, folder: Path) -> None:
    """Write `model` to a new folder, whole or not at all. UserError where it exists, or where the model cannot be
    told in transformers' words."""
    require(not folder.exists(), f"{folder} exists already; give a new one, or remove it first")
    with whole_folder(folder) as part:
        fill(model, part)


def fill(model: Interface, folder: Path) -> None:
    """All of `write` in a folder that is there; UserError where transformers would not write out of it what is ours."""
    config = config_of(model.run, model.tokenizer)
    state = {name: tensor for name, tensor in model.core.state_dict().items() if not name.startswith("codecs.")}
    tensors = {f"core.{name}": tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    writing, reader = hf_tokenizer(model.tokenizer, config.vocabulary()), model.tokenizer.reader
    (writing if reader is None else reading_tokenizer(reader, model.tokenizer.longest)).save_pretrained(folder)
    if reader is not None:
        writing.save_pretrained(folder / WRITER)
    _save_processors(model.run, model.modalities, folder)
    generation(config).save_pretrained(folder)
    (folder / "README.md").write_text(card(model), encoding="utf-8")
    if any(str(task).endswith("text") for task in model.tasks):
        check_cache(folder)


def _save_processors(run: Run, modalities: tuple[str, ...], folder: Path) -> None:
    """One processor_config.json for both."""
    parts: dict[str, Any] = {}
    if "image" in modalities and run.model.image is not None:
        pixels = dataclasses.asdict(run.model.image.pixels)
        parts["image_processor"] = MMFMImageProcessor(pixels=pixels, exact_decode=run.data.exact_decode).to_dict()
    if "audio" in modalities and run.model.audio is not None:
        parts["feature_extractor"] = MMFMFeatureExtractor(
            sampling_rate=run.model.audio.sound.rate_hz,
            max_seconds=run.data.max_seconds,
            crop_seconds=run.data.crop_seconds,
        ).to_dict()
    if parts:
        tree = parts | PROCESSOR
        (folder / "processor_config.json").write_text(json.dumps(tree, indent=2, sort_keys=True), encoding="utf-8")


def generation(config: MMFMConfig) -> GenerationConfig:
    """Greedy by default. Only text and the end mark are written: what else the vocabulary holds cannot be decoded."""
    vocabulary = config.vocabulary()
    text = vocabulary.span("text")
    other = [i for i in range(vocabulary.size) if i not in text and i != vocabulary.end]
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        do_sample=False,
        suppress_tokens=other,
    )
