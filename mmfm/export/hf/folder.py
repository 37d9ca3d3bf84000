"""What transformers reads of a model's folder, beside the weights.

    config.json  generation_config.json  tokenizer.json  tokenizer_config.json  processor_config.json
    modeling_mmfm.py  writer/

The tokenizer is the one that texts are read by; where the text tower brought its own, the one for writing lies in
`writer`. The stub imports this package and registers it, so that programs which never import mmfm can load the folder.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from mmfm.config import Run
from mmfm.export.hf.config import MMFMConfig, config_of
from mmfm.export.hf.processing import PROCESSOR, MMFMFeatureExtractor, MMFMImageProcessor
from mmfm.export.tokenizer import hf_tokenizer, reading_tokenizer
from mmfm.inference.bundle.contents import Bundle
from mmfm.preprocessing.tokenizer import Tokenizer

WRITER = "writer"


def write_settings(bundle: Bundle, tokenizer: Tokenizer | None, folder: Path) -> None:
    """All of it; of a part alone (tokenizer=None) config.json and the stub. UserError for what transformers lacks."""
    config = config_of(bundle, 0 if tokenizer is None else tokenizer.size)
    config.save_pretrained(folder)
    if tokenizer is None:
        return
    writing, reader = hf_tokenizer(tokenizer, config.vocabulary()), tokenizer.reader
    (writing if reader is None else reading_tokenizer(reader, tokenizer.longest)).save_pretrained(folder)
    if reader is not None:
        writing.save_pretrained(folder / WRITER)
    _save_processors(bundle.run, folder)
    generation(config).save_pretrained(folder)


def _save_processors(run: Run, folder: Path) -> None:
    """One processor_config.json for both."""
    parts: dict[str, Any] = {}
    if run.model.image is not None:
        pixels = dataclasses.asdict(run.model.image.pixels)
        parts["image_processor"] = MMFMImageProcessor(pixels=pixels, exact_decode=run.data.exact_decode).to_dict()
    if run.model.audio is not None:
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
