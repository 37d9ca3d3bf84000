"""The teachers of a run: read before its first step, or again before it goes on, and proved to be those of before."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from mmfm.config import MODALITIES, Distil, Model, Run, require
from mmfm.data.batch import Items
from mmfm.data.decode import Example, collate
from mmfm.inference.bundle.contents import is_bundle, is_trunk, read_bundle
from mmfm.inference.bundle.load import load_encoder, open_whole
from mmfm.models.imported import Kept
from mmfm.objectives.distil import Teacher
from mmfm.preprocessing.tokenizer import Tokenizer


def load_teachers(run: Run, tokenizer: Tokenizer) -> tuple[Run, dict[str, Teacher]]:
    """The run with the sha256 of each teacher, and the teachers by the names of their objectives.

    UserError: a teacher is not here, is another than the one that run.json names, or cannot teach this student.
    """
    teachers = {item.name: _load(run, item, tokenizer) for item in run.distil}
    known = {item.name: sha256_of(teachers[item.name].core) for item in run.distil}
    for item in run.distil:
        told = f"{item.teacher} is not the teacher that this run began with (sha256 {item.sha256[:12]}...)"
        require(item.sha256 in ("", known[item.name]), f"{told}; put that one back, or begin anew with --force")
    return replace(run, distil=tuple(replace(item, sha256=known[item.name]) for item in run.distil)), teachers


def keep_known(run: Run, before: Run) -> Run:
    """`run`, as a person writes it, with the teachers' sha256 that it had before."""
    known = {(item.name, item.teacher): item.sha256 for item in before.distil}
    told = (replace(item, sha256=item.sha256 or known.get((item.name, item.teacher), "")) for item in run.distil)
    return replace(run, distil=tuple(told))


def sha256_of(module: nn.Module) -> str:
    """Of all weights and buffers, by name."""
    key = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        key.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        key.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return key.hexdigest()


def _load(run: Run, item: Distil, tokenizer: Tokenizer) -> Teacher:
    folder = Path(item.teacher)
    told = f"Distil.teacher: there is no folder {item.teacher}; mmfm import SOURCE {item.teacher} makes it of a source"
    require(folder.is_dir(), told)
    return _language_model(item, tokenizer) if item.logits else _encoder(run, item)


def _language_model(item: Distil, tokenizer: Tokenizer) -> Teacher:
    told = f"Distil.logits: {item.teacher} holds an encoder alone, without a table of what it would write or name"
    writes = not is_bundle(item.teacher) or is_trunk(item.teacher) or read_bundle(Path(item.teacher)).whole
    require(writes, f"{told}; learn its features or similarities, or give a language model")
    model = open_whole(item.teacher)
    told = f"Distil.logits: {item.teacher} has another tokenizer than model.tokenizer"
    same = model.tokenizer.to_json() == tokenizer.to_json()
    require(same, f"{told}; set that to the tokenizer of the teacher's folder (mmfm_tokenizer.json of a bundle)")
    return Teacher(model.core, marked=not is_trunk(item.teacher))


def _encoder(run: Run, item: Distil) -> Teacher:
    name, student = item.modality, run.model
    told = f"Distil of {name}: a teacher's encoder reads {', '.join(MODALITIES)}"
    require(name in MODALITIES, f"{told}; of a modality of one's own write an Objective")
    found = load_encoder(name, item.teacher)
    size = _size(student, found.run.model) if name == "image" else None
    if name == "audio":
        mine, theirs = (part.audio.sound.rate_hz for part in (student, found.run.model) if part.audio is not None)
        told = f"Distil of audio: {item.teacher} hears {theirs} Hz and model.audio {mine} Hz"
        require(mine == theirs, f"{told}; give the student that rate")
    kept = Kept(Path(item.feature_cache_dir), "teacher") if item.feature_cache_dir else None
    words = found.tokenizer.limited(found.run) if name == "text" else None
    teacher = Teacher(found.core, items_of=None if words is None else reading(words), size_px=size, kept=kept)
    told = f"Distil.features: the vectors of {item.teacher} are {teacher.width(name)} wide, Model.embed_dim is"
    fits = not item.features or teacher.width(name) == student.embed_dim
    require(fits, f"{told} {student.embed_dim}; set embed_dim={teacher.width(name)}, or learn similarities alone")
    return teacher


def _size(student: Model, teacher: Model) -> tuple[int, int] | None:
    """Of the teacher's pictures, where the student's are of another."""
    assert student.image is not None and teacher.image is not None
    mine, theirs = student.image.pixels, teacher.image.pixels
    told = f"Distil of image: the teacher sees {theirs.channels} channels and model.image {mine.channels}"
    require(mine.channels == theirs.channels, f"{told}; give the student as many")
    size = theirs.height_px, theirs.width_px
    return None if size == (mine.height_px, mine.width_px) else size


def reading(tokenizer: Tokenizer) -> Callable[[Sequence[str]], Items]:
    """Texts, as a teacher with this tokenizer reads them."""
    return lambda texts: collate([Example(key="", text=text) for text in texts], tokenizer).items["text"]
