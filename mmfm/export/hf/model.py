"""The model as transformers knows two-tower models: features of each modality, logits between them, a loss."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from mmfm.compat.transformers import BaseModelOutputWithPooling, ModelOutput
from mmfm.config import TokenizerSpec, require
from mmfm.config.task import Task
from mmfm.data.batch import Batch, Items
from mmfm.export.hf.arguments import check_arguments
from mmfm.export.hf.config import MMFMConfig
from mmfm.export.hf.stub import Foreign
from mmfm.models.checkpoint import words_of
from mmfm.objectives.contrastive_loss import CONTRAST
from mmfm.objectives.task_pass import forward_task
from mmfm.preprocessing.text_limits import limits_of
from mmfm.preprocessing.validation import check_ids, check_pixels, check_waves


@dataclass
class MMFMOutput(ModelOutput):
    """Unit embeddings [n, dim] of what was given, and scaled similarities, a row for each picture, text or sound.

    `logits_per_image` and `logits_per_audio` have a column for each text, `logits_per_text` one for each picture.
    `pooler_output`: the embeddings, where only one modality was given.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    logits_per_audio: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    audio_embeds: Tensor | None = None
    pooler_output: Tensor | None = None


class MMFMPreTrainedModel(Foreign, PreTrainedModel):
    """Holds the `UnifiedModel` itself as `core`, so that weights keep their names."""

    config_class = MMFMConfig
    config: MMFMConfig
    base_model_prefix = ""
    input_modalities = ["image", "audio", "text"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: MMFMConfig) -> None:
        super().__init__(config)
        self.core = config.build()
        self.vocabulary, self.words = self.core.vocabulary, words_of(config.parsed().model)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Weights are set where the core is built. Buffers that no file holds are made again after loading."""
        refill = getattr(module, "init_non_persistent_buffers", None)
        if refill is not None:
            refill()

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As transformers', but a weight that lacks, is unknown or has another shape is an error, not a warning."""
        found: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = found
        wrong = [*info["missing_keys"], *info["unexpected_keys"], *(item[0] for item in info["mismatched_keys"])]
        require(not wrong, f"{args[0] if args else 'the folder'} is of another model: {wrong[:3]}; export it again")
        model.refill_buffers()
        return (model, info) if output_loading_info else model

    def refill_buffers(self) -> None:
        """Buffers that no file holds, which transformers leaves as they happen to lie in memory, from a twin."""
        mine = dict(_lost_buffers(self.core))
        if mine:
            with torch.device("cpu"):
                twin = self.config.build()
            for name, value in _lost_buffers(twin):
                mine[name].copy_(value)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.core.embedding

    def set_input_embeddings(self, value: Any) -> None:
        raise NotImplementedError("the vocabulary is fixed: marks, text and codes have their places in it")

    def items(self, modality: str, x: Tensor, keep: Tensor | None) -> Items:
        """Clients' tensors as the model's own: ids lose their marks, pixels are bytes, masks are booleans."""
        has = ", ".join(self.core.towers)
        require(modality in self.core.towers, f"this model has no {modality} tower; it reads {has or 'no sources'}")
        rows = torch.arange(len(x), device=x.device)
        if modality == "image":
            tower = self.config.parsed().model.image
            assert tower is not None  # it is one of the towers
            x = check_pixels(x, tower.pixels)
            return Items(x=x, keep=torch.ones(len(x), 1, dtype=torch.bool, device=x.device), rows=rows)
        if modality == "audio":
            x, keep = check_waves(x, keep)
            return Items(x=x, keep=keep, rows=rows)
        keep = torch.ones_like(x, dtype=torch.bool) if keep is None else keep.bool()
        if self.words is not None:
            ids, keep = _own_ids(x, keep, self.words)
            return Items(x=ids, keep=keep, rows=rows)
        x, span = check_ids(x, self.vocabulary.size), self.vocabulary.span("text")
        is_text = (x >= span.start) & (x < span.stop)
        keep = keep & is_text
        order = (~keep).long().argsort(dim=1, stable=True)  # what is real comes first: padding is cut from the end
        x, keep = ((x - span.start) * is_text).gather(1, order), keep.gather(1, order)
        most = self.text_limit(int(keep.sum(1).max()) if keep.numel() else 0)
        return Items(x=x[:, :most], keep=keep[:, :most], rows=rows)

    def embed(self, modality: str, x: Tensor, keep: Tensor | None) -> Float[Tensor, "n dim"]:
        """Unit vectors."""
        items = self.items(modality, x, keep)
        batch = Batch(size=len(x), items={modality: items}, positive_ids=items.rows)
        reading = forward_task(self.core, Task((modality,), None), batch)
        return torch.zeros(0, self.core.embed_dim, device=x.device) if reading is None else reading.embedding

    def text_limit(self, longest: int) -> int:
        """How many tokens are read of texts whose longest has so many, as `Interface.tokenize` has it."""
        limits = limits_of(self.config.parsed())
        if not limits.read or longest <= limits.read:
            return longest
        told = f"a text of {longest} tokens is longer than the {limits.read} that are read"
        require(not limits.skip, f"{told}; {limits.remedy}")
        warnings.warn(f"only the beginning of a long text is read: {told}; {limits.remedy}", stacklevel=2)
        return limits.read


class MMFMModel(MMFMPreTrainedModel):
    """Embeddings of pictures, texts and sounds in one space. Every vector has length one."""

    main_input_name = "input_ids"

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """`pooler_output` [n, dim]: the texts' unit embeddings. Marks among the ids do not count."""
        check_arguments(kwargs, self.get_text_features)
        return self._features("text", input_ids, attention_mask)

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """`pooler_output` [n, dim]; `pixel_values` uint8 [n, channels, height, width], as the processor gives them."""
        check_arguments(kwargs, self.get_image_features)
        return self._features("image", pixel_values, None)

    def get_audio_features(
        self, input_features: Tensor, input_features_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """`pooler_output` [n, dim]; `input_features`: waveforms [n, samples] at the model's rate."""
        check_arguments(kwargs, self.get_audio_features)
        return self._features("audio", input_features, input_features_mask)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        return_loss: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MMFMOutput:
        """Whatever is given is embedded, and compared where there is a text. `return_loss`: row i of each belong
        together; the sum over the pairs that the model was trained on, each with its own loss and weight."""
        check_arguments({**kwargs, "return_dict": return_dict}, self.forward)
        given = {
            "image": (pixel_values, None),
            "audio": (input_features, input_features_mask),
            "text": (input_ids, attention_mask),
        }
        found = {name: self.embed(name, x, keep) for name, (x, keep) in given.items() if x is not None}
        require(bool(found), "nothing was given; give input_ids, pixel_values or input_features")
        image, audio, text = (found.get(name) for name in ("image", "audio", "text"))
        per_image = None if image is None or text is None else self.similarity("image", "text", image, text)
        per_audio = None if audio is None or text is None else self.similarity("audio", "text", audio, text)
        return MMFMOutput(
            loss=self.contrast(found) if return_loss else None,
            logits_per_image=per_image,
            logits_per_text=None if per_image is None else per_image.T,
            logits_per_audio=per_audio,
            image_embeds=image,
            text_embeds=text,
            audio_embeds=audio,
            pooler_output=next(iter(found.values())) if len(found) == 1 else None,
        )

    def similarity(self, a: str, b: str, x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
        """With the scale and bias of this pair; of the first pair that was trained, where this one was not."""
        core, names = self.core, list(self.core.log_scales)
        require(bool(names), "this model was trained without contrast, so it has no scale to compare with")
        name = next((name for name in (f"{a}-{b}", f"{b}-{a}") if name in names), names[0])
        return core.scale(name) * x @ y.T + core.bias(name)

    def contrast(self, found: dict[str, Tensor]) -> Float[Tensor, ""]:
        pairs = [item for item in self.config.parsed().contrastive if set(item.pair) <= set(found)]
        require(bool(pairs), f"return_loss needs both sides of a trained pair; given were {', '.join(found)}")
        losses = []
        for item in pairs:
            a, b = (found[name] for name in item.pair)
            require(len(a) == len(b), f"return_loss needs as many of {item.pair[0]} as of {item.pair[1]}")
            same = torch.arange(len(a), device=a.device)
            scale, bias = self.core.scale(item.name), self.core.bias(item.name)
            losses.append(item.weight * CONTRAST[item.loss](a, b, same, scale, bias))
        return torch.stack(losses).sum()

    def _features(self, modality: str, x: Tensor, keep: Tensor | None) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(pooler_output=self.embed(modality, x, keep))


def _own_ids(
    ids: Int[Tensor, "n time"], keep: Bool[Tensor, "n time"], words: TokenizerSpec
) -> tuple[Int[Tensor, "n length"], Bool[Tensor, "n length"]]:
    """As the tower's own tokenizer gives them: what is real first, since positions count, and filled where it fills."""
    most = int(keep.sum(1).max())
    told = f"a text of {most} ids is longer than the {words.context} that this text tower reads; pass truncation=True"
    require(most <= words.context, told)
    order = (~keep).long().argsort(dim=1, stable=True)[:, : words.context]
    ids, keep = ids.gather(1, order), keep.gather(1, order)
    if words.fill:
        ids = F.pad(ids.masked_fill(~keep, words.pad), (0, words.context - ids.shape[1]), value=words.pad)
        keep = torch.ones_like(ids, dtype=torch.bool)
    return ids, keep


def _lost_buffers(module: torch.nn.Module) -> list[tuple[str, Tensor]]:
    saved = module.state_dict().keys()
    return [(name, value) for name, value in module.named_buffers() if name not in saved]
