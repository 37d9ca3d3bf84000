"""A tower that a bundle of ours holds, blueprint and weights: its source, and its library's loader, are not needed."""

import hashlib
import json
import zlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load

from mmfm.config import EncoderSpec, Tower, UserError, require
from mmfm.config.serialization import parse
from mmfm.pretrained.encoder import Resolved, Weights
from mmfm.pretrained.source import Source, read_json

AGAIN = "copy the whole folder again"


def resolve(source: Source, tower: Tower, modality: str) -> Resolved:
    assert source.folder is not None
    folder = source.folder
    said = read_json(folder / "bundle.json")
    held = said.get("holds")
    require(
        isinstance(held, list) and modality in held,
        f"{folder} holds no {modality} tower; its bundle.json lists {held}",
    )
    part = said.get("part") or (said.get("model") or {}).get(modality) or {}
    shape = part.get("blueprint")
    require(
        isinstance(shape, dict),
        f"the {modality} tower of {folder} is one of mmfm's own; write native({str(folder)!r}) in place of Tower(...)",
    )
    blueprint = parse(EncoderSpec, json.dumps(shape), str(folder / "bundle.json"), AGAIN)
    size = blueprint.pixels and (blueprint.pixels.height_px, blueprint.pixels.width_px)
    sound = blueprint.sound and blueprint.sound.window_seconds
    other = (tower.height_px, tower.width_px) not in ((0, 0), size) or tower.window_seconds not in (0, sound)
    require(not other, f"{folder} is of one size, {size or sound}; another size is made from the first source")
    weights = _weights(folder, modality) if tower.weights == "pretrained" else None
    return Resolved(blueprint=blueprint, weights=weights, tokenizer=_tokenizer(folder, blueprint))


def _weights(folder: Path, modality: str) -> Weights:
    name, start = f"{modality}.safetensors", f"towers.{modality}.encoder."
    try:
        found = load(_verified(folder, name))
    except SafetensorError as why:
        raise UserError(f"{folder / name} cannot be read ({why}); {AGAIN}") from None
    return {key.removeprefix(start): value for key, value in found.items() if key.startswith(start)}


def _verified(folder: Path, name: str) -> bytes:
    """A file's bytes, which must be those that the bundle's list was made of."""
    listed = read_json(folder / "files.json").get("files", {}).get(name)
    try:
        data = (folder / name).read_bytes()
    except OSError as why:
        raise UserError(f"{folder / name} cannot be read ({why}); {AGAIN}") from None
    whole = listed == {"bytes": len(data), "crc32": zlib.crc32(data)}
    require(whole, f"{folder / name} is damaged: files.json lists other contents; {AGAIN}")
    return data


def _tokenizer(folder: Path, blueprint: EncoderSpec) -> str | None:
    if blueprint.words is None:
        return None
    name = "tokenizer.text.json" if (folder / "tokenizer.text.json").is_file() else "tokenizer.json"
    data = _verified(folder, name)
    right = hashlib.sha256(data).hexdigest() == blueprint.words.sha256
    require(right, f"{folder / name} is not the tokenizer of its text tower; {AGAIN}")
    return data.decode("utf-8")
