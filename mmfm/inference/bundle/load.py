"""Opening a bundle: only the files that are wanted are read, each is verified, and the fixture must hold."""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mmfm.config import MODALITIES, Embedded, Model, UserError, require
from mmfm.inference.bundle import golden
from mmfm.inference.bundle.contents import (
    AGAIN,
    GOLDEN,
    READER,
    Bundle,
    is_bundle,
    is_trunk,
    read_bundle,
    read_manifest,
)
from mmfm.inference.bundle.encoder import BundledEncoder, bare, lone, reads_table, texts_of_table
from mmfm.inference.bundle.hub import find
from mmfm.inference.bundle.tensors import read_weights, verified_tensors
from mmfm.inference.bundle.without_paths import TOKENIZER
from mmfm.inference.interface import Interface
from mmfm.inference.load import built, load_model
from mmfm.models.adapters import merge
from mmfm.models.checkpoint import words_of
from mmfm.models.transformer import UnifiedTransformer
from mmfm.models.weights import adopt, check_size
from mmfm.preprocessing.tokenizer import Tokenizer, load_tokenizer, parse_reader, parse_tokenizer
from mmfm.runtime.files import Manifest
from mmfm.runtime.foreign import refuse_foreign, refuse_unsafe


def load_encoder(
    modality: str, where: str | Path, *, check: bool = True, device: str | torch.device = "cpu"
) -> BundledEncoder:
    """The encoder of one modality, from a bundle's folder, a run's folder, or "owner/name" on the hub.

    Of a bundle the other modalities are not read. `check` compares its outputs with those of when it was written.
    Raises UserError for what is missing, damaged, of another kind, or gives other numbers.
    """
    require(modality in MODALITIES, f"there is no modality {modality!r}; there are {', '.join(MODALITIES)}")
    refuse_unsafe()
    folder = find(where, modality)
    refuse_foreign(folder)
    if is_bundle(folder):
        return _open(folder, modality, check).to(device)
    model = load_model(folder)
    if model.config.adapters:
        merge(model.core)
        run = replace(model.run, model=replace(model.config, adapters=()))
        model = Interface(model.core, run, model.tokenizer)
    there = model.modalities
    require(modality in there, f"{folder} holds no {modality} encoder; it holds {', '.join(there)}")
    core = bare(model.run, modality, model.tokenizer.size)
    wanted, found = core.state_dict(), model.core.state_dict()
    if reads_table(model.run, modality):
        found["embedding.weight"] = texts_of_table(core, model.run, found["embedding.weight"])
    core.load_state_dict({name: found[name] for name in wanted if name in found} | _empty(core), strict=True)
    return BundledEncoder(core, modality, model.run, model.tokenizer).to(device).eval()


def from_pretrained(where: str | Path, *, check: bool = True, device: str | torch.device = "cpu") -> Interface:
    """The whole model of a bundle, to encode and to write, from a folder or "owner/name" on the hub."""
    refuse_unsafe()
    folder = find(where, "")
    refuse_foreign(folder)
    if not is_bundle(folder):
        return load_model(folder, device=device)
    bundle, files = read_bundle(folder), read_manifest(folder)
    if is_trunk(folder):
        return language_model(folder, check=check).to(device)
    told = f"{folder} holds {bundle.alone}, and no model"
    require(bundle.whole, f"{told}; start one from it: native({str(folder)!r}) in a configuration")
    run, tokenizer = bundle.run, _tokenizer(folder, bundle, files, True)
    weights = read_weights(folder, bundle.components)
    check_size(run.model, weights, str(folder))
    core = built(run.model, tokenizer.size, run.contrastive)
    adopt(core, weights, str(folder))
    if check:
        stored = verified_tensors(folder, GOLDEN, files)
        for modality in bundle.modalities:
            encoder = BundledEncoder(core.eval(), modality, run, tokenizer)
            golden.check(encoder, stored, bundle.sentences, bundle.tolerance, folder)
        golden.check_codecs(core, stored, bundle.tolerance, folder)
    model = Interface(core.to(device).eval(), run, tokenizer).eval()
    model.checkpoint = folder
    return model


def open_whole(
    where: str | Path, step: int | str | None = None, *, ema: bool = False, device: str | torch.device = "cpu"
) -> Interface:
    """The model of a run, of one of its checkpoints, or of a bundle, which has neither steps nor a moving average."""
    if not is_bundle(where):
        return load_model(where, step, device, ema=ema)
    require(step is None, f"{where} is a bundle, which has no steps; leave out --step")
    require(not ema, f"{where} is a bundle, which keeps no moving average; leave out --ema")
    return from_pretrained(where, device=device)


def load_trunk(folder: Path, *, check: bool = True) -> tuple[UnifiedTransformer, dict[str, Tensor]]:
    """The trunk of a bundle, and the tables of its vocabulary by name: "embedding.weight", "output.weight"."""
    bundle, files = read_bundle(folder), read_manifest(folder)
    require("trunk" in bundle.components, f"{folder} holds no trunk; it holds {', '.join(bundle.components)}")
    found = verified_tensors(folder, "trunk.safetensors", files)
    model = bundle.run.model
    check_size(model.reading(()), found, str(folder))
    with torch.device("meta"):
        trunk = UnifiedTransformer(model.trunk).eval()
    weights = {name.removeprefix("trunk."): tensor for name, tensor in found.items()}
    adopt(trunk, weights, str(folder))
    if check:
        golden.check_trunk(trunk, verified_tensors(folder, GOLDEN, files), bundle.tolerance, folder)
    held = "vocabulary" in bundle.components
    return trunk, verified_tensors(folder, "vocabulary.safetensors", files) if held else {}


def language_model(folder: Path, *, check: bool = True) -> Interface:
    """A language model's bundle as a whole model: it reads and writes text through its own table, and answers where its
    source had a chat template. The vocabulary's own marks, which it never saw, have rows of noise."""
    from mmfm.models.mappings.language import place_embeddings  # the tables of names need the extra `encoders`

    bundle, files = read_bundle(folder), read_manifest(folder)
    trunk, tables = load_trunk(folder, check=check)
    told = f"{folder} holds no table of words; import it again from its source"
    require("embedding.weight" in tables, told)
    tokenizer = _tokenizer(folder, bundle, files, True)
    run = replace(bundle.run, generative=(), contrastive=(), model=alone(bundle.run.model))
    core = built(run.model, tokenizer.size)
    noise = torch.Generator().manual_seed(0)
    state = {f"trunk.{name}": tensor for name, tensor in trunk.state_dict().items()}
    for name, shape in ((name, x.shape) for name, x in core.state_dict().items() if name not in state):
        fresh = torch.randn(shape, generator=noise) * run.model.trunk.width**-0.5
        state[name] = place_embeddings(tables[name], fresh, core.vocabulary) if name in tables else fresh
    adopt(core, state, str(folder))
    model = Interface(core.eval(), run, tokenizer).eval()
    model.checkpoint = folder
    return model


def alone(model: Model) -> Model:
    """A model of text alone, through the trunk's table."""
    return Model(image=None, audio=None, text=Embedded(), trunk=replace(model.trunk, weights=""), chat=model.chat)


def _open(folder: Path, modality: str, check: bool) -> BundledEncoder:
    bundle, files = read_bundle(folder), read_manifest(folder)
    there = ", ".join(bundle.modalities) or bundle.alone
    require(modality in bundle.modalities, f"{folder} holds no {modality} encoder; it holds {there}")
    run = bundle.run
    tokenizer = _tokenizer(folder, bundle, files, modality == "text").limited(run)
    weights = read_weights(folder, (modality, *(("trunk",) if bundle.whole else ())))
    check_size(run.model, weights, str(folder))
    make = bare if bundle.whole else lone
    core = make(run, modality, tokenizer.size if modality == "text" else 0)
    if bundle.whole and reads_table(run, modality):
        table = read_weights(folder, ("vocabulary",))["embedding.weight"]
        weights["embedding.weight"] = texts_of_table(core, run, table)
    weights |= _empty(core)
    adopt(core, weights, str(folder))
    encoder = BundledEncoder(core, modality, run, tokenizer).eval()
    if check:
        stored = verified_tensors(folder, GOLDEN, files)
        golden.check(encoder, stored, bundle.sentences, bundle.tolerance, folder)
    return encoder


def _empty(core: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in core.state_dict().items() if not tensor.numel()}


def _tokenizer(folder: Path, bundle: Bundle, files: Manifest, text: bool) -> Tokenizer:
    """Where no text is read or written, that of bytes stands for it."""
    inner = load_tokenizer("bytes")
    if text and bundle.tokenizer:
        inner = parse_tokenizer(_hashed(folder, TOKENIZER, bundle.tokenizer, files), str(folder / TOKENIZER))
    words = words_of(bundle.run.model)
    if words is None or not text:
        return inner
    reader = parse_reader(_hashed(folder, READER, bundle.reader, files), words, str(folder / READER))
    return replace(inner, reader=reader)


def _hashed(folder: Path, name: str, wanted: str, files: Manifest) -> str:
    """The text of a tokenizer, which must be the one that config.json names."""
    data = files.read(name)
    found = hashlib.sha256(data).hexdigest()
    told = f"{folder / name} is not the tokenizer of this bundle (SHA-256 {found[:12]}, not {wanted[:12]})"
    require(found == wanted, f"{told}; {AGAIN}")
    return _text(data, str(folder / name))


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as why:
        raise UserError(f"{where} is not UTF-8 at byte {why.start}; {AGAIN}") from None
