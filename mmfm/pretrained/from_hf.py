"""Encoders of transformers: the tokens are `last_hidden_state` of the part of a model that reads the modality.

architecture: {"config": the configuration as a dict, model_type included}. With the source's own pool and projection
(`get_image_features` and its like) it has "parts" too: those children of the whole model that these need. What drops
layers or masks inputs at random while it trains is switched off in it: how a tower is trained is said by the run.
"""

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from huggingface_hub import constants
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from mmfm.compat.transformers import output_lengths
from mmfm.config import AudioPreprocess, EncoderSpec, TokenizerSpec, Tower, UserError, require
from mmfm.data.batch import Tokens
from mmfm.pretrained import architecture_schema
from mmfm.pretrained.encoder import (
    Encoder,
    Resolved,
    Weights,
    all_real,
    architecture,
    finish,
    fit_keep,
    flat,
    leaves,
    one_token,
    prefixed,
    scalars_of,
)
from mmfm.pretrained.hf_preprocessors import extract, extractor_of, pixels_of, rebuild, sound_of
from mmfm.pretrained.sentencepiece import siglip_words
from mmfm.pretrained.source import Source, fetching, present, require_complete, require_safetensors
from mmfm.pretrained.tokenizer_spec import require_room, words_of_hf

PARTS = {
    "image": ("vision_model", "vision_tower", "visual", "image_model"),
    "text": ("text_model", "language_model"),
    "audio": ("audio_model", "audio_tower", "speech_encoder"),
}
INPUTS = {"image": ("pixel_values",), "text": ("input_ids",), "audio": ("input_features", "input_values")}
OFF = {"layerdrop": 0.0, "encoder_layerdrop": 0.0, "apply_spec_augment": False, "use_cache": False}
Lengths = Callable[[Int[Tensor, " batch"]], Int[Tensor, " batch"]]


class HfEncoder(Encoder):
    """`method`: of the trunk, what gives its embedding; empty: it gives tokens. `takes`: its arguments. `key`: which of
    them is the input."""

    def __init__(self, blueprint: EncoderSpec, trunk: nn.Module) -> None:
        super().__init__(blueprint, trunk)
        kind = blueprint.modality
        self.method = f"get_{kind}_features" if "parts" in architecture(blueprint) else ""
        reader = trunk_of(trunk, kind, type(trunk).__name__) if self.method else trunk
        self.takes = frozenset(inspect.signature(getattr(trunk, self.method or "forward")).parameters)
        self.key = input_of(reader)

    def outputs(self, x: Tensor, **more: object) -> Any:
        run = getattr(self.trunk, self.method) if self.method else self.trunk
        return run(**{self.key: x}, **{name: value for name, value in more.items() if name in self.takes})

    def last(self, x: Tensor, **more: object) -> Tensor:
        out = self.outputs(x, **more)
        return one_token(getattr(out, "pooler_output", out), type(self.trunk).__name__) if self.method else out[0]


class HfImages(HfEncoder):
    def forward(self, x: Float[Tensor, "batch channels height width"], keep: Tensor | None = None) -> Tokens:
        out = self.last(x, interpolate_pos_encoding=True)
        return all_real(flat(out, out.shape[1]))


class HfText(HfEncoder):
    def forward(self, x: Int[Tensor, "batch time"], keep: Bool[Tensor, "batch time"] | None = None) -> Tokens:
        assert keep is not None and self.blueprint.words is not None
        ids = x.masked_fill(~keep, self.blueprint.words.pad)
        out = self.last(ids, attention_mask=keep.long(), use_cache=False)
        return all_real(out) if self.method else Tokens(out, keep)

    def fills(self) -> bool:
        """A model whose pool reads the last place, though it is padding, was trained without padding (SigLIP)."""
        ids = torch.ones(1, 4, dtype=torch.long)
        out = self.outputs(ids, attention_mask=torch.tensor([[1, 1, 0, 0]]))
        pooled = getattr(out, "pooler_output", None)
        if pooled is None or getattr(out, "last_hidden_state", None) is None:
            return False
        (slope,) = torch.autograd.grad(pooled.square().sum(), out.last_hidden_state, allow_unused=True)
        return slope is not None and (slope[0].abs().sum(-1) > 0).tolist() == [False, False, False, True]


class HfSound(HfEncoder):
    """`masked`: whether its extractor says that the model was trained with a mask; others see the padding."""

    def __init__(self, blueprint: EncoderSpec, trunk: nn.Module) -> None:
        super().__init__(blueprint, trunk)
        assert blueprint.sound is not None
        self.extractor = rebuild(blueprint.sound)
        self.masked = bool(getattr(self.extractor, "return_attention_mask", False))
        self.lengths: Lengths | None = output_lengths(trunk)
        rule = architecture(blueprint).get("lengths")  # of a blueprint that was made before, the method is taken
        if rule is not None:
            self.lengths = Counted(stride=int(rule[0]), more=int(rule[1]))

    def features(
        self, waves: Float[Tensor, "batch samples"], keep: Bool[Tensor, "batch samples"]
    ) -> tuple[Tensor, Bool[Tensor, "batch time"]]:
        assert self.blueprint.sound is not None
        return extract(self.extractor, self.blueprint.sound, waves, keep, self.key)

    def forward(self, x: Tensor, keep: Bool[Tensor, "batch time"] | None = None) -> Tokens:
        assert keep is not None
        more: dict[str, Tensor] = {"attention_mask": keep.long()} if self.masked else {}
        out = self.last(x, is_longer=torch.zeros(x.shape[0], 1, dtype=torch.bool, device=x.device), **more)
        out = flat(out, out.shape[1])
        return all_real(out) if self.method else Tokens(out, fit_keep(keep, out.shape[1], self.lengths))


KINDS: dict[str, type[HfEncoder]] = {"image": HfImages, "text": HfText, "audio": HfSound}


def resolve(source: Source, tower: Tower, modality: str) -> Resolved:
    name = source.name
    pretrained = tower.weights == "pretrained"
    with fetching(tower.source, f"the repository {name} (config.json)", str(constants.HF_HUB_CACHE), False):
        config = architecture_schema.hf_config(
            AutoConfig.from_pretrained(name, trust_remote_code=False).to_dict(), tower.source
        )
    if pretrained and source.folder is not None:
        require_safetensors(source.folder)
    if not pretrained:
        return resolve_parts(config, None, name, tower, modality)
    with fetching(tower.source, f"the repository {name} (model.safetensors)", str(constants.HF_HUB_CACHE)):
        how: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True, "use_safetensors": True}
        model, said = AutoModel.from_pretrained(name, config=config, trust_remote_code=False, **how)
    trunk = model if tower.pool == "source" else trunk_of(model, modality, name)
    resolved = resolve_parts(config, dict(trunk.state_dict()), name, tower, modality, trunk)
    _whole(model, trunk, said["missing_keys"], resolved.blueprint, name)
    return replace(resolved, scalars=scalars_of(dict(model.named_parameters())) if trunk is model else {})


def resolve_parts(
    config: PreTrainedConfig,
    weights: Weights | None,
    name: str,
    tower: Tower,
    modality: str,
    trunk: nn.Module | None = None,
) -> Resolved:
    """Of a configuration and weights at hand; `name`, a folder or a repository, is where preprocessing is described.

    trunk: the module that has these weights, where the library itself loaded it.
    """
    kind, embeds = config.model_type, tower.pool == "source"
    inner, own, before = sub_config(quiet(config), modality)
    config = quiet(config) if embeds else inner
    contract: dict[str, Any] = {}
    tokenizer = None
    if modality == "image":
        contract["pixels"] = pixels_of(name, own, kind, tower)
    elif modality == "text":
        contract["words"], tokenizer = words_of(name, own, before)
    else:
        contract["sound"] = sound_of(extractor_of(name, own, kind, tower.source))
        own_seconds = contract["sound"].window_seconds
        config, contract["sound"], weights = shorten(config, contract["sound"], weights, tower.window_seconds)
        trunk = trunk if contract["sound"].window_seconds == own_seconds else None
    draft = EncoderSpec(library="hf", modality=cast(Any, modality), architecture=describe(config), width=1, **contract)
    if embeds:
        parts = embedding_parts(draft, name)
        draft = replace(draft, architecture=json.dumps(architecture(draft) | {"parts": parts}))
        weights = weights and {key: x for key, x in weights.items() if key.partition(".")[0] in parts}
    elif modality == "audio":
        draft = _with_lengths(draft, tower.source)
    return finish(draft, build, None if weights is None else prefixed(weights), tokenizer, trunk)


def _with_lengths(draft: EncoderSpec, source: str) -> EncoderSpec:
    """What its padding becomes, measured: a model that shortens its input may have no method that says it, or a wrong
    one."""
    encoder = build(draft).eval()
    assert isinstance(encoder, HfSound)
    try:
        found = measured(encoder)
    except (AssertionError, RuntimeError, ValueError, TypeError, IndexError):
        return draft  # what it cannot be run on is said by `finish`
    if found is None:
        return draft
    told = (
        f"{source}: how many of its tokens are real, of a sound that is padded, follows no rule; give another encoder"
    )
    require(found.holds, told)
    return replace(draft, architecture=json.dumps(architecture(draft) | {"lengths": [found.stride, found.more]}))


class Counted(NamedTuple):
    """Of n inputs there are floor((n + more) / stride) tokens, as of any stack of convolutions."""

    stride: int
    more: int
    holds: bool = True

    def __call__(self, inputs: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        return (inputs + self.more).div(self.stride, rounding_mode="floor")


@torch.no_grad()
def measured(encoder: HfSound) -> Counted | None:
    """How many tokens there are of how many inputs, all of them real. None where all inputs are of one length."""
    assert encoder.blueprint.sound is not None
    waves = torch.sin(torch.arange(encoder.blueprint.sound.rate_hz) * 0.1)[None]
    x, keep = encoder.features(waves, torch.ones_like(waves, dtype=torch.bool))
    if encoder.blueprint.sound.window_seconds or keep.shape[1] == 1:
        return None
    full = int(keep.sum())
    axis = next((axis for axis in range(1, x.ndim) if x.shape[axis] == keep.shape[1]), None)
    if axis is None:
        return None

    def count(inputs: int) -> int:
        return encoder(x.narrow(axis, 0, inputs), keep[:, :inputs]).x.shape[1]

    def first(tokens: int) -> int:
        """The fewest inputs that have so many tokens."""
        low, high = full // 3, full
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if count(middle) >= tokens else (middle, high)
        return high

    most, least = count(full), count(full // 2)
    if most == least:
        return Counted(1, 0, holds=False)
    one, other = first(most), first(least)
    stride = round((one - other) / (most - least))
    rule = Counted(max(1, stride), stride * most - one)
    tried = {full, full - 1, full // 2, full // 2 + 1, one, one - 1, other, other - 1, (2 * full) // 3}
    right = all(count(n) == int(rule(torch.tensor([n]))) for n in sorted(tried))
    return rule._replace(holds=right)


def build(blueprint: EncoderSpec) -> Encoder:
    config = architecture_schema.hf_config(architecture(blueprint)["config"], "a blueprint of transformers")
    model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    parts, modality = architecture(blueprint).get("parts"), blueprint.modality
    if parts is None:
        return KINDS[modality](blueprint, trunk_of(model, modality, config.model_type))
    for part in parts_of(model).keys() - set(map(str, parts)):
        delattr(model, part)
    return KINDS[modality](blueprint, model)


def parts_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of each of a model's children, and each that is its own."""
    own = {name: [parameter] for name, parameter in model.named_parameters(recurse=False)}
    return own | {name: list(child.parameters()) for name, child in model.named_children()}


def embedding_parts(draft: EncoderSpec, source: str) -> list[str]:
    """Those parts of the whole model that its own embedding of the modality is made of, by where its gradient goes.

    UserError: transformers has no such embedding of this model.
    """
    shape, modality = architecture(draft), draft.modality
    model = AutoModel.from_config(architecture_schema.hf_config(shape["config"], source), trust_remote_code=False)
    told = f"{source} is a {type(model).__name__}, which has no embedding of {modality} of its own"
    require(hasattr(model, f"get_{modality}_features"), f"{told}; say --modality {modality} for its encoder alone")
    whole = replace(draft, architecture=json.dumps(shape | {"parts": []}))
    encoder = KINDS[modality](whole, model).eval()
    with torch.inference_mode(False), torch.enable_grad():
        read = {id(leaf) for leaf in leaves(encoder(*encoder.example()).x)}
    return sorted(name for name, own in parts_of(model).items() if any(id(one) in read for one in own))


def describe(config: PreTrainedConfig) -> str:
    return json.dumps({"config": architecture_schema.described(config)})


def trunk_of(model: nn.Module, modality: str, name: str) -> nn.Module:
    """The part that reads the modality: one that is named for it, else the encoder of two halves, else the model."""
    children = dict(model.named_children())
    trunk = next((children[part] for part in PARTS[modality] if part in children), None)
    if trunk is None:
        halves = {"encoder", "decoder"} <= children.keys()  # what an encoder saved alone says of itself may differ
        trunk = cast(PreTrainedModel, model).get_encoder() if halves else model
    found = input_of(cast(nn.Module, trunk))
    require(
        found in INPUTS[modality],
        f"{name} cannot be the {modality} tower: its {type(trunk).__name__} reads {found or 'nothing by name'}, "
        f"and {modality} comes as {' or '.join(INPUTS[modality])}; give another source",
    )
    return cast(nn.Module, trunk)


def input_of(module: nn.Module) -> str:
    """What it reads: the one input that its forward takes, else what its class says, which some leave as text's."""
    known = [name for names in INPUTS.values() for name in names]
    taken = [name for name in inspect.signature(module.forward).parameters if name in known]
    return taken[0] if len(taken) == 1 else str(getattr(module, "main_input_name", ""))


def sub_config(config: PreTrainedConfig, modality: str) -> tuple[PreTrainedConfig, PreTrainedConfig, int]:
    """What to build the part from, the part's own configuration, and how many of its positions no token has.

    The two are the same where a model of the latter has the part's very parameters: the rest is then never built.
    """
    with torch.device("meta"):
        trunk = trunk_of(AutoModel.from_config(config, trust_remote_code=False), modality, config.model_type)
        own, before = cast(Any, trunk).config, _before(trunk)
        if type(own) is type(config) or type(own) not in MODEL_MAPPING:
            return config, own, before
        alone = trunk_of(AutoModel.from_config(own, trust_remote_code=False), modality, own.model_type)
    shapes = [{name: value.shape for name, value in part.state_dict().items()} for part in (trunk, alone)]
    return (own if shapes[0] == shapes[1] else config), own, before


def _before(trunk: nn.Module) -> int:
    """In a table of positions with a padding index, as RoBERTa's, they are counted from behind it."""
    for name, table in trunk.named_modules():
        if name.endswith("position_embeddings") and isinstance(table, nn.Embedding) and table.padding_idx is not None:
            return table.padding_idx + 1
    return 0


def quiet(config: PreTrainedConfig) -> PreTrainedConfig:
    known = config.to_dict()
    return type(config).from_dict(known | {name: value for name, value in OFF.items() if name in known})


def words_of(name: str, config: PreTrainedConfig, before: int = 0) -> tuple[TokenizerSpec, str]:
    """The tokenizer beside the weights, as what it does."""
    found = _siglip(name, config, before)
    if found is not None:
        return found
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as why:  # a damaged file is an error of each format's own
        told = " ".join(f"{type(why).__name__}: {why}".split())[:200]
        raise UserError(
            f"{name} has no tokenizer that can be read ({told}); put its tokenizer.json beside its config.json"
        ) from None
    require(
        _has_words(name, tokenizer), f"{name} has no file of a tokenizer; put its tokenizer.json beside its config.json"
    )
    words, text = words_of_hf(tokenizer, context_of(config) - before)
    require_room(words, name)
    return words, text


def _has_words(name: str, tokenizer: Any) -> bool:
    """Whether a file of its vocabulary is there: without any, transformers makes an empty tokenizer of the kind."""
    files = dict.fromkeys(("tokenizer.json", *type(tokenizer).vocab_files_names.values()))
    return any(present(name, file, name) is not None for file in files)


def _siglip(name: str, config: PreTrainedConfig, before: int) -> tuple[TokenizerSpec, str] | None:
    """SigLIP's, of which there is a spiece.model alone."""
    if not config.model_type.startswith("siglip") or present(name, "tokenizer.json", name) is not None:
        return None
    model = present(name, "spiece.model", name)
    if model is None:
        return None
    return siglip_words(model, present(name, "tokenizer_config.json", name), context_of(config) - before, name)


def context_of(config: PreTrainedConfig) -> int:
    """Positions that the model has; 512 where they are relative and it sets no limit."""
    inner = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length"):
        if getattr(inner, name, None):
            return int(getattr(inner, name))
    return 512


def shorten(
    config: PreTrainedConfig, sound: AudioPreprocess, weights: Weights | None, seconds: float
) -> tuple[PreTrainedConfig, AudioPreprocess, Weights | None]:
    """A shorter window: the later positions of the table are left out. What is seen in it then differs from a long one.

    For such models as say their window in the extractor and their positions in `max_source_positions` (Whisper).
    """
    if not seconds or seconds == sound.window_seconds:
        return config, sound, weights
    full = getattr(config, "max_source_positions", None)
    require(
        bool(full and sound.window_seconds),
        f"window_seconds={seconds}: {config.model_type} has no fixed window of positions to cut; leave it out",
    )
    require(
        seconds < sound.window_seconds,
        f"window_seconds={seconds} is longer than the {sound.window_seconds} s that its positions cover",
    )
    assert full is not None
    count = round(full * seconds / sound.window_seconds)
    shorter = type(config).from_dict(config.to_dict() | {"max_source_positions": count})
    if weights is not None:
        weights = {
            name: value[:count].clone() if "position" in name and len(value) == full else value
            for name, value in weights.items()
        }
    return shorter, replace(sound, window_seconds=seconds), weights


def _whole(model: nn.Module, trunk: nn.Module, missing: set[str], made: EncoderSpec, name: str) -> None:
    """transformers fills what a file lacks with random numbers; none of them may reach the tokens."""
    names = {id(value): key for key, value in trunk.named_parameters()}
    lacking = {names.get(id(value)) for key, value in model.named_parameters() if key in missing} - {None}
    lacking -= {key.removeprefix("trunk.") for key in architecture(made)["unread"]}
    remedy = "give a source that holds them, or set the tower's weights to 'random'"
    require_complete([str(key) for key in lacking], name, remedy)
