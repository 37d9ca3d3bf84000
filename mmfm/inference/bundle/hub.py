"""Bundles on the hub, through huggingface_hub: fetched file by file, so that only what is wanted travels."""

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import RepositoryNotFoundError

from mmfm.config import UserError
from mmfm.inference.bundle.contents import CONFIG, FILES, GOLDEN, PARTS, READER, is_bundle
from mmfm.inference.bundle.without_paths import TOKENIZER

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
FAILURES = (OSError, ValueError)  # its own errors of network, names, rights and absence are all one of these


def find(where: str | Path, modality: str) -> Path:
    """The folder itself, or a snapshot of "owner/name" with the files that this modality needs; empty: all of them."""
    if Path(where).exists() or not NAME.fullmatch(str(where)):
        return Path(where)
    parts = (modality, "trunk") if modality else PARTS
    wanted = [CONFIG, FILES, GOLDEN, TOKENIZER, READER, *(f"{part}.safetensors" for part in parts)]
    told = f"{where} is no folder here, and could not be fetched from the hub"
    try:
        folder = Path(str(huggingface_hub.snapshot_download(str(where), allow_patterns=wanted)))
    except RepositoryNotFoundError:
        raise UserError(f"{told}: there is no such model, or it is private; check the name, or log in") from None
    except FAILURES as why:
        remedy = f"on a machine with a network get {', '.join(wanted)} (those that it has), and give their folder here"
        raise UserError(f"{told} ({first_line(why)}); {remedy}") from None
    if not is_bundle(folder):
        raise UserError(f"{where} is no model's folder: it has no {FILES}; convert it: mmfm import hf:{where} FOLDER")
    return folder


def first_line(why: Exception) -> str:
    return next(iter(str(why).strip().splitlines()), type(why).__name__)
