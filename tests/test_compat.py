"""The names of other libraries that no one has promised to keep: each is there, and its test says what to do if not."""

import inspect
from dataclasses import fields

import open_clip
import pytest
import timm
import transformers
from transformers import Cache, DynamicCache, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from mmfm.compat import open_clip as of_open_clip
from mmfm.compat import timm as of_timm
from mmfm.compat.transformers import CACHE, CACHE_NAMES, cache_of, looks_like_a_cache
from mmfm.hf.causal import MMFMForCausalLM
from mmfm.hf.model import MMFMPreTrainedModel
from mmfm.hf.processing import MMFMProcessor


def test_generate_hands_the_cache_over_by_the_name_that_we_take():
    """If it fails: look in transformers' generation/utils.py for what `prepare_inputs_for_generation` writes, and add
    the name to CACHE_NAMES and to the arguments of `MMFMForCausalLM.forward`."""
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


@pytest.mark.parametrize(
    ("ours", "theirs", "name"),
    [
        (MMFMPreTrainedModel, transformers.PreTrainedModel, "_init_weights"),
        (MMFMPreTrainedModel, transformers.PreTrainedModel, "_supports_sdpa"),
        (MMFMPreTrainedModel, transformers.PreTrainedModel, "_keys_to_ignore_on_load_unexpected"),
        (MMFMPreTrainedModel, transformers.PreTrainedModel, "register_for_auto_class"),
        (MMFMProcessor, transformers.ProcessorMixin, "get_processor_dict"),
    ],
)
def test_what_we_override_is_asked_for(ours, theirs, name):
    """If it fails: transformers has renamed a hook, and ours is no longer called; find what took its place there."""
    assert hasattr(theirs, name) and hasattr(ours, name)


def test_masks_of_fixed_caches_are_asked_of_the_model():
    """If it fails: see who builds masks in transformers' generation/utils.py; it must let `sees` of ours do it."""
    code = inspect.getsource(GenerationMixin.prepare_inputs_for_generation)
    assert '"create_masks_for_generate"' in code and callable(MMFMForCausalLM.create_masks_for_generate)


def test_open_clip_looks_its_class_up_where_we_put_ours():
    """If it fails: see which name open_clip's create_model calls for "custom_text", and mend `choose_model_class`."""
    assert "model_class = CustomTextCLIP" in inspect.getsource(open_clip.factory)
    theirs = of_open_clip.model_class()
    of_open_clip.choose_model_class(chooser := lambda **_: None)
    assert open_clip.factory.CustomTextCLIP is chooser
    of_open_clip.choose_model_class(theirs)


def named_for_this_test(pretrained: bool = False, **options: object) -> str:
    return "made"


def test_timm_registers_and_leaves_the_module_as_it_was():
    """If it fails: see timm.models.register_model for what it writes beside its registry."""
    before = set(globals())
    of_timm.register_entry(named_for_this_test)
    of_timm.register_entry(named_for_this_test)
    assert timm.is_model("named_for_this_test") and set(globals()) == before
