"""The names of other libraries that no one has promised to keep: each is there, and its test says what to do if not."""

import inspect
from dataclasses import fields

import clip_benchmark.models
import datasets
import open_clip
import pytest
import timm
import torch
import torchaudio.pipelines
import transformers
from clip_benchmark.metrics import zeroshot_classification as zeroshot
from onnxscript import ir
from torch import nn
from transformers import Cache, DynamicCache, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from mmfm.compat import clip_benchmark as of_clip_benchmark
from mmfm.compat import open_clip as of_open_clip
from mmfm.compat import timm as of_timm
from mmfm.compat import torch as of_torch
from mmfm.compat.datasets import fingerprint
from mmfm.compat.onnxscript import set_integer
from mmfm.compat.torchaudio import described, file_of
from mmfm.compat.transformers import (
    CACHE,
    CACHE_NAMES,
    EXTRACTORS,
    PROCESSORS,
    BasicTextNormalizer,
    EnglishTextNormalizer,
    cache_of,
    extractor_class,
    image_processor_class,
    looks_like_a_cache,
    output_lengths,
    processor_keywords,
)
from mmfm.export.hf.causal import MMFMForCausalLM
from mmfm.export.hf.model import MMFMPreTrainedModel
from mmfm.export.hf.processing import MMFMProcessor
from mmfm.models.codecs.full_precision import Exact


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
    """If it fails: see how `CachedLayer` and `_columns` of export/hf/causal.py extend one and count its columns."""
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
        (Exact, nn.Module, "_apply"),
    ],
)
def test_what_we_override_is_asked_for(ours, theirs, name):
    """If it fails: the library has renamed a hook, and ours is no longer called; find what took its place there."""
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


def test_timms_classes_are_those_that_its_models_are_made_of():
    """If it fails: print the kinds of a model's parts, and take those names in mmfm/compat/timm.py; what another kind
    computes must be read off anew in mmfm/models/mappings/image.py."""
    made = timm.create_model("test_vit", pretrained=False, init_values=1e-5)
    block = made.blocks[0]
    parts = (made, block, block.attn, block.mlp, block.ls1, made.patch_embed)
    kinds = [of_timm.VisionTransformer, of_timm.Block, of_timm.Attention, of_timm.Mlp, of_timm.LayerScale]
    assert [type(part) for part in parts] == [*kinds, of_timm.PatchEmbed]
    assert type(timm.create_model("deit_tiny_distilled_patch16_224")) is of_timm.VisionTransformerDistilled


def test_timm_reads_weights_alone_and_a_repositorys_configuration():
    """If it fails: see timm.models for what reads a file without executing anything, and for a repository's config."""
    assert "weights_only" in inspect.signature(of_timm.load_state_dict).parameters
    assert next(iter(inspect.signature(of_timm.load_model_config_from_hf).parameters)) == "model_id"


def test_open_clips_towers_are_those_of_its_models():
    """If it fails: see what open_clip's CLIP.__init__ and encode_text call, and take that in our compat."""
    shape = {"width": 16, "layers": 1, "heads": 2}
    text = of_open_clip.CLIPTextCfg(context_length=7, vocab_size=20, **shape)
    shape = {"width": 64, "layers": 1}
    torch.manual_seed(0)
    whole = open_clip.CustomTextCLIP(8, {"image_size": 32, "patch_size": 16, **shape}, vars(text)).eval()
    visual = of_open_clip.build_vision_tower(
        8, of_open_clip.CLIPVisionCfg(image_size=32, patch_size=16, **shape), False
    )
    words = of_open_clip.build_text_tower(8, text, False)
    visual.load_state_dict(whole.visual.state_dict())
    words.load_state_dict(whole.text.state_dict())
    ids, pixels = torch.randint(0, 20, (2, 7)), torch.randn(2, 3, 32, 32)
    x, mask = of_open_clip.embedded(words, ids)
    seen = words.ln_final(words.transformer(x, attn_mask=mask))[torch.arange(2), ids.argmax(-1)] @ words.text_projection
    assert torch.equal(seen, whole.encode_text(ids)) and torch.equal(visual.eval()(pixels), whole.encode_image(pixels))
    kinds = (of_open_clip.TimmModel, of_open_clip.ModifiedResNet)
    assert all(hasattr(kind, "forward_intermediates") for kind in kinds)


def test_open_clips_transform_is_that_of_its_settings():
    """If it fails: see how open_clip.factory makes a model's preprocessing, and take those names."""
    assert of_open_clip.merge_preprocess_dict({"size": 1}, {"size": 32})["size"] == 32
    made = of_open_clip.image_transform_v2(of_open_clip.PreprocessCfg(size=32), is_train=False)
    theirs = open_clip.create_model_and_transforms("RN50", force_image_size=32)[2]
    assert str(made) == str(theirs)


def test_torch_traces_with_free_sizes():
    """If it fails: see torch/fx/experimental/_config.py for what keeps 0 and 1 from becoming conditions of a graph; and
    torch/fx/passes/runtime_assert.py for how a condition on sizes is asserted."""

    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch._check(x.shape[0] * 3 < 100)
            return x * 2

    with of_torch.traced_sizes_are_free():
        free = torch.export.Dim.DYNAMIC
        how = {"dynamic_shapes": ({0: free},), "prefer_deferred_runtime_asserts_over_guards": True}
        program = torch.export.export(Twice(), (torch.ones(1, 2),), **how)
    for rows in (1, 5):
        assert program.module()(torch.ones(rows, 2)).shape == (rows, 2)
    said = [str(node.args[1]) for node in program.graph.nodes if of_torch.asserts_scalar(node)]
    assert any("3*" in words for words in said), said


def test_torchs_modules_keep_their_parts_in_one_table():
    """If it fails: see nn.Module.__setattr__ for where a part is kept."""
    whole = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    part = of_torch.parted(whole)
    assert part["a"] is whole["a"]
    part["a"] = nn.Identity()
    del part["b"]
    assert [type(x) for x in whole.values()] == [nn.Linear, nn.Linear] and list(part) == ["a"]


def test_a_loaders_processes_can_be_stopped():
    """If it fails: see the iterators in torch/utils/data/dataloader.py for what ends their processes."""
    batches = iter(torch.utils.data.DataLoader([1, 2], num_workers=1))
    next(batches)
    (worker,) = batches._workers
    of_torch.stop_workers(batches)
    assert not worker.is_alive()
    of_torch.stop_workers(iter(torch.utils.data.DataLoader([1])))


def test_torchs_modules_keep_parameters_and_hooks_where_we_look():
    """If it fails: see nn.Module.register_parameter and register_forward_hook for where they put things now."""
    module = nn.Linear(2, 2)
    assert not of_torch.hooked(module)
    for register in (module.register_forward_hook, module.register_forward_pre_hook):
        handle = register(lambda *_: None)
        assert of_torch.hooked(module)
        handle.remove()
    of_torch.to_buffer(module, "bias")
    assert [name for name, _ in module.named_parameters()] == ["weight"]
    assert [name for name, _ in module.named_buffers()] == ["bias"] and set(module.state_dict()) == {"weight", "bias"}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_torch_makes_a_tensor_of_int8_rows():
    """If it fails: see how torch.ao.nn.quantized.dynamic.Linear packs its weights, which ours are packed like."""
    rows, scale = torch.tensor([[1, -2], [3, 127]], dtype=torch.int8), torch.tensor([0.5, 2.0])
    made = of_torch.quantised_rows(rows, scale)
    assert torch.equal(made.dequantize(), rows * scale[:, None]) and torch.equal(made.int_repr(), rows)


def test_clip_benchmark_looks_up_loaders_and_accuracy_where_we_put_them(monkeypatch):
    """If it fails: see clip_benchmark.models.load_clip and zeroshot_classification.evaluate for what they look up."""
    monkeypatch.setattr(clip_benchmark.models, "MODEL_TYPES", list(clip_benchmark.models.MODEL_TYPES))
    monkeypatch.setattr(clip_benchmark.models, "TYPE2FUNC", dict(clip_benchmark.models.TYPE2FUNC))
    monkeypatch.setattr(zeroshot, "accuracy", zeroshot.accuracy)
    for _ in range(2):
        of_clip_benchmark.register_loader("ours", lambda *given, **named: (given, named))
    assert clip_benchmark.models.MODEL_TYPES.count("ours") == 1
    assert clip_benchmark.models.load_clip("ours", "name", "none", "cache") == (
        (),
        {"model_name": "name", "pretrained": "none", "cache_dir": "cache", "device": "cuda"},
    )
    of_clip_benchmark.choose_accuracy(lambda output, target, topk: [0.25, 0.75])
    assert zeroshot.evaluate.__globals__["accuracy"](None, None, topk=(1, 5)) == [0.25, 0.75]
    assert "accuracy(" in inspect.getsource(zeroshot.evaluate)


def test_onnxscript_takes_an_attribute_and_has_what_names_are_changed_by():
    """If it fails: see onnxscript.ir for the class of integer attributes, and for a graph's initializers."""
    node = ir.Node("", "Reshape", [])
    set_integer(node, "allowzero", 1)
    assert node.attributes["allowzero"].value == 1 and node.metadata_props == {}
    assert callable(ir.Graph.register_initializer) and hasattr(ir.Graph, "initializers")


def test_torchaudios_bundles_describe_themselves():
    """If it fails: see Wav2Vec2Bundle.get_model for what it makes a model of."""
    bundle = torchaudio.pipelines.HUBERT_BASE
    assert described(bundle)["model"] == "Wav2Vec2" and described(bundle)["normalize"] is False
    assert described(bundle)["params"]["encoder_embed_dim"] == 768
    assert file_of(bundle) == "hubert_fairseq_base_ls960.pth"


def test_a_tables_fingerprint_is_of_what_is_in_it():
    """If it fails: see what datasets.Dataset.map names its cache files by."""
    one, two, other = (datasets.Dataset.from_dict({"a": values}) for values in ([1, 2], [1, 2], [1, 3]))
    assert fingerprint(one) == fingerprint(two) != fingerprint(other)


def test_transformers_lists_its_processors_by_kind_of_model():
    """If it fails: see transformers.models.auto for the tables that its Auto classes read."""
    assert EXTRACTORS["wav2vec2"] == "Wav2Vec2FeatureExtractor"
    assert extractor_class(EXTRACTORS["wav2vec2"]) is transformers.Wav2Vec2FeatureExtractor
    assert "ViTImageProcessor" in PROCESSORS["vit"].values()
    assert issubclass(image_processor_class("ViTImageProcessor"), transformers.ViTImageProcessor)


def test_transformers_says_how_many_states_it_makes():
    """If it fails: see Wav2Vec2PreTrainedModel and its kin for what computes the length after their convolutions."""
    shape = {"conv_dim": [8, 8], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_feat_extract_layers": 2}
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**shape, **small))
    made = model.feature_extractor(torch.zeros(1, 400)).shape[-1]
    assert int(output_lengths(model)(torch.tensor(400))) == made and output_lengths(nn.Linear(1, 1)) is None


def test_a_processor_takes_what_transformers_says():
    """If it fails: see transformers.ProcessorMixin.__call__ and `_merge_kwargs` for the names that they take."""
    names = processor_keywords({"text", "audio"})
    assert {"padding", "truncation", "sampling_rate", "return_tensors", "text_kwargs", "audio_kwargs"} <= names
    assert not names & {"do_resize", "paddding"}
    assert "do_resize" in processor_keywords({"images"})


def test_whispers_normalizers_are_where_they_were():
    """If it fails: look for `EnglishTextNormalizer` in transformers' Whisper, or take openai-whisper's own."""
    assert BasicTextNormalizer()("Hello, [noise] World!").split() == ["hello", "world"]
    assert EnglishTextNormalizer({"colour": "color"})("It's twenty-five colour dollars") == "it is 25 color dollars"
