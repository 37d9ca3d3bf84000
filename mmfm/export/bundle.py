"""Writing a bundle: whole or not at all, and not before it was opened and gave what its source gives."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmfm.config import MODALITIES, require
from mmfm.config.serialization import write
from mmfm.config.task import parse_writing
from mmfm.export.without_paths import unplaced
from mmfm.inference.bundle import golden
from mmfm.inference.bundle.contents import (
    BUNDLE,
    FILES,
    FIXTURE,
    FORMAT,
    READER,
    TOKENIZER,
    Bundle,
    is_bundle,
)
from mmfm.inference.bundle.encoder import BundledEncoder, only
from mmfm.inference.bundle.load import load_encoder
from mmfm.inference.interface import Interface
from mmfm.inference.load import load_model
from mmfm.models.model import UnifiedModel
from mmfm.preprocessing.tokenizer import Tokenizer
from mmfm.runtime.files import manifest, sync_folder, whole_folder, write_file

Files = dict[str, bytes | Mapping[str, Tensor]]  # a safetensors file for tensors
CARD = """\
---
library_name: mmfm
---
# {source}

Holds {holds}. Written by mmfm with {made_with}.

```python
import mmfm

{use}
```
"""


def save_bundle(
    run: str | Path | Interface, folder: str | Path, modalities: Sequence[str] | None = None, *, force: bool = False
) -> Path:
    """A run's model, or only these of its modalities, as a folder that `load_encoder` and `from_pretrained` read.

    Raises UserError for a modality that the model lacks, and where `folder` exists; `force` replaces a bundle there.
    """
    model = run if isinstance(run, Interface) else load_model(run)
    chosen = tuple(name for name in MODALITIES if name in (model.modalities if modalities is None else modalities))
    unknown = sorted(set(modalities or ()) - set(model.modalities))
    require(not unknown, f"the model has no {', '.join(unknown)} encoder; it has {', '.join(model.modalities)}")
    require(bool(chosen), "a bundle needs at least one modality; name image, audio or text")
    dtype = model.core.dtype
    require(dtype.itemsize >= 4, f"a model in {dtype} has lost what a bundle should keep; save the one in float32")
    was = model.training
    try:
        files, bundle = _contents(model.eval(), chosen)
        return write_whole(Path(folder), files, bundle, force=force)
    finally:
        model.train(was)


def _contents(model: Interface, modalities: Sequence[str]) -> tuple[Files, Bundle]:
    encoders = [BundledEncoder(model.core, name, model.run, model.tokenizer) for name in modalities]
    tensors = {name: tensor for encoder in encoders for name, tensor in golden.make(encoder).items()}
    tensors |= golden.make_trunk(model.core.trunk)
    contrast = tuple(item for item in model.run.contrastive if set(item.pair) <= set(modalities))
    writing = tuple(item for item in model.run.generative if set(parse_writing(item.task).sources) <= set(modalities))
    weights = split(model.core, modalities, [item.name for item in contrast])
    texts = tokenizer_files(model.tokenizer, "text" in modalities)
    parts: Files = {f"{part}.safetensors": found for part, found in weights.items()}
    files: Files = {**parts, FIXTURE: tensors, **texts}
    data, cfg = model.run.data, unplaced(only(model.config, modalities))
    bundle = Bundle(
        format=FORMAT,
        made_with=f"torch {torch.__version__}",
        source=model.run.name,
        components=tuple(weights),
        model=replace(cfg, tokenizer=cfg.tokenizer if cfg.tokenizer == "bytes" else TOKENIZER),
        part=None,
        contrast=contrast,
        write=writing,
        exact_decode=data.exact_decode,
        max_seconds=data.max_seconds,
        crop_seconds=data.crop_seconds,
        max_text_tokens=data.max_text_tokens,
        long_text=data.long_text,
        tokenizer=sha256(texts[TOKENIZER]),
        reader=sha256(texts[READER]) if READER in texts else "",
        sentences=golden.SENTENCES,
        tolerance=golden.TOLERANCE,
    )
    return files, bundle


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tokenizer_files(tokenizer: Tokenizer, text: bool) -> dict[str, bytes]:
    """What is written with, and what the text tower reads with, where that is another."""
    files = {TOKENIZER: tokenizer.to_json().encode()}
    return files if tokenizer.reader is None or not text else files | {READER: tokenizer.reader.to_json().encode()}


def split(core: UnifiedModel, modalities: Sequence[str], pairs: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """The weights by the file that they go to. Nothing of a modality or a pair that is not here."""
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in (*modalities, "trunk", "vocabulary")}
    for name, tensor in core.state_dict().items():
        head, _, rest = name.partition(".")
        part = rest.partition(".")[0] if head in ("towers", "connectors", "pools", "heads") else head
        part = part if part in (*MODALITIES, "trunk") else "vocabulary"
        if part in parts and (head not in ("log_scales", "biases") or rest in pairs):
            parts[part][name] = tensor.detach().cpu().contiguous()
    return parts


def write_whole(
    folder: Path,
    files: Files,
    bundle: Bundle,
    *,
    force: bool = False,
    prove: Callable[[Path], Mapping[str, str]] = lambda _: {},
) -> Path:
    """A folder with these files, bundle.json and files.json; it appears when all are on the disk and were opened.

    `prove` gets the folder before it has its name, and gives further texts for it by name; what it raises, and Ctrl-C,
    leave nothing behind. A bundle that `force` replaces stays until the new one is whole. `files` is emptied once it is
    written, so that weights are held once.
    """
    check_free(folder, force)
    with whole_folder(folder) as temporary:
        names = _write(temporary, {**files, BUNDLE: write(bundle).encode()})
        files.clear()
        _listed(temporary, names)
        for modality in bundle.modalities:
            load_encoder(modality, temporary)
        proofs = {name: text.encode() for name, text in prove(temporary).items()}
        told = {"source": bundle.source, "made_with": bundle.made_with}
        card = CARD.format(holds=", ".join(bundle.components), use=_use(bundle), **told)
        write_file(temporary / "README.md", card.encode() + proofs.pop("README.md", b""))
        _listed(temporary, [*names, *_write(temporary, proofs)])
    return folder


def _use(bundle: Bundle) -> str:
    """The line that a person would copy."""
    if not bundle.modalities:
        return 'trunk = mmfm.native("path/of/this/folder")  # for a configuration: Model(trunk=trunk, ...)'
    return f'encoder = mmfm.load_encoder("{bundle.modalities[0]}", "path/of/this/folder")'


def check_free(folder: Path, force: bool) -> None:
    """A UserError where something is that must not be replaced."""
    if folder.exists():
        require(is_bundle(folder), f"{folder} is no bundle, and is not replaced; give another folder")
        require(force, f"{folder} exists; give another folder, or --force to replace it")


def _write(folder: Path, files: Mapping[str, bytes | Mapping[str, Tensor]]) -> list[str]:
    """All of it on the disk; the names."""
    for name, data in files.items():
        if isinstance(data, bytes):
            write_file(folder / name, data)
        else:
            save_file(dict(data), folder / name)
            sync_folder(folder / name)
    return [*files]


def _listed(folder: Path, names: Sequence[str]) -> None:
    (folder / FILES).unlink(missing_ok=True)
    write_file(folder / FILES, manifest({name: folder / name for name in names}))
