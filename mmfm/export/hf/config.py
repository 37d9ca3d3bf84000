"""A run as transformers keeps it: our configuration as plain JSON beside the few sizes that clients ask for by name."""

import dataclasses
import json
from typing import Any, no_type_check

from torch import nn
from transformers import PreTrainedConfig

from mmfm.config import Data, Run, require
from mmfm.config.serialization import from_json, to_json
from mmfm.data.vocabulary import Vocabulary
from mmfm.export.hf.stub import Foreign, auto_map, write_stub
from mmfm.export.without_paths import unplaced
from mmfm.models.model import UnifiedModel, build
from mmfm.preprocessing.tokenizer import Tokenizer

AUTOS = auto_map(
    AutoConfig="MMFMConfig",
    AutoModel="MMFMModel",
    AutoModelForZeroShotImageClassification="MMFMModel",
    AutoModelForCausalLM="MMFMForCausalLM",
    AutoModelForMultimodalLM="MMFMForCausalLM",
)
CONTEXT = 2_048  # tokens that clients who ask for a limit are told; positions are rotary, so the model itself has none


@no_type_check  # transformers makes it a dataclass and then lets it take more names than a dataclass can
class MMFMConfig(Foreign, PreTrainedConfig):
    """`run`: what `mmfm.config.serialization` writes of a run, without its data. `text_ids`: ids of its tokenizer.

    Ids are those of the whole vocabulary: marks first, then text, then codes. See `mmfm.data.vocabulary`.
    """

    model_type = "mmfm"  # clients take a "siglip" in here as a sign to use a sigmoid

    run: dict[str, Any] | None = None
    text_ids: int = 0
    vocab_size: int = 0
    hidden_size: int = 0
    num_hidden_layers: int = 0
    num_attention_heads: int = 1
    num_key_value_heads: int = 1
    head_dim: int = 1
    projection_dim: int = 0
    max_position_embeddings: int = CONTEXT
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False  # one table by construction, so nothing has to be tied after loading

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As transformers', with the stub beside it, so that whatever saves a model saves a folder that loads."""
        self.auto_map = AUTOS
        super().save_pretrained(save_directory, push_to_hub, **kwargs)
        write_stub(save_directory)

    def parsed(self) -> Run:
        """The run; UserError where it is none, which names the key."""
        require(self.run is not None, "this MMFMConfig holds no run; take it from a folder of mmfm export --to hf")
        return from_json(json.dumps(self.run), "config.json: run")

    def vocabulary(self) -> Vocabulary:
        model = self.parsed().model
        return Vocabulary(text=self.text_ids, image=model.codes("image"), audio=model.codes("audio"))

    def build(self) -> UnifiedModel:
        """The module, freshly initialised, without codecs: transformers writes nothing but text with it."""
        run = self.parsed()
        core = build(run.model, self.text_ids, run.contrastive)
        core.codecs, core.forms = nn.ModuleDict(), {"text": core.forms["text"]}
        return core


def config_of(run: Run, tokenizer: Tokenizer) -> MMFMConfig:
    """The face's configuration of a run and its tokenizer."""
    model = run.model
    vocabulary = Vocabulary(text=tokenizer.size, image=model.codes("image"), audio=model.codes("audio"))
    return MMFMConfig(
        run=json.loads(to_json(_public(run))),
        text_ids=tokenizer.size,
        vocab_size=vocabulary.size,
        hidden_size=model.trunk.width,
        num_hidden_layers=model.trunk.depth,
        num_attention_heads=model.trunk.heads,
        num_key_value_heads=model.trunk.kv_heads,
        head_dim=model.trunk.head_dim or model.trunk.width // model.trunk.heads,
        projection_dim=model.embed_dim,
        bos_token_id=vocabulary.begin("text"),
        eos_token_id=vocabulary.end,
        pad_token_id=vocabulary.pad,
        architectures=["MMFMModel"],
        dtype="float32",
    )


def _public(run: Run) -> Run:
    """What the model is and how its input is read; not where its data and its bundles lay on someone's disk."""
    data = Data(
        max_seconds=run.data.max_seconds,
        crop_seconds=run.data.crop_seconds,
        max_text_tokens=run.data.max_text_tokens,
        long_text=run.data.long_text,
        exact_decode=run.data.exact_decode,
    )
    model = dataclasses.replace(unplaced(run.model), tokenizer="bytes")
    return Run(name=run.name, model=model, data=data, contrastive=run.contrastive, generative=run.generative)
