"""A source of another library as a bundle, and the difference measured: both are run on the same inputs.

Where a layout has a table of its names it becomes a part of our own; else its own module is wrapped. A bundle whose
numbers differ from its source's is not written.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import constants
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from mmfm.config import MODALITIES, ChatTemplate, EncoderSpec, TokenizerSpec, Tower, Trunk, UserError, require
from mmfm.config.serialization import write
from mmfm.data.batch import Items, Tokens
from mmfm.export.bundle import Files, Weights, bundle_of, sha256, write_whole
from mmfm.export.folder import refuse
from mmfm.export.parity_report import ParityReport, Run, compare, require_parity, run_encoder, with_long_item
from mmfm.export.whole import import_whole
from mmfm.inference.bundle import golden
from mmfm.inference.bundle.contents import GOLDEN, READER, Bundle, Part, around
from mmfm.inference.bundle.encoder import BundledEncoder, lone
from mmfm.inference.bundle.load import load_encoder, load_trunk
from mmfm.inference.bundle.without_paths import TOKENIZER, unpinned
from mmfm.models.mappings import Foreign, convert, find, foreign, language
from mmfm.models.transformer import Segment, UnifiedTransformer
from mmfm.models.weights import adopt
from mmfm.preprocessing.tokenizer import Tokenizer, load_tokenizer, parse_reader, parse_tokenizer
from mmfm.pretrained import EMBEDDING, Encoder, Resolved, architecture_schema, build, chat_template, from_hf, resolve
from mmfm.pretrained.source import Source, fetching, parse, require_complete, require_safetensors
from mmfm.pretrained.tokenizer_spec import words_of_hf
from mmfm.pretrained.wheels import SMOLLM, TOWERS, CausalLm, causal_lm
from mmfm.pretrained.whole import embedded
from mmfm.runtime.foreign import refuse_unsafe

LIBRARIES = {"timm": "timm", "open_clip": "open_clip", "hf": "transformers", "torchaudio": "torchaudio"}
SINGLE = {"timm": "image", "torchaudio": "audio"}  # libraries all of whose encoders have one modality
LONGEST, LEAST, WORK = 16_384, 512, 200_000_000_000  # tokens of the long input, and parameters by tokens
LONG_SECONDS = 5.0  # of the long sound, where there is no window
WHOLE = "whole"
ENDING = 8  # of a long text, the places whose logits are compared


def import_source(
    source: str,
    out: str | Path,
    *,
    modality: str = "",
    layout: Literal["native", "wrapped", "auto"] = "auto",
    force: bool = False,
) -> ParityReport:
    """Writes the bundle `out`. modality: image, audio, text or trunk; "whole": a model that embeds two of them in one
    space; empty: what the source is.

    layout: "native" makes it a part of ours, "wrapped" keeps its module, "auto" does the first where it can. Raises
    UserError where the source cannot be had, the layout has no place for it, or the numbers differ: then nothing stays.
    """
    refuse(Path(out), force)
    refuse_unsafe()
    kind, kinds = modality or modality_of(source), (*MODALITIES, "trunk", WHOLE)
    require(kind in kinds, f"--modality {kind!r} is none of {', '.join(kinds)}")
    if kind == WHOLE:
        require(layout != "native", f"{source}: a whole model keeps its modules; leave out --layout, or say --modality")
        return import_whole(source, Path(out), whole_of(source), force)
    if kind == "trunk":
        require(layout != "wrapped", "a trunk is a part of our own and cannot be wrapped; leave out --layout")
        return _import_trunk(source, Path(out), force)
    return _import_tower(source, Path(out), kind, layout, force)


def modality_of(source: str) -> str:
    """What a source is: one thing, or a whole model."""
    found = parse(source)
    if found.kind == "wheel":
        return "trunk" if found.name == SMOLLM else TOWERS.get(found.name, "image")
    if found.kind in SINGLE:
        return SINGLE[found.kind]
    require(found.kind != "bundle", f"{source} is a bundle already; load it, or start from it: mmfm.native({source!r})")
    names, shared = _encoders_of(found, source), _embedded(found, source)
    lost = ", ".join(name for name in shared if name not in names)
    told = f"{source} embeds {' and '.join(shared)} in one space, and its encoder of {lost} cannot be had here"
    require(not lost, f"{told}; say --modality {'|'.join(names)} for that alone")
    if shared:
        return WHOLE
    require(
        len(names) == 1, f"{source} can be {' or '.join(names) or 'nothing here'}; say --modality {'|'.join(names)}"
    )
    return next(iter(names))


def whole_of(source: str) -> tuple[str, ...]:
    """The modalities that a model embeds in one space. UserError: it does not."""
    found = parse(source)
    names = _encoders_of(found, source) if found.kind in EMBEDDING else (modality_of(source),)
    shared = tuple(name for name in _embedded(found, source) if name in names)
    told = f"{source} can be {' or '.join(names)}, and embeds no two of them in one space"
    require(len(shared) > 1, f"{told}; say --modality {'|'.join(names)}")
    return shared


def _encoders_of(source: Source, told: str) -> tuple[str, ...]:
    return ("image", "text") if source.kind == "open_clip" else _modalities_of_hf(source, told)


def _embedded(source: Source, told: str) -> tuple[str, ...]:
    """The modalities that its library embeds in one space; none of what is a single encoder."""
    if source.kind != "hf":
        return ("image", "text") if source.kind == "open_clip" else ()
    kind = type(_config(source, told))
    return embedded(MODEL_MAPPING[kind]) if kind in MODEL_MAPPING else ()


def _modalities_of_hf(source: Source, told: str) -> tuple[str, ...]:
    config = _config(source, told)
    if any(str(name).endswith("ForCausalLM") for name in config.architectures or ()):
        return ("trunk",)
    names = []
    for name in MODALITIES:
        try:
            from_hf.sub_config(config, name)
            names.append(name)
        except UserError:
            continue
    return tuple(names)


def _config(source: Source, told: str) -> PreTrainedConfig:
    with fetching(told, f"the repository {source.name} (config.json)", str(constants.HF_HUB_CACHE)):
        said = AutoConfig.from_pretrained(source.name, trust_remote_code=False)
        made = architecture_schema.hf_config(said.to_dict(), told)
        made.architectures = said.architectures
        return made


def _require_language(config: PreTrainedConfig, source: str) -> None:
    known = find(Foreign(library="hf", architecture=config.to_dict(), modality="text")) in language.LAYOUTS
    kinds = ", ".join(kind for layout in language.LAYOUTS for kind in layout.kinds)
    require(
        known,
        f"{source} is a {config.model_type}, which our trunk cannot be; it can be a {kinds}; or say --modality text",
    )


def _import_tower(source: str, out: Path, modality: str, layout: str, force: bool) -> ParityReport:
    resolved = resolve(Tower(source=source), modality)
    assert resolved.weights is not None
    theirs = build(resolved.blueprint).eval()
    theirs.load_state_dict(resolved.weights, strict=True)
    part, weights = _part(resolved, source, layout)
    text = resolved.tokenizer or ""
    run, ours = around(modality, part), load_tokenizer("bytes")
    bundle = bundle_of(source, run, (modality,), reader=sha256(text.encode()) if text else "")
    if modality == "text":
        words: TokenizerSpec | None = getattr(part, "words")  # noqa: B009
        assert words is not None
        ours = replace(ours, reader=parse_reader(text, words, f"{source}: its tokenizer"))
    core = lone(run, modality, 0)
    core.towers[modality].load_state_dict(weights, strict=True)
    encoder = BundledEncoder(core, modality, run, ours).eval()
    named = {f"towers.{modality}.{name}": tensor.contiguous() for name, tensor in weights.items()}
    files: Files = {GOLDEN: golden.make(encoder)}
    files |= {READER: text.encode()} if text else {}
    found: list[ParityReport] = []

    def prove(folder: Path) -> Mapping[str, str]:
        opened = load_encoder(modality, folder, check=False)
        found.append(_proof(bundle, part, resolved.blueprint, theirs, opened))
        return _told(found[0], layout)

    write_whole(out, {modality: named}, files, bundle, force=force, prove=prove)
    return found[0]


def _part(resolved: Resolved, source: str, layout: str) -> tuple[Part, dict[str, Tensor]]:
    """As a part of ours, where that is wanted and there is a place for all of it, or as the source's own module."""
    assert resolved.weights is not None
    blueprint = resolved.blueprint
    if layout != "wrapped":
        own = {name.removeprefix("trunk."): tensor for name, tensor in resolved.weights.items()}
        try:
            converted = convert(foreign(blueprint), own)
            return converted.part, dict(converted.weights)
        except UserError as why:
            if layout == "native":
                raise UserError(f"{source}: {why}; or say --layout wrapped") from None
    wrapped = {f"encoder.{name}": tensor for name, tensor in resolved.weights.items()}
    return Tower(source=unpinned(source), blueprint=blueprint), wrapped


def _told(proof: ParityReport, layout: str) -> dict[str, str]:
    """What is written beside the bundle, or a UserError where it does not hold."""
    remedy = "say --layout wrapped" if proof.part != "Tower" and layout != "native" else "tell us about it"
    require_parity(proof, remedy)
    return {"proof.json": write(proof), "README.md": f"\n{proof.line()}\n"}


def _proof(bundle: Bundle, part: Part, blueprint: EncoderSpec, theirs: Encoder, ours: BundledEncoder) -> ParityReport:
    library = LIBRARIES[blueprint.library]
    window = blueprint.words.context if blueprint.words else 0
    if blueprint.sound:
        window = round(blueprint.sound.window_seconds * blueprint.sound.rate_hz)
    own: Run = lambda given: run_encoder(theirs, given)  # noqa: E731
    short = golden.prepared(ours, golden.inputs(ours))
    found = compare(bundle.source, ours.modality, type(part).__name__, library, short, own, ours.tokens)
    long = None if ours.modality == "image" else _long(ours, window or round(LONG_SECONDS * _rate(blueprint)), theirs)
    return replace(found if long is None else with_long_item(found, long, own, ours.tokens), window=window)


def _rate(blueprint: EncoderSpec) -> int:
    assert blueprint.sound is not None
    return blueprint.sound.rate_hz


def reach(window: int, parameters: int) -> int:
    """Of so many inputs at most, as many as take no more than seconds; what is wrong with far places shows there."""
    return min(window, LONGEST, max(LEAST, WORK // max(1, parameters)))


def _long(ours: BundledEncoder, window: int, theirs: nn.Module) -> Items:
    """One item as long as the window, or as far as there is time for."""
    if ours.modality == "audio":
        times = torch.arange(window)
        noise = 0.05 * torch.randn(window, generator=torch.Generator().manual_seed(0))
        return ours.prepare([0.3 * torch.sin(times * 0.05 * (1 + times / window)) + noise])
    most = reach(window, sum(parameter.numel() for parameter in theirs.parameters()))
    items = golden.prepared(ours, [" ".join(golden.SENTENCES * (most // 6 + 1))])
    return items if items.x.shape[1] <= most else replace(items, x=items.x[:, :most], keep=items.keep[:, :most])


def _import_trunk(source: str, out: Path, force: bool) -> ParityReport:
    given = _causal_lm(source)
    tokenizer = parse_tokenizer(given.tokenizer, f"{source}: its tokenizer")
    text = tokenizer.to_json().encode()
    part, weights, tensors = _trunk_parts(source, given)
    run = around("trunk", part)
    run = replace(run, model=replace(run.model, chat=_chat(source, given, tokenizer)))
    bundle = bundle_of(source, run, tuple(weights), tokenizer=sha256(text))
    found: list[ParityReport] = []

    def prove(folder: Path) -> Mapping[str, str]:
        found.append(_trunk_proof(bundle, given, folder))
        return _told(found[0], "native")

    write_whole(out, weights, {GOLDEN: tensors, TOKENIZER: text}, bundle, force=force, prove=prove)
    return found[0]


def _chat(source: str, given: CausalLm, tokenizer: Tokenizer) -> ChatTemplate | None:
    """Its chat template's structure. Without one, or where it is more than a structure, which is said, None: the model
    goes on with texts and answers no messages."""
    if given.chat is None:
        return None
    try:
        return chat_template.chat_template(given.chat, tokenizer)
    except UserError as why:
        told = f"its chat template is left out: {why}; give the runs that begin with it a template, Model.chat"
        print(f"mmfm: {source}: {told}", file=sys.stderr)
        return None


def _trunk_parts(source: str, given: CausalLm) -> tuple[Trunk, Weights, dict[str, Tensor]]:
    """The weights as ours, by component, and what a trunk of them gives."""
    converted = convert(Foreign(library="hf", architecture=given.config, modality="text"), given.weights)
    assert isinstance(converted.part, Trunk)
    if converted.embedding is None:
        raise UserError(f"{source} has no table of words; give the whole language model")
    tables = {"embedding.weight": converted.embedding, "output.weight": converted.output}
    with torch.device("meta"):
        trunk = UnifiedTransformer(converted.part).eval()
    adopt(trunk, converted.weights, source)
    weights: Weights = {
        "trunk": {f"trunk.{name}": tensor for name, tensor in converted.weights.items()},
        "vocabulary": {name: x.contiguous() for name, x in tables.items() if x is not None},
    }
    return converted.part, weights, golden.make_trunk(trunk)


def _trunk_proof(bundle: Bundle, given: CausalLm, folder: Path) -> ParityReport:
    """Logits of the language model, and of our trunk between its tables."""
    made = architecture_schema.hf_config(given.config, bundle.source)
    theirs = AutoModelForCausalLM.from_config(made, dtype=torch.float32, trust_remote_code=False).eval()
    theirs.load_state_dict(dict(given.weights), strict=False, assign=True)
    trunk, tables = load_trunk(folder)
    tokenizer = parse_tokenizer(given.tokenizer)
    rows = [torch.tensor(tokenizer.encode(text)) for text in golden.SENTENCES]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    keep = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    table, out = tables["embedding.weight"], tables.get("output.weight", tables["embedding.weight"])

    def ours(items: Items) -> Tokens:
        (states,) = trunk([Segment(Tokens(table[items.x], items.keep), causal=True)])
        return Tokens(states @ out.T, items.keep)

    def source(items: Items) -> Tokens:
        return Tokens(theirs(input_ids=items.x, attention_mask=items.keep.long(), use_cache=False).logits, items.keep)

    items = Items(x=ids, keep=keep, rows=torch.arange(len(ids)))
    found = compare(bundle.source, "trunk", "Trunk", "transformers", items, source, ours)
    window = from_hf.context_of(theirs.config)
    most = reach(window, sum(parameter.numel() for parameter in theirs.parameters()))
    tiled = torch.cat(rows).repeat(most)[None, :most]

    def end_of_source(items: Items) -> Tokens:
        logits = theirs(input_ids=items.x, use_cache=False, logits_to_keep=ENDING).logits
        return Tokens(logits, items.keep[:, -ENDING:])

    def end_of_ours(items: Items) -> Tokens:
        (states,) = trunk([Segment(Tokens(table[items.x], items.keep), causal=True)])
        return Tokens(states[:, -ENDING:] @ out.T, items.keep[:, -ENDING:])

    long = Items(x=tiled, keep=torch.ones_like(tiled, dtype=torch.bool), rows=torch.arange(1))
    return replace(with_long_item(found, long, end_of_source, end_of_ours), window=window)


def _causal_lm(source: str) -> CausalLm:
    """A causal language model of a wheel, a folder or the hub: safetensors alone."""
    found = parse(source)
    if found.kind == "wheel":
        return causal_lm(found.name)
    require(
        found.kind == "hf", f"a trunk comes from a language model of transformers, and {source} is none; give hf:NAME"
    )
    if found.folder is not None:
        require_safetensors(found.folder)
    config = _config(found, source)
    _require_language(config, source)
    with fetching(source, f"the repository {found.name} (model.safetensors)", str(constants.HF_HUB_CACHE)):
        how: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
        loaded: Any = AutoModelForCausalLM.from_pretrained(found.name, config=config, trust_remote_code=False, **how)
        model, said = loaded
        tokenizer = AutoTokenizer.from_pretrained(found.name, trust_remote_code=False)
    require_complete(said["missing_keys"], source)
    _, text = words_of_hf(tokenizer, from_hf.context_of(model.config))
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    config = architecture_schema.described(model.config)
    return CausalLm(config=config, weights=weights, tokenizer=text, chat=chat_template.of_hf(tokenizer))
