"""What the folder of a model says of itself. Standard library only, so that a configuration may ask for it.

It is a folder of transformers: config.json, tokenizer.json, the processors' settings, a stub of code, and
model.safetensors.index.json, which says which tensor lies in which file. There is one file for each component:

    image.safetensors  audio.safetensors  text.safetensors  trunk.safetensors  vocabulary.safetensors

Each modality's file holds its tower and, in a model's folder, its connector, pool token and head; an encoder needs that
and the trunk. The vocabulary is for writing, with the scales of the pairs. Only mmfm reads what is left, and "mmfm" in
config.json:

    codecs.safetensors  golden.safetensors  mmfm_tokenizer.json  mmfm_reader.json  files.json

`mmfm_reader.json` is the text tower's tokenizer, where it has one of its own. `files.json` lists size and CRC-32 of the
others, so that each can be read alone.
"""

import json
import re
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from mmfm.config import (
    MODALITIES,
    ChatTemplate,
    Conformer,
    Data,
    Generative,
    Model,
    Run,
    TextTower,
    Tower,
    Trunk,
    UserError,
    Vit,
    positive,
    require,
)
from mmfm.config.serialization import from_file, parse
from mmfm.inference.bundle.without_paths import TOKENIZER, public
from mmfm.runtime.files import Manifest

CONFIG, INDEX, FILES, GOLDEN = "config.json", "model.safetensors.index.json", "files.json", "golden.safetensors"
READER, KEY, RUN = "mmfm_reader.json", "mmfm", "run.json"
PARTS = (*MODALITIES, "trunk", "vocabulary", "codecs")
FORMAT = 2
AGAIN = "copy the whole folder again, or write it again"
ANEW = "write it anew, with `mmfm export RUN FOLDER` or `mmfm import SOURCE FOLDER`"

# Of a part that starts from weights, what may be chosen anew: it shapes the input, and no number.
FREE = {"weights", "height_px", "width_px", "resize_mode", "crop_pct", "interpolation", "resizer", "odd"}

Part = Vit | Conformer | TextTower | Trunk | Tower


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Either a model, or the modalities of it that are here; or one part alone, which another model can start from."""

    format: int
    made_with: str  # the version of torch
    source: str  # the run, or what `mmfm import` was given
    components: tuple[str, ...]  # those of PARTS that have a file here
    run: Run  # without its data; around a part alone the other parts are none, or small
    tokenizer: str  # sha256 of mmfm_tokenizer.json; empty: there is none
    reader: str  # sha256 of mmfm_reader.json
    sentences: tuple[str, ...]  # of the golden outputs
    tolerance: float  # of the golden outputs: largest difference, as a fraction of the largest number

    def __post_init__(self) -> None:
        positive(self, "tolerance")
        require(self.format == FORMAT, f"a folder of format {self.format}; this mmfm reads {FORMAT}: update it")
        known = bool(self.components) and set(self.components) <= set(PARTS)
        require(known, f"components={self.components} must be of {PARTS}")
        for name in self.modalities:
            require(getattr(self.run.model, name) is not None, f"components name {name}, and run.model has none")
        more = _difference(self.run, public(self.run), "run")
        told = f"a model's folder names no other folder and no data, and this one has {more}"
        require(not more, f"{told}; do not trust it")

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that have an encoder here."""
        return tuple(name for name in MODALITIES if name in self.components)

    @property
    def whole(self) -> bool:
        """Whether it is a model, with what joins its parts, and no part alone."""
        return bool(self.modalities) and "trunk" in self.components

    @property
    def alone(self) -> str:
        """In words, what there is of a part alone."""
        return f"{' and '.join(self.components)} alone"


def _difference(one: Any, other: Any, path: str) -> str:
    """The first field in which two dataclasses differ, with its value; empty where there is none."""
    if not is_dataclass(one) or type(one) is not type(other):
        return "" if one == other else f"{path}={one!r}"
    named = ((field.name, getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    return next((found for name, a, b in named if (found := _difference(a, b, f"{path}.{name}"))), "")


def is_bundle(folder: str | Path) -> bool:
    """Whether this is a model's folder. UserError for one that can no more, or not here, be read."""
    folder = Path(folder)
    listed = (folder / FILES).is_file() and (folder / CONFIG).is_file()
    older = (folder / "bundle.json").is_file()
    require(not older, f"{folder} has a bundle.json, of an earlier mmfm, which is read no more; {ANEW}")
    if not listed and (folder / CONFIG).is_file():
        told = f"{folder} has no {FILES}: transformers saved it, or an earlier mmfm, and it cannot be verified"
        require(not is_of_mmfm(folder / CONFIG), f"{told}; `mmfm import {folder} OUT` makes a bundle of it")
    return listed


def is_trunk(folder: str | Path) -> bool:
    """Whether this is the folder of a language model, and of nothing else."""
    return is_bundle(folder) and read_bundle(Path(folder)).components[0] == "trunk"


def is_of_mmfm(config: Path) -> bool:
    """Whether a config.json is of a model of mmfm; not where it cannot be read."""
    try:
        return json.loads(config.read_bytes()).get("model_type") == "mmfm"
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def read_bundle(folder: Path) -> Bundle:
    """What config.json says, verified. Raises UserError where the folder is none, or its files do not add up."""
    told = f"{folder} is no model's folder: it has no {FILES}"
    remedy = "give a folder of `mmfm export` or `mmfm import`"
    if (folder / RUN).is_file() or (folder / "checkpoints").is_dir():
        remedy = "of a run `mmfm export RUN FOLDER` makes one, and Run.start begins with all of it"
    elif not folder.exists() and re.match(r"(timm|open_clip|hf|torchaudio|wheel):", str(folder)):
        remedy = f"make one first: mmfm import {folder} FOLDER"
    require(is_bundle(folder), f"{told}; {remedy}")
    where = f"{folder / CONFIG}: {KEY}"
    try:
        tree = json.loads(read_manifest(folder).read(CONFIG))[KEY]
    except (ValueError, LookupError, TypeError, RecursionError) as why:
        raise UserError(f"{where} cannot be read ({type(why).__name__}: {why}); {AGAIN}") from None
    return parsed(tree, where)


def parsed(tree: Any, where: str) -> Bundle:
    """What stands in a config.json under KEY."""
    # What an older one does not say is as by default; whether that is what it was, its golden outputs tell.
    return parse(Bundle, json.dumps(tree), where, AGAIN, older=True)


def written_by(folder: Path) -> tuple[Generative, ...] | None:
    """What the model in a folder of a run, checkpoint or bundle was trained to write; None where nothing says it.

    UserError where there is no such folder.
    """
    require_folder(folder)
    if is_bundle(folder):
        return read_bundle(folder).run.generative
    return from_file(folder / RUN).generative if (folder / RUN).is_file() else None


def require_folder(folder: Path) -> None:
    told = f"{folder} is no folder of a run; give one that mmfm train has written, such as runs/quickstart"
    require(folder.is_dir(), told)


def read_manifest(folder: Path) -> Manifest:
    return Manifest(folder / FILES, "folder of a model", AGAIN)


def is_run(folder: str | Path) -> bool:
    """Whether this is the folder of a run, or of a checkpoint of one, and no bundle."""
    return (Path(folder) / RUN).is_file() and not is_bundle(folder)


def parts_in(folder: Path) -> dict[str, Part]:
    """The towers and the trunk that a folder of a bundle, a run or a checkpoint holds. UserError: it is none."""
    if is_run(folder):
        model = from_file(folder / RUN).model
        names = [name for name in (*MODALITIES, "trunk") if isinstance(getattr(model, name), Part)]
        return {name: getattr(model, name) for name in names}
    bundle = read_bundle(folder)
    return {name: part_of(bundle, name) for name in bundle.components if name in (*MODALITIES, "trunk")}


def native(folder: str | Path, part: str = "") -> Part:
    """The configuration of a part that starts from weights, as Model(image=native("bundles/dino")).

    `folder`: of a bundle, a run or one of its checkpoints. `part`: image, audio, text or trunk, of one that holds
    several. Torch is not imported.
    """
    held = parts_in(Path(folder))
    names = ", ".join(held)
    require(not part or part in held, f"{folder} holds no {part!r}; it holds {names}")
    require(bool(part) or len(held) == 1, f"{folder} holds {names}; name one: native({str(folder)!r}, NAME)")
    return start_from(held[part or next(iter(held))], str(folder))


def chat_template(folder: str | Path) -> ChatTemplate:
    """That of a folder of a bundle, a run or a checkpoint. UserError: it has none. Torch is not imported."""
    folder = Path(folder)
    model = from_file(folder / RUN).model if is_run(folder) else read_bundle(folder).run.model
    if model.chat is None:
        raise UserError(f"{folder} has no chat template; write one: Model(chat=mmfm.config.ChatTemplate(...))")
    return model.chat


def check_weights(model: Model) -> None:
    """UserError where a part would start from what is not there, or was another part than it is to be."""
    for name in (*MODALITIES, "trunk"):
        part = getattr(model, name)
        if getattr(part, "weights", "") and not isinstance(part, Tower):
            check_same(part, name, Path(part.weights))


def check_same(part: Part, name: str, folder: Path) -> Part:
    """The part of this folder that `part` can start from. UserError: what shapes its numbers is not what it was."""
    held, kind = parts_in(folder), type(part).__name__
    require(name in held, f"{folder} holds no {name} to start from; it holds {', '.join(held)}")
    there = held[name]
    told = f"{folder} holds a {type(there).__name__}, and no {kind} can start from it"
    require(type(there) is type(part), f"{told}; take it from there: mmfm.native({str(folder)!r}, {name!r})")
    for field in fields(part):
        mine, its = getattr(part, field.name), getattr(there, field.name)
        take = f"take it from there: mmfm.native({str(folder)!r}, {name!r})"
        require(mine == its or field.name in FREE, f"{kind}.{field.name}={mine!r} is {its!r} in {folder}; {take}")
    return there


def native_model(folder: str | Path) -> Model:
    """The configuration of a whole bundle's model, for a run that begins with all of it: Run(model=.., start=folder).

    Torch is not imported.
    """
    bundle = read_bundle(Path(folder))
    require(bundle.whole, f"{folder} holds {bundle.alone}, and no model; give native({str(folder)!r}) for that part")
    model = bundle.run.model
    towers = {name: part for name in bundle.modalities if isinstance(part := part_of(bundle, name), Tower)}
    named = {name: start_from(part, str(folder)) for name, part in towers.items()}
    tokenizer = "bytes" if model.tokenizer == "bytes" else str(Path(folder) / TOKENIZER)
    return replace(model, **named, tokenizer=tokenizer)  # pyright: ignore[reportArgumentType]


def part_of(bundle: Bundle, name: str) -> Part:
    """The configuration of a tower or the trunk."""
    found = getattr(bundle.run.model, name)
    assert found is not None, name
    return found


def start_from(part: Part, folder: str) -> Part:
    """The part with its weights taken from this folder; empty: from nowhere."""
    if isinstance(part, Tower):  # its size is settled
        return replace(part, source=folder, blueprint=None, height_px=0, width_px=0, window_seconds=0.0)
    return replace(part, weights=folder)


def around(name: str, part: Part) -> Run:
    """A run around a part alone: what the towers and the trunk that are not there would be is of no account."""
    small = Trunk(width=2, depth=1, heads=1, kv_heads=1)
    parts: dict[str, Any] = {**dict.fromkeys(MODALITIES), "trunk": small, name: part}
    model = Model(**parts, embed_dim=1)
    return public(Run(name="bundle", model=model, data=Data(exact_decode=True)))
