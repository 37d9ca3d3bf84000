"""The writing model as transformers knows causal language models, with a cache that it really reads.

A sentence is [sources | begin, t1, t2, ..]. Sources are pictures and sounds: `generate` and `forward` put a column for
each of their tokens before the text, so that masks, positions, beams and caches count them like any other token.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationMixin, LogitsProcessor, LogitsProcessorList

from mmfm.compat.transformers import CACHE, CausalLMOutputWithPast
from mmfm.config import require
from mmfm.export.hf.arguments import check_arguments
from mmfm.export.hf.model import MMFMPreTrainedModel
from mmfm.generation.decoding_state import no_numbers
from mmfm.models.kv_cache import LayerCache

NEW_TOKENS = 64  # where nothing is said; not in a file, where it would overrule the max_length of a client
SOURCES = {"image": "pixel_values", "audio": "input_features"}


class Sources(NamedTuple):
    """Tokens of all sources, side by side. `sizes`: how many columns each source has; each is seen whole by itself."""

    x: Float[Tensor, "batch time width"]
    keep: Bool[Tensor, "batch time"]
    sizes: tuple[int, ...]


class Finite(LogitsProcessor):
    """UserError where a score is no number, as in a half precision that is too narrow: any id could follow from it."""

    def __init__(self, model: "MMFMForCausalLM") -> None:
        self.model = model

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if bool(scores.isnan().any()):
            raise no_numbers(self.model.core, "text")
        return scores


class CachedLayer(LayerCache):
    """One layer of a cache of transformers, as our attention extends one."""

    def __init__(self, cache: Cache, layer: int) -> None:
        super().__init__()
        self.cache, self.layer = cache, layer

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return self.cache.update(keys, values, self.layer)


class MMFMForCausalLM(MMFMPreTrainedModel, GenerationMixin):
    """Writes text, after nothing (">text") or after what it is given (`pixel_values`, `input_features`).

    Ids are those of the whole vocabulary. A text begins with the begin mark, which the tokenizer puts there.
    """

    main_input_name = "input_ids"
    output_modalities = ["text"]  # noqa: RUF012

    def get_output_embeddings(self) -> None:
        """The table of the input scores the output too."""
        return None

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        pixel_values: Tensor | None = None,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        source_embeds: Tensor | None = None,
        source_sizes: Sequence[int] = (),
        num_items_in_batch: int | Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """logits [n, time, vocabulary], of the text's columns alone where sources are given here.

        attention_mask [n, past + time], 1 where real: padding may be anywhere. position_ids [n, time]: by default real
        tokens are counted. labels [n, time]: ids, -100 where there is none; moved by one here. source_embeds: what
        `generate` has made of the sources; it stands in the first columns of the ids. `cache` and `past_key_values`
        are one thing, under the new and the old name. num_items_in_batch: of the Trainer, labels in all of the batch's
        parts; the loss is a sum over that. UserError: an argument that this model does not know.
        """
        check_arguments(kwargs, self.forward)
        require(cache is None or past_key_values is None, "cache and past_key_values are one thing; give one of them")
        cache = past_key_values if cache is None else cache
        require((input_ids is None) != (inputs_embeds is None), "give either input_ids or inputs_embeds")
        past = 0 if cache is None else int(cache.get_seq_length())
        if self.words is not None and past == 0 and input_ids is not None:
            self.check_begin(input_ids, attention_mask, sum(source_sizes))
        x = self.core.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        sources = self.read_sources(pixel_values, input_features, input_features_mask)
        if sources is not None:
            message = "sources come before all text: give them with an empty cache, and without position_ids"
            require(past == 0 and position_ids is None, message)
            x, attention_mask = _after(sources, x, attention_mask)
            source_sizes = sources.sizes
        elif source_embeds is not None and past == 0:
            x = torch.cat([source_embeds.to(x), x[:, source_embeds.shape[1] :]], dim=1)
        cache = DynamicCache() if cache is None and use_cache else cache
        keep = _keep(attention_mask, x, past)
        self.check_length(keep)
        if position_ids is None:
            position_ids = (keep.long().cumsum(1) - 1).clamp(min=0)[:, past:]
        mask = sees(keep, past, source_sizes if past == 0 else (), _columns(cache, x.shape[1], keep.shape[1]))
        layers = None if cache is None else [CachedLayer(cache, i) for i in range(len(self.core.trunk.blocks))]
        states = self.core.trunk.run(x, mask, position_ids, layers)
        states = states if sources is None else states[:, sources.x.shape[1] :]
        if isinstance(logits_to_keep, Tensor):
            logits = self.core.logits(states[:, logits_to_keep])
        else:
            logits = self.core.logits(states[:, -logits_to_keep:] if logits_to_keep else states)
        loss = None if labels is None else _loss(logits, labels, num_items_in_batch)
        past_of: dict[str, Any] = {CACHE: cache}
        return CausalLMOutputWithPast(loss=loss, logits=logits, **past_of)

    def check_length(self, keep: Bool[Tensor, "batch time"]) -> None:
        """UserError for a longer sentence than the trunk may read; padding does not count."""
        window = self.core.trunk.window
        longest = int(keep.sum(1).max()) if window else 0
        message = f"a sentence of {longest} tokens is longer than Trunk.max_position_embeddings={window}"
        require(longest <= window, f"{message}; give shorter ones")

    def check_begin(self, ids: Int[Tensor, "batch time"], mask: Tensor | None, sources: int) -> None:
        """With two tokenizers about, ids of the wrong one would be written on without a sign."""
        real = torch.ones_like(ids) if mask is None else mask.long()
        first = real[:, sources:].argmax(1, keepdim=True) + sources
        told = "these ids are not of the tokenizer for writing; it is in the folder's subfolder `writer`"
        require(bool((ids.gather(1, first) == self.vocabulary.begin("text")).all()), told)

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
        """For caches of a fixed size transformers would build a mask that knows nothing of sources; `sees` does."""
        return attention_mask

    def read_sources(
        self, pixel_values: Tensor | None, input_features: Tensor | None, input_features_mask: Tensor | None
    ) -> Sources | None:
        """The sources' tokens, pool tokens included, in the trunk's width; pictures first. None where none is given."""
        given = {"image": (pixel_values, None), "audio": (input_features, input_features_mask)}
        segments = [
            self.core.source(name, self.items(name, x, keep)).tokens
            for name, (x, keep) in given.items()
            if x is not None
        ]
        if not segments:
            return None
        x, keep = torch.cat([part.x for part in segments], 1), torch.cat([part.keep for part in segments], 1)
        return Sources(x, keep, tuple(part.keep.shape[1] for part in segments))

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As transformers'. With sources, and without ids, it writes from the begin mark. Returned ids are the text's.

        pixel_values: uint8 [n, channels, height, width]; input_features [n, samples] with input_features_mask.
        """
        parent: Any = super()
        names = (*SOURCES.values(), "input_features_mask")
        sources = self.read_sources(*(kwargs.pop(name, None) for name in names))
        ids = kwargs.pop("input_ids", inputs)
        if self.words is not None and "inputs_embeds" not in kwargs:
            begun = sources is not None if ids is None else ids.shape[1] > 0
            told = "begin with a text, perhaps an empty one, by the tokenizer for writing"
            require(begun, f"{told}; it is in the folder's subfolder `writer`")
        kwargs["logits_processor"] = LogitsProcessorList([*(kwargs.get("logits_processor") or ()), Finite(self)])
        if not kwargs.keys() & {"max_new_tokens", "max_length", "generation_config"}:
            kwargs["max_new_tokens"] = NEW_TOKENS
        if sources is None:
            return parent.generate(ids, **kwargs)
        require("inputs_embeds" not in kwargs, "give the text behind sources as input_ids, not as inputs_embeds")
        size = sources.keep.shape
        if ids is None:
            ids = torch.full((size[0], 1), self.vocabulary.begin("text"), device=sources.x.device)
        require(len(ids) == size[0], f"{len(ids)} texts for {size[0]} sources; give one of each")
        text = kwargs.pop("attention_mask", None)
        text = torch.ones_like(ids) if text is None else text
        if kwargs.get("max_length") is not None:
            kwargs["max_length"] += size[1]
        found = parent.generate(
            torch.cat([ids.new_full(size, self.vocabulary.hidden), ids], 1),
            attention_mask=torch.cat([sources.keep.to(text), text], 1),
            source_embeds=sources.x,
            source_sizes=sources.sizes,
            **kwargs,
        )
        if isinstance(found, Tensor):
            return found[:, size[1] :]
        found.sequences = found.sequences[:, size[1] :]
        return found


def sees(
    keep: Bool[Tensor, "batch seen"], past: int, sizes: Sequence[int], columns: int
) -> Bool[Tensor, "batch 1 time columns"]:
    """Which key each new place may look at: real ones up to itself, and all of its own source; itself always.

    `columns`: how many keys the cache gives back, which may be more than there are.
    """
    places = torch.arange(past, keep.shape[1], device=keep.device)
    keys = torch.arange(keep.shape[1], device=keep.device)
    owner = torch.full_like(keys, -1)
    for number, part in enumerate(owner[: sum(sizes)].split(list(sizes)) if sizes else ()):
        part.fill_(number)
    together = (owner[places, None] == owner) & (owner >= 0)
    allowed = ((keys <= places[:, None]) | together) & keep[:, None, :] | (keys == places[:, None])
    return F.pad(allowed, (0, columns - keep.shape[1]))[:, None]


def _after(sources: Any, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The text behind its sources, and the mask of both."""
    text = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    require(text.shape == x.shape[:2], f"attention_mask {tuple(text.shape)} is not that of the text")
    return torch.cat([sources.x, x], 1), torch.cat([sources.keep, text], 1)


def _keep(attention_mask: Tensor | None, x: Tensor, past: int) -> Bool[Tensor, "batch seen"]:
    seen = past + x.shape[1]
    if attention_mask is None:
        return torch.ones(len(x), seen, dtype=torch.bool, device=x.device)
    told = f"attention_mask has shape {tuple(attention_mask.shape)}; give [{len(x)}, {seen}], 1 where real"
    require(tuple(attention_mask.shape) == (len(x), seen), told)
    return attention_mask.bool()


def _columns(cache: Cache | None, new: int, seen: int) -> int:
    return seen if cache is None else int(cache.get_mask_sizes(new, 0)[0])


def _loss(
    logits: Float[Tensor, "batch time v"], labels: Int[Tensor, "batch time"], items: int | Tensor | None
) -> Float[Tensor, ""]:
    """Mean over the labels, each predicted by the place before it; over `items` labels where the batch has others."""
    require(logits.shape[1] == labels.shape[1], "labels need the logits of all places; leave logits_to_keep out")
    each = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )
    count = (labels[:, 1:] != -100).sum() if items is None else items
    return each / count
