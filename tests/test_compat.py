"""The names of other libraries that no one has promised to keep: each is there, and its test says what to do if not."""

from dataclasses import fields

from transformers import Cache, DynamicCache, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from mmfm.compat.transformers import CACHE, CACHE_NAMES, cache_of, looks_like_a_cache


def test_generate_hands_the_cache_over_by_the_name_that_we_take():
    """If it fails: look in transformers' generation/utils.py for what `prepare_inputs_for_generation` writes, and add
    the name to CACHE_NAMES and to the arguments of `MMFMForCausalLM.forward`."""
    import inspect

    from mmfm.hf.causal import MMFMForCausalLM

    theirs = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    assert CACHE in theirs
    assert set(CACHE_NAMES) <= set(inspect.signature(MMFMForCausalLM.forward).parameters)
    cache = DynamicCache()
    assert cache_of(CausalLMOutputWithPast(**{CACHE: cache})) is cache
    others = [field.name for field in fields(CausalLMOutputWithPast) if looks_like_a_cache(field.name, 1)]
    assert others == [CACHE]


def test_a_cache_has_the_methods_that_our_attention_calls():
    """If it fails: see how `CachedLayer` and `_columns` of mmfm/hf/causal.py extend one and count its columns."""
    for name in ("update", "get_seq_length", "get_mask_sizes", "reorder_cache"):
        assert callable(getattr(Cache, name)), name
