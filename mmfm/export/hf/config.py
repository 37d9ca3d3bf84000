"""A model as transformers keeps it: what our folder says of itself, and the few sizes that clients ask for by name."""

import json
from typing import Any, no_type_check

from torch import nn
from transformers import PreTrainedConfig

from mmfm.config import Run, require
from mmfm.config.serialization import write
from mmfm.data.vocabulary import Vocabulary
from mmfm.export.hf.stub import Foreign, auto_map, write_stub
from mmfm.inference.bundle.contents import KEY, Bundle, parsed
from mmfm.models.model import UnifiedModel, build

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
    """`mmfm`: a `mmfm.inference.bundle.contents.Bundle` as JSON. `text_ids`: ids of its tokenizer.

    Ids are those of the whole vocabulary: marks first, then text, then codes. See `mmfm.data.vocabulary`.
    """

    model_type = "mmfm"  # clients take a "siglip" in here as a sign to use a sigmoid

    mmfm: dict[str, Any] | None = None
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
        """The run; UserError where it is none, which names the key, and where there is no model around a part."""
        told = "this config.json holds no model of mmfm, or one of an earlier mmfm"
        require(self.mmfm is not None, f"{told}; take it from a folder of `mmfm export`")
        bundle = parsed(self.mmfm, f"config.json: {KEY}")
        told = f"this folder holds {bundle.alone}, which transformers does not open"
        require(bundle.whole, f"{told}; mmfm does: load_encoder, or native in a configuration")
        return bundle.run

    def vocabulary(self) -> Vocabulary:
        model = self.parsed().model
        return Vocabulary(text=self.text_ids, image=model.codes("image"), audio=model.codes("audio"))

    def build(self) -> UnifiedModel:
        """The module, freshly initialised, without codecs: transformers writes nothing but text with it."""
        run = self.parsed()
        core = build(run.model, self.text_ids, run.contrastive)
        core.codecs, core.forms = nn.ModuleDict(), {"text": core.forms["text"]}
        return core


def config_of(bundle: Bundle, text_ids: int) -> MMFMConfig:
    """The face's configuration of a folder's model, whose tokenizer has so many ids; of a part alone without sizes."""
    said = {KEY: json.loads(write(bundle)), "text_ids": text_ids, "dtype": "float32"}
    if not bundle.whole:
        return MMFMConfig(**said)
    model = bundle.run.model
    vocabulary = Vocabulary(text=text_ids, image=model.codes("image"), audio=model.codes("audio"))
    return MMFMConfig(
        **said,
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
    )
