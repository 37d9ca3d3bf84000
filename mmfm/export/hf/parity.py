"""Before a folder gets its name: that transformers embeds out of it what mmfm does, and that its cache is read."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from mmfm.compat.transformers import transformers_version
from mmfm.config import require
from mmfm.export.hf.causal import MMFMForCausalLM
from mmfm.export.hf.processing import MMFMFeatureExtractor, MMFMImageProcessor
from mmfm.inference.bundle.contents import GOLDEN, Bundle
from mmfm.inference.bundle.golden import SECONDS

LARGEST = 1e-4  # difference of unit vectors
TOLERANCE = 1e-3  # of the largest logit; a cache that is not read is off by its size
NEW_TOKENS = 6
NO_LIMIT = 1 << 30  # what transformers has for a tokenizer that never cuts is larger


@torch.no_grad()
def check_transformers(folder: Path, bundle: Bundle) -> None:
    """UserError where the folder, opened by transformers, gives other embeddings than its golden ones, through its own
    tokenizer and processors, or other texts with a cache than without."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = MMFMForCausalLM.from_pretrained(folder).eval()
    finally:
        if shown:
            logging.enable_progress_bar()
    stored = load_file(folder / GOLDEN)
    for modality in bundle.modalities:
        found = model.embed(modality, *_inputs(modality, folder, stored, bundle.sentences))
        difference = float((found - stored[f"{modality}.embedding"]).abs().max())
        told = f"transformers {transformers_version()} gives other embeddings of {modality}, by {difference:.2g}"
        require(difference <= LARGEST, f"{told}; take a release that this package allows")
    if any(item.task.endswith(">text") for item in bundle.run.generative):
        check_cache(model)


def _inputs(
    modality: str, folder: Path, stored: dict[str, Tensor], sentences: tuple[str, ...]
) -> tuple[Tensor, Tensor | None]:
    """The golden inputs as the folder's own tokenizer or processor reads them, and what is real of it."""
    if modality == "text":
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        limited = tokenizer.model_max_length < NO_LIMIT
        ids = tokenizer(list(sentences), padding=True, truncation=limited, return_tensors="pt")
        return ids["input_ids"], ids["attention_mask"]  # pyright: ignore[reportReturnType]
    given = stored[f"{modality}.given"].numpy()
    if modality == "image":
        return MMFMImageProcessor.from_pretrained(folder)(list(given))["pixel_values"], None
    extractor = MMFMFeatureExtractor.from_pretrained(folder)
    lengths = [round(seconds * extractor.sampling_rate) for seconds in SECONDS]
    heard = extractor([np.asarray(wave[:length]) for wave, length in zip(given, lengths, strict=True)])
    return heard["input_features"], heard["input_features_mask"]


def check_cache(model: MMFMForCausalLM) -> None:
    """UserError where logits with a cache differ from those without by more than TOLERANCE of the largest.

    Two sentences of different length write on together, by `generate` with its cache; then all that was written is
    read at once, without one.
    """
    begin, text = model.vocabulary.begin("text"), model.vocabulary.span("text")
    ids = torch.tensor([[begin, text.start, text.stop - 1, text.start], [model.vocabulary.pad, begin, text.start, 0]])
    ids[1, 3], mask = text.stop - 1, torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    how = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    made = model.generate(ids, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **how)
    cached = torch.stack(made.logits, 1)
    seen = torch.nn.functional.pad(mask, (0, made.sequences.shape[1] - mask.shape[1]), value=1)
    whole = model(input_ids=made.sequences, attention_mask=seen).logits[:, ids.shape[1] - 1 : -1]
    difference = float((cached - whole).abs().max() / whole.abs().max())
    told = f"with transformers {transformers_version()} its cache changes what is written, by {difference:.2g}"
    require(difference <= TOLERANCE, f"{told} of the largest logit; take a release that this package allows")
