"""What a bundle says of itself, in bundle.json. Standard library only, so that a configuration may ask for it.

    bundle.json  files.json  fixture.safetensors  tokenizer.json  tokenizer.text.json
    image.safetensors  audio.safetensors  text.safetensors  trunk.safetensors  vocabulary.safetensors

Each modality's file holds its tower and, in a model's bundle, its connector, pool token and head; an encoder needs that
and the trunk. The vocabulary is for writing; `tokenizer.text.json` is the text tower's, where it has one of its own.
`files.json` lists size and CRC-32 of all, so that each can be read alone.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mmfm.config import (
    MODALITIES,
    Conformer,
    Contrastive,
    Data,
    Generative,
    Model,
    TextTower,
    Tower,
    Trunk,
    UserError,
    Vit,
    positive,
    require,
)
from mmfm.config.serialization import from_file, parse
from mmfm.runtime.files import Manifest

BUNDLE, FILES, FIXTURE = "bundle.json", "files.json", "fixture.safetensors"
TOKENIZER, READER = "tokenizer.json", "tokenizer.text.json"
PARTS = (*MODALITIES, "trunk", "vocabulary")
KNOWN = (BUNDLE, FIXTURE, TOKENIZER, READER, "proof.json", *(f"{part}.safetensors" for part in PARTS))
FORMAT = 1
AGAIN = "copy the whole folder again, or write it again"

Part = Vit | Conformer | TextTower | Trunk | Tower


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Either a model, or the modalities of it that are here; or one part alone, which another model can start from."""

    format: int
    made_with: str  # the version of torch
    source: str  # the run, or what `mmfm import` was given
    components: tuple[str, ...]  # those of PARTS that have a file here
    model: Model | None
    part: Part | None  # that of the only tower or the trunk
    contrast: tuple[Contrastive, ...]
    write: tuple[Generative, ...]
    exact_decode: bool  # as in Data
    max_seconds: float
    crop_seconds: float
    tokenizer: str  # sha256 of tokenizer.json; empty: there is none
    reader: str  # sha256 of tokenizer.text.json
    sentences: tuple[str, ...]  # of the fixture
    tolerance: float  # of the fixture: largest difference, as a fraction of the largest number
    max_text_tokens: int = Data().max_text_tokens  # as in Data
    long_text: Literal["truncate", "skip"] = "truncate"

    def __post_init__(self) -> None:
        positive(self, "tolerance", "max_seconds")
        require(self.format == FORMAT, f"a bundle of format {self.format}; this mmfm reads {FORMAT}: update it")
        require((self.model is None) != (self.part is None), "a bundle holds a model or a part, and not both")
        for part in (self.part, *(getattr(self.model, name, None) for name in (*MODALITIES, "trunk"))):
            elsewhere = part is not None and (part.feature_cache_dir if isinstance(part, Tower) else part.weights)
            require(not elsewhere, f"a bundle names no other folder, and this one names {elsewhere!r}; do not trust it")
        require(
            bool(self.components) and set(self.components) <= set(PARTS),
            f"components={self.components} must be of {PARTS}",
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that have an encoder here."""
        return tuple(name for name in MODALITIES if name in self.components)


def is_bundle(folder: str | Path) -> bool:
    return (Path(folder) / BUNDLE).is_file()


def read_bundle(folder: Path) -> Bundle:
    """bundle.json, verified. Raises UserError where the folder is none, or its files do not add up."""
    told = f"{folder} is no bundle: it has no {BUNDLE}"
    remedy = "give a folder of `mmfm import`"
    if (folder / "run.json").is_file() or (folder / "checkpoints").is_dir():
        remedy = "of a run mmfm.save_bundle(mmfm.load(RUN), FOLDER) makes one, and Run.start begins with all of it"
    elif not folder.exists() and re.match(r"(timm|open_clip|hf|torchaudio|wheel):", str(folder)):
        remedy = f"make one first: mmfm import {folder} FOLDER"
    require(is_bundle(folder), f"{told}; {remedy}")
    data = read_manifest(folder).read(BUNDLE)
    try:
        # What an older one does not say is as by default; whether that is what it was, its fixture tells.
        return parse(Bundle, data.decode("utf-8"), str(folder / BUNDLE), AGAIN, older=True)
    except UnicodeDecodeError as why:
        raise UserError(f"{folder / BUNDLE} is not UTF-8 at byte {why.start}; {AGAIN}") from None


def written_by(folder: Path) -> tuple[Generative, ...] | None:
    """What the model in a folder of a run, checkpoint or bundle was trained to write; None where nothing says it."""
    if is_bundle(folder):
        return read_bundle(folder).write
    return from_file(folder / "run.json").generative if (folder / "run.json").is_file() else None


def read_manifest(folder: Path) -> Manifest:
    return Manifest(folder / FILES, "bundle", AGAIN, KNOWN)


def native(folder: str | Path, part: str = "") -> Part:
    """The configuration of a bundle's part, which starts from its weights, as Model(image=native("bundles/dino")).

    `part`: image, audio, text or trunk, of a bundle that holds several. Torch is not imported.
    """
    bundle = read_bundle(Path(folder))
    names = [name for name in bundle.components if name != "vocabulary"]
    require(not part or part in names, f"{folder} holds no {part!r}; it holds {', '.join(names)}")
    require(
        bool(part) or len(names) == 1, f"{folder} holds {', '.join(names)}; name one: native({str(folder)!r}, NAME)"
    )
    return start_from(part_of(bundle, part or names[0]), str(folder))


def part_of(bundle: Bundle, name: str) -> Part:
    """The configuration of a tower or the trunk."""
    if bundle.part is not None:
        return bundle.part
    found = getattr(bundle.model, name)
    assert found is not None, name
    return found


def start_from(part: Part, folder: str) -> Part:
    """The part with its weights taken from this folder; empty: from nowhere."""
    return replace(part, source=folder, blueprint=None) if isinstance(part, Tower) else replace(part, weights=folder)
