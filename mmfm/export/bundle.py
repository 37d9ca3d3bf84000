"""Writing a model's folder: whole or not at all, and not before it was opened and gave what its source gives."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmfm.config import MODALITIES, Run, require
from mmfm.config.task import parse_writing
from mmfm.export.card import card
from mmfm.export.folder import export_folder, refuse
from mmfm.export.hf.folder import write_settings
from mmfm.export.hf.parity import check_transformers
from mmfm.inference.bundle import golden
from mmfm.inference.bundle.contents import FILES, FORMAT, GOLDEN, INDEX, READER, Bundle
from mmfm.inference.bundle.encoder import BundledEncoder
from mmfm.inference.bundle.load import from_pretrained, load_encoder
from mmfm.inference.bundle.tensors import CORE
from mmfm.inference.bundle.without_paths import TOKENIZER, public, unpinned
from mmfm.inference.interface import Interface
from mmfm.inference.load import load_model
from mmfm.inference.merged import plain
from mmfm.models.model import UnifiedModel
from mmfm.preprocessing.tokenizer import Tokenizer
from mmfm.pretrained.encoder import rested
from mmfm.runtime.files import manifest, sync_folder, write_file

Weights = dict[str, dict[str, Tensor]]  # by component, then by name
Files = dict[str, bytes | Mapping[str, Tensor]]  # a safetensors file for tensors


def save_bundle(
    run: str | Path | Interface,
    folder: str | Path,
    modalities: Sequence[str] | None = None,
    *,
    force: bool = False,
    source: str = "",
    prove: Callable[[Path], Mapping[str, str]] = lambda _: {},
) -> Path:
    """A run's model, or only these of its modalities, as a folder that mmfm and transformers read.

    source: where it comes from; empty: the run's name. prove: as of `write_whole`.
    Raises UserError for a modality that the model lacks, and where `folder` exists; `force` replaces such a folder.
    """
    model = plain(run if isinstance(run, Interface) else load_model(run))
    chosen = tuple(name for name in model.modalities if modalities is None or name in modalities)
    unknown = sorted(set(modalities or ()) - set(model.modalities))
    require(not unknown, f"the model has no {', '.join(unknown)} encoder; it has {', '.join(model.modalities)}")
    require(bool(set(chosen) & set(MODALITIES)), "a bundle needs at least one modality; name image, audio or text")
    dtype = model.core.dtype
    require(dtype.itemsize >= 4, f"a model in {dtype} has lost what a bundle should keep; save the one in float32")
    refuse(Path(folder), force)
    with rested(model):
        weights, files, bundle = _contents(model, chosen, source)
        return write_whole(Path(folder), weights, files, bundle, model.tokenizer, force=force, prove=prove)


def _contents(model: Interface, modalities: Sequence[str], source: str) -> tuple[Weights, Files, Bundle]:
    encoders = [
        BundledEncoder(model.core, name, model.run, model.tokenizer) for name in MODALITIES if name in modalities
    ]
    tensors = {name: tensor for encoder in encoders for name, tensor in golden.make(encoder).items()}
    run = _of_these(model.run, modalities)
    weights = split(model.core, modalities, [item.name for item in run.contrastive])
    texts = tokenizer_files(model.tokenizer, "text" in modalities)
    bundle = bundle_of(
        source or model.run.name,
        run,
        tuple(weights),
        tokenizer=sha256(texts[TOKENIZER]),
        reader=sha256(texts[READER]) if READER in texts else "",
    )
    tensors |= golden.make_trunk(model.core.trunk) | golden.make_codecs(model.core)
    return weights, {GOLDEN: tensors, **texts}, bundle


def _of_these(run: Run, modalities: Sequence[str]) -> Run:
    """The run with these modalities alone, and what it says of them."""
    contrastive = tuple(item for item in run.contrastive if set(item.pair) <= set(modalities))
    writing = tuple(item for item in run.generative if set(parse_writing(item.task).sources) <= set(modalities))
    model = run.model.reading(modalities)
    return public(replace(run, model=model, contrastive=contrastive, generative=writing))


def bundle_of(source: str, run: Run, components: tuple[str, ...], *, tokenizer: str = "", reader: str = "") -> Bundle:
    """Written here and now. tokenizer, reader: the SHA-256 of their files."""
    return Bundle(
        format=FORMAT,
        made_with=f"torch {torch.__version__}",
        source=unpinned(source),
        components=components,
        run=run,
        tokenizer=tokenizer,
        reader=reader,
        sentences=golden.SENTENCES,
        tolerance=golden.TOLERANCE,
    )


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tokenizer_files(tokenizer: Tokenizer, text: bool) -> dict[str, bytes]:
    """What is written with, and what the text tower reads with, where that is another."""
    files = {TOKENIZER: tokenizer.to_json().encode()}
    return files if tokenizer.reader is None or not text else files | {READER: tokenizer.reader.to_json().encode()}


def split(core: UnifiedModel, modalities: Sequence[str], pairs: Sequence[str]) -> Weights:
    """The weights by component. Nothing of a modality or a pair that is not here; modalities of one's own go with the
    vocabulary."""
    held = [name for name in MODALITIES if name in modalities]
    parts: Weights = {name: {} for name in (*held, "trunk", "vocabulary")}
    for name, tensor in core.state_dict().items():
        head, _, rest = name.partition(".")
        part = rest.partition(".")[0] if head in ("towers", "connectors", "pools", "heads") else head
        absent = part in core.towers and part not in modalities
        part = part if part in (*MODALITIES, "trunk", "codecs") else "vocabulary"
        if not absent and (head not in ("log_scales", "biases") or rest in pairs):
            parts.setdefault(part, {})[name] = tensor.detach().cpu().contiguous()
    return parts


def write_whole(
    folder: Path,
    weights: Weights,
    files: Files,
    bundle: Bundle,
    tokenizer: Tokenizer | None = None,
    *,
    force: bool = False,
    prove: Callable[[Path], Mapping[str, str]] = lambda _: {},
) -> Path:
    """A folder with these weights and files; it appears when all are on the disk and were opened.

    tokenizer: of a model; None of a part alone. `prove` gets the folder before it has its name, and gives further texts
    for it by name; what it raises, and Ctrl-C, leave nothing behind. A folder that `force` replaces stays until the new
    one is whole. `weights` is emptied once it is written, so that they are held once.
    """
    with export_folder(folder, force) as temporary:
        write_settings(bundle, tokenizer, temporary)
        _write(temporary, {**_named(weights), **files})
        weights.clear()
        _listed(temporary)
        if bundle.whole:
            from_pretrained(temporary)
            check_transformers(temporary, bundle)
        for modality in () if bundle.whole else bundle.modalities:
            load_encoder(modality, temporary)
        proofs = {name: text.encode() for name, text in prove(temporary).items()}
        _write(temporary, {"README.md": card(bundle).encode() + proofs.pop("README.md", b""), **proofs})
        _listed(temporary)
    return folder


def _named(weights: Weights) -> Files:
    """A file for each component, and the index of those that transformers reads."""
    parts = {
        f"{part}.safetensors": {f"{CORE}{name}": x for name, x in found.items()} for part, found in weights.items()
    }
    theirs = {part: found for part, found in parts.items() if part != "codecs.safetensors"}
    size = sum(tensor.nbytes for found in theirs.values() for tensor in found.values())
    places = {name: part for part, found in theirs.items() for name in found}
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    return {**parts, INDEX: (json.dumps(index, indent=2) + "\n").encode()}


def _write(folder: Path, files: Mapping[str, bytes | Mapping[str, Tensor]]) -> None:
    """All of it on the disk."""
    for name, data in files.items():
        if isinstance(data, bytes):
            write_file(folder / name, data)
        else:
            save_file(dict(data), folder / name, metadata={"format": "pt"})
            sync_folder(folder / name)


def _listed(folder: Path) -> None:
    """The manifest of all files that lie in it."""
    (folder / FILES).unlink(missing_ok=True)
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    write_file(folder / FILES, manifest(files))
