"""The trunk of a model alone, as the plain Llama or Qwen of transformers: `mmfm export --to hf --part trunk`.

Nothing of it needs mmfm. Of a run the table is that of the whole vocabulary, and the tokenizer puts the begin mark
before each text; of an imported language model both are what they were.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from mmfm.config import ChatTemplate, Trunk, require
from mmfm.data.batch import Tokens
from mmfm.data.vocabulary import Vocabulary
from mmfm.export.open_source import open_model
from mmfm.export.tokenizer import hf_tokenizer
from mmfm.inference.bundle.contents import is_trunk, read_bundle
from mmfm.inference.bundle.load import load_trunk
from mmfm.inference.bundle.without_paths import TOKENIZER
from mmfm.models.mappings import Foreign, give_back, language_config
from mmfm.models.transformer import Segment, UnifiedTransformer
from mmfm.preprocessing.tokenizer import load_tokenizer
from mmfm.pretrained import architecture_schema
from mmfm.pretrained.chat_template import jinja

TOLERANCE = 1e-4  # difference of logits, as a part of the largest


class Language(NamedTuple):
    """A trunk between its tables, and the tokenizer that goes with them."""

    part: Trunk
    trunk: UnifiedTransformer
    table: Tensor
    output: Tensor | None  # None: the table
    tokenizer: PreTrainedTokenizerFast
    suppressed: list[int] | None = None  # ids that no text has
    end: int | None = None  # of a vocabulary of ours, its end mark


def language_of(run: str | Path, step: int | None = None, ema: bool = False) -> Language:
    """Of a run, a checkpoint, a bundle of a model or of a trunk."""
    folder = Path(run)
    if is_trunk(run):
        require(not ema, f"{run} is a bundle, which keeps no moving average; leave out --ema")
        model = read_bundle(folder).run.model
        trunk, tables = load_trunk(folder)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=load_tokenizer(folder / TOKENIZER).inner)
        table, output = tables["embedding.weight"], tables.get("output.weight")
        return Language(model.trunk, trunk, table, output, with_chat(tokenizer, model.chat))
    model = open_model(run, step, ema)
    core, vocabulary = model.core, model.core.vocabulary
    output = None if core.output is None else core.output.weight.detach()
    tokenizer = with_chat(hf_tokenizer(model.tokenizer, vocabulary), model.config.chat)
    table = core.embedding.weight.detach()
    return Language(model.config.trunk, core.trunk, table, output, tokenizer, other_ids(vocabulary), vocabulary.end)


def with_chat(tokenizer: PreTrainedTokenizerFast, chat: ChatTemplate | None) -> PreTrainedTokenizerFast:
    """A tokenizer that knows the model's chat template. There marks are a part of the text that the template gives, so
    that from then on what looks like one in a text is one, as with all models of transformers."""
    if chat is None:
        return tokenizer
    tokenizer.chat_template = jinja(chat, str(tokenizer.eos_token or ""))
    tokenizer.split_special_tokens = False
    tokenizer.backend_tokenizer.encode_special_tokens = False
    if chat.end:
        tokenizer.eos_token = chat.end
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def other_ids(vocabulary: Vocabulary) -> list[int]:
    """What is neither text nor the end mark."""
    text = vocabulary.span("text")
    return [place for place in range(vocabulary.size) if place not in text and place != vocabulary.end]


def write(run: str | Path, folder: Path, step: int | None = None, ema: bool = False) -> dict[str, Any]:
    """Fills `folder`; returns what export.json should say. UserError where transformers has no such model."""
    found = language_of(run, step, ema)
    marks = {f"{name}_token_id": getattr(found.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    tree = language_config(found.part, len(found.table)) | marks
    ends = [marks["eos_token_id"], *([] if found.end in (None, marks["eos_token_id"]) else [found.end])]
    config = architecture_schema.hf_config(tree, "this trunk")
    theirs: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False).eval()
    shapes = {name.removeprefix("model."): tensor.shape for name, tensor in theirs.state_dict().items()}
    source = Foreign(library="hf", architecture=tree, modality="text")
    ours = {**found.trunk.state_dict(), "embedding.weight": found.table}
    ours["output.weight"] = found.table if found.output is None else found.output
    given = give_back(source, found.part, ours, shapes)
    weights = {name if name.startswith("lm_head") else f"model.{name}": tensor for name, tensor in given.items()}
    theirs.load_state_dict(weights, strict=True)
    how = marks | {"eos_token_id": ends if len(ends) > 1 else ends[0]}  # an answer's end, and a text's
    theirs.generation_config = GenerationConfig(**how, do_sample=False, suppress_tokens=found.suppressed)
    difference = compared(found, theirs)
    theirs.save_pretrained(folder)
    found.tokenizer.save_pretrained(folder)
    return {"part": "trunk", "difference": difference}


@torch.no_grad()
def compared(found: Language, theirs: Any) -> float:
    """The largest difference of logits, as a part of the largest. UserError above TOLERANCE."""
    ids = torch.randint(0, len(found.table), (2, 9), generator=torch.Generator().manual_seed(0))
    tokens = Tokens(found.table[ids], torch.ones_like(ids, dtype=torch.bool))
    (states,) = found.trunk.eval()([Segment(tokens, causal=True)])
    expected = states @ (found.table if found.output is None else found.output).T
    difference = float((theirs(input_ids=ids).logits - expected).abs().max() / expected.abs().max())
    told = f"transformers' {theirs.config.model_type} differs by {difference:g} of the largest logit from the trunk"
    require(difference <= TOLERANCE, f"{told}, above {TOLERANCE}")
    return difference
