"""Before a folder gets its name: that what transformers writes out of it with a cache is what it writes without one."""

from pathlib import Path

import torch

from mmfm.compat.transformers import transformers_version
from mmfm.config import require
from mmfm.export.hf.causal import MMFMForCausalLM

TOLERANCE = 1e-3  # of the largest logit; a cache that is not read is off by its size
NEW_TOKENS = 6


@torch.no_grad()
def check_cache(folder: Path) -> float:
    """The largest difference of logits, as a part of the largest logit, which is at most TOLERANCE. UserError above.

    Two sentences of different length write on together, by `generate` with its cache; then all that was written is
    read at once, without one.
    """
    model = MMFMForCausalLM.from_pretrained(folder).eval()
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
    return difference
