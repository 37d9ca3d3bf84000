"""A run before its first step: what its towers are, where their weights come from, and by what their text is read.

A source is resolved once. From then on run.json holds the blueprint and checkpoints hold the weights, so that a run is
resumed, evaluated and moved without its sources.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from mmfm.config import (
    MODALITIES,
    AudioCodec,
    Embedded,
    ImageCodec,
    KnownCodec,
    Model,
    Run,
    Tower,
    UserError,
    Vit,
    require,
)
from mmfm.config.serialization import from_json
from mmfm.inference import bundle
from mmfm.models.checkpoint import folder_of, newest_model, steps_of, words_of
from mmfm.models.imported import ImportedTower
from mmfm.models.model import UnifiedModel, build
from mmfm.preprocessing.tokenizer import Tokenizer, load_tokenizer, parse_reader
from mmfm.pretrained import Resolved
from mmfm.training.optimizer import learning
from mmfm.training.teachers import keep_known

Codec = ImageCodec | AudioCodec | KnownCodec


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """`run` with its blueprints; `towers` are those that came from other libraries, `codecs` weights to start from."""

    run: Run
    tokenizer: Tokenizer
    towers: Mapping[str, Resolved] = field(default_factory=dict)
    codecs: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)


def prepare(run: Run) -> Prepared:
    """Resolves the run's sources, which may download. Raises UserError where one cannot be had or used."""
    parts = {name: getattr(run.model, name) for name in MODALITIES}
    towers = {name: bundle.resolve(part, name) for name, part in parts.items() if isinstance(part, Tower)}
    made = {name: replace(parts[name], blueprint=found.blueprint) for name, found in towers.items()}
    codecs = {name: _codec(part, name) for name, part in run.model.codecs.items()}
    made |= {f"{name}_codec": part for name, (part, _) in codecs.items()}
    run = replace(run, model=replace(run.model, **made))
    check_augment(run)
    weights = {name: found for name, (_, found) in codecs.items() if found is not None}
    tokenizer = _tokenizer(run.model, towers).limited(run)
    return Prepared(run=run, tokenizer=tokenizer, towers=towers, codecs=weights)


def _codec(part: Codec, name: str) -> tuple[Codec, dict[str, Tensor] | None]:
    """The codec as it will be saved, and the weights that it starts from, if any."""
    if isinstance(part, KnownCodec):
        from mmfm.models.codecs import known  # transformers is imported only where it is asked for

        found = known.resolve(part, name)
        return found.codec, found.weights
    return part, trained_codec(part, name) if part.weights else None


def trained_codec(part: ImageCodec | AudioCodec, name: str) -> dict[str, Tensor]:
    """Of the newest checkpoint of the run that trained it, which must have trained just this codec."""
    folder = Path(part.weights)
    require(bool(steps_of(folder)), f"{name}_codec.weights: {folder} holds no trained run; train that codec first")
    step, (files, tensors) = newest_model(folder)
    there = from_json(files["run.json"].decode(), f"{folder_of(folder, step)}/run.json").model.codecs.get(name)
    if there is None or isinstance(there, KnownCodec):
        raise UserError(f"{name}_codec.weights: {folder} trained no codec of {name}; name the run that did")
    told = f"{name}_codec is not the one that {folder} trained; set all but its weights to {replace(there, weights='')}"
    require(replace(there, weights=part.weights) == part, told)
    prefix = f"codecs.{name}."
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def adopt(run: Run, before: Run) -> Run:
    """`run`, as a person writes it, with the blueprints that it had before."""
    parts = {name: (getattr(run.model, name), getattr(before.model, name)) for name in MODALITIES}
    made: dict[str, Tower | KnownCodec] = {
        name: replace(now, blueprint=old.blueprint)
        for name, (now, old) in parts.items()
        if isinstance(now, Tower) and isinstance(old, Tower) and now.blueprint is None
    }
    for name, now in run.model.codecs.items():
        old = before.model.codecs.get(name)
        if isinstance(now, KnownCodec) and isinstance(old, KnownCodec) and not now.architecture:
            told = {"sizes": old.sizes, "length": old.length, "pixels": old.pixels, "sound": old.sound}
            made[f"{name}_codec"] = replace(now, architecture=old.architecture, **told)
    return keep_known(replace(run, model=replace(run.model, **made)), before)


def begin(model: UnifiedModel, prepared: Prepared) -> tuple[str, ...]:
    """Weights where there are some to begin with: those of sources and of bundles, and last, and so over these, those
    of `run.start`; gives what is to be said of it."""
    for name, found in prepared.towers.items():
        tower = model.towers[name]
        assert isinstance(tower, ImportedTower)
        if found.weights is not None:
            tower.encoder.load_state_dict(found.weights, strict=True)
    for name, weights in prepared.codecs.items():
        model.codecs[name].load_state_dict(weights, strict=True)
    bundle.start(model, prepared.run.model)
    if any(lora.weights for lora in prepared.run.model.adapters):
        from mmfm.export import peft

        peft.start(model, prepared.run.model)
    return bundle.start_whole(model, prepared.run, prepared.tokenizer) if prepared.run.start else ()


def parameters_of(run: Run) -> tuple[str, ...]:
    """Which parameters would learn how fast, in lines for people. The model is built without its numbers."""
    prepared = prepare(run)
    with torch.device("meta"):
        model = build(prepared.run.model, prepared.tokenizer.size, run.contrastive, run.data.augment)
    return learning(model, prepared.run).lines


def check_augment(run: Run) -> None:
    """What changes an input is refused where an imported tower could not take it, or would never see it twice."""
    augment, image, audio, text = run.data.augment, run.model.image, run.model.audio, run.model.text
    frames = [n for n in ("speed", "vtlp", "time_mask", "freq_mask", "noise") if getattr(augment, n)]
    told = "augment.{} changes our own log-mel frames, which the imported audio tower does not read; set it to 0"
    require(not (isinstance(audio, Tower) and frames), told.format("".join(frames[:1])))
    told = "augment.patch_dropout is of our own image tower, which this model does not have; set it to 0"
    require(not augment.patch_dropout or isinstance(image, Vit), told)
    maps = any(projector.reads_map for projector in run.model.projectors)
    told = "augment.patch_dropout leaves holes in the map that the image's projector reads; set it to 0"
    require(not augment.patch_dropout or not maps, told)
    masks = not isinstance(text, Tower) or text.words.mask >= 0 or not augment.source_token_dropout
    require(
        masks, "augment.source_token_dropout needs a mask token, and the text tower's tokenizer has none; set it to 0"
    )
    moved = [
        name
        for name in ("rotate_deg", "scale", "shear", "translate", "elastic", "brightness", "crop", "cutout")
        if getattr(augment, name)
    ]
    told = (
        "augment.{} makes every picture new, and feature_cache_dir would keep each; set it to 0, or leave the cache out"
    )
    require(not (isinstance(image, Tower) and image.feature_cache_dir and moved), told.format("".join(moved[:1])))


def _tokenizer(model: Model, towers: Mapping[str, Resolved]) -> Tokenizer:
    """The model's, and with it that of a text tower which has one of its own."""
    tokenizer, words, text = load_tokenizer(model.tokenizer), words_of(model), model.text
    if words is None or text is None or isinstance(text, Embedded):
        return tokenizer
    if isinstance(text, Tower):
        source, found = text.source, towers["text"].tokenizer
        if found is None:
            raise UserError(f"{source} gave no tokenizer for its text tower; give another source")
    else:
        source = str(bundle.reader_of(text.weights))
        found = _read(Path(source))
    return replace(tokenizer, reader=parse_reader(found, words, source))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as why:
        raise UserError(f"{path} cannot be read ({why}); import the text tower anew") from None


def native_only(run: Run) -> Run:
    """Without the towers of other libraries, for looking at data where these cannot be had."""
    native = [name for name, part in run.model.towers.items() if not isinstance(part, Tower)]
    return replace(run, model=run.model.reading(native))
