"""`mmfm data encode`: shards again, with the codes of a run's codecs beside their pictures and sounds.

Each tar of the input is one of the output, under the same name; one that is written is kept when the command is given
again, so a stopped one goes on. What cannot be decoded is copied without codes, and listed.
"""

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmfm.config import AudioCodec, AudioPreprocess, ImageCodec, ImagePreprocess, KnownCodec, UserError, require
from mmfm.data import index
from mmfm.data.codes import FORMAT, MANIFEST, codecs_said, packed
from mmfm.data.decode import Decode, decode_part, padded
from mmfm.data.documents import counted_steps
from mmfm.data.index import CODES, EXTENSIONS, MODALITY, numbered
from mmfm.data.progress import ticker
from mmfm.data.sample import Sample
from mmfm.data.shard_specs import expand
from mmfm.data.shards import Shards
from mmfm.data.splits import is_remote
from mmfm.data.writer import Item, as_json, write_shard
from mmfm.datasets.build_rows import key_of
from mmfm.datasets.shard_folder import LEFT_OUT, ShardFolder, record_path
from mmfm.models.codecs.codec import Codec
from mmfm.models.codecs.fingerprint import fingerprint
from mmfm.preprocessing import BadSample
from mmfm.runtime.files import replace_file

BESIDE = ("classnames.txt", "templates.txt")  # what evaluation looks for beside shards


@dataclass(frozen=True, kw_only=True)
class Coder:
    """A codec, what it expects, and by what it is known."""

    codec: Codec
    contract: ImagePreprocess | AudioPreprocess
    cfg: ImageCodec | AudioCodec | KnownCodec

    @property
    def print(self) -> str:
        return fingerprint(cast(nn.Module, self.codec), self.cfg)


def coders_of(
    codecs: Mapping[str, nn.Module], configs: Mapping[str, ImageCodec | AudioCodec | KnownCodec]
) -> dict[str, Coder]:
    """Of a model's codecs and their configurations, by modality."""
    made = {}
    for modality, cfg in configs.items():
        contract = cfg.sound if isinstance(cfg, AudioCodec) else cfg.pixels
        contract = cfg.sound if contract is None and isinstance(cfg, KnownCodec) else contract
        assert contract is not None, "resolve the run's codecs before they are used"
        made[modality] = Coder(codec=cast(Codec, codecs[modality]), contract=contract, cfg=cfg)
    return made


def encode(
    coders: Mapping[str, Coder],
    shards: str,
    out: Path,
    *,
    decode: Decode,
    batch: int = 16,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> None:
    """Write the tars that `shards` names into the folder `out`, with codes. The batch is part of what makes the bytes.

    Raises UserError where `out` holds anything else, or where nothing at all can be encoded.
    """
    require(bool(coders), "this run has no codec; give one whose Model has image_codec or audio_codec")
    require(batch > 0, f"batch_size={batch} must be greater than 0")
    require(not is_remote(shards), f"{shards} is a URL; copy it to a folder, encode that, and upload what is written")
    paths = [path for path in expand(shards) if len(Shards([path]))]  # of an empty tar there is nothing to write
    require(bool(paths), f"the tars of {shards} hold no sample; write or fetch them again, or name others")
    _check_names(paths, out)
    folder = ShardFolder(out, MANIFEST, _facts(paths, coders, decode, batch), "encode")
    if folder.complete():
        return
    with folder.writing():
        total = sum(len(Shards([path])) for path in paths)
        with ticker(out.name, total, progress) as tick:
            for path in paths:
                target = out / path.name
                if not _written(target):
                    _write(Shards([path]), target, coders, decode, batch, device)
                tick(path.name, len(index.load(target, target.stat().st_size)))
        _finish(folder, paths, coders)


def decoded(
    sample: Sample, modality: str, contract: ImagePreprocess | AudioPreprocess, decode: Decode
) -> Tensor | None:
    """The sample's picture or sound as a codec wants it, whole and not augmented; None where it has none."""
    data = next((data for name, data in sample.parts.items() if MODALITY.get(name) == modality), None)
    if data is None:
        return None
    try:
        return decode_part(data, contract, replace(decode, crop_seconds=0.0))
    except BadSample as why:
        raise BadSample(why.code, f"{sample.where}: {why}") from None


# What is written


def _write(
    shards: Shards,
    target: Path,
    coders: Mapping[str, Coder],
    decode: Decode,
    batch: int,
    device: str | torch.device,
) -> None:
    """One tar, and the record of what of it has no codes."""
    left_out: list[dict[str, str]] = []

    def items() -> Iterator[Item]:
        for start in range(0, len(shards), batch):
            samples = [shards.read(number, EXTENSIONS) for number in range(start, min(start + batch, len(shards)))]
            codes = {name: _codes(samples, name, coder, decode, device, left_out) for name, coder in coders.items()}
            for place, sample in enumerate(samples):
                made = {CODES[name] for name in coders}
                parts = {name: data for name, data in sample.parts.items() if numbered(name)[1] not in made}
                for name, found in codes.items():
                    mine = {number: data for (of, number), data in found.items() if of == place}
                    parts |= {f"{n}.{CODES[name]}" if n >= 0 else CODES[name]: data for n, data in mine.items()}
                yield Item(key_of(sample.key), parts)

    write_shard(target, items())
    replace_file(record_path(target), as_json(left_out))


def _codes(
    samples: Sequence[Sample],
    modality: str,
    coder: Coder,
    decode: Decode,
    device: str | torch.device,
    left_out: list[dict[str, str]],
) -> dict[tuple[int, int], bytes]:
    """By place and by number in a document, the codes of what has this modality and can be decoded."""
    values: dict[tuple[int, int], Tensor] = {}
    for place, number, step in ((at, *one) for at, sample in enumerate(samples) for one in counted_steps(sample)):
        try:
            found = decoded(step, modality, coder.contract, decode)
        except BadSample as why:
            left_out.append({"key": step.key, "code": why.code, "why": str(why)})
        else:
            values |= {} if found is None else {(place, number): found}
    if not values:
        return {}
    with torch.no_grad():
        ids, keep = coder.codec.encode(*padded(list(values.values()), device))
    return {place: packed(row[real]) for place, row, real in zip(values, ids.cpu(), keep.cpu(), strict=True)}


# The folder


def _check_names(paths: Sequence[Path], out: Path) -> None:
    twice = [name for name, count in Counter(path.name for path in paths).items() if count > 1]
    require(not twice, f"two of the shards are called {(twice or [''])[0]}; encode them one folder at a time")
    inside = any(path.resolve().parent == out.resolve() for path in paths)
    require(not inside, f"{out} holds the shards that are read; choose another folder")


def _facts(paths: Sequence[Path], coders: Mapping[str, Coder], decode: Decode, batch: int) -> dict[str, Any]:
    """What the manifest says of the work, by which a stopped one is known again. Codes that were there stay whose."""
    before = {tuple(sorted(codecs_said(str(path.parent)).items())) for path in paths}
    require(len(before) == 1, "the folders of these shards have codes of different codecs; encode them one at a time")
    kept = {name: {"fingerprint": found} for name, found in before.pop() if name not in coders}
    mine = {
        name: {
            "fingerprint": coder.print,
            "sizes": list(coder.codec.form.sizes),
            "length": coder.codec.form.length,
        }
        for name, coder in coders.items()
    }
    how = {"exact": decode.exact, "max_seconds": decode.max_seconds, "batch": batch}
    shards = {path.name: path.stat().st_size for path in paths}
    return {"format": FORMAT, "codecs": kept | mine, "decode": how, "shards": shards}


def _written(target: Path) -> bool:
    """The record is written last, after the tar and its index."""
    with contextlib.suppress(OSError, UserError):
        return record_path(target).is_file() and bool(index.load(target, target.stat().st_size))
    return False


def _finish(folder: ShardFolder, paths: Sequence[Path], coders: Mapping[str, Coder]) -> None:
    """The lists; only then is it complete."""
    out = folder.out
    left_out = [line for path in paths for line in json.loads(record_path(out / path.name).read_text("utf-8"))]
    folder.write_left_out(left_out)
    lies = [index.load(out / path.name, (out / path.name).stat().st_size) for path in paths]
    counts = {
        name: sum(_held(found, each) for found in lies for each in found.size if numbered(each)[1] == CODES[name])
        for name in coders
    }
    first = f": {left_out[0]['why']}" if left_out else ", as no sample has what its codecs encode"
    require(any(counts.values()), f"nothing could be encoded in {', '.join(path.name for path in paths)}{first}")
    for name in BESIDE:
        if (paths[0].parent / name).is_file():
            shutil.copyfile(paths[0].parent / name, out / name)
    folder.finish(samples=counts)
    _tell(out, counts, left_out, sum((found.ignored for found in map(_index_of, paths)), Counter[str]()))


def _held(found: index.Index, extension: str) -> int:
    return sum(size >= 0 for size in found.size.get(extension, ()))


def _index_of(path: Path) -> index.Index:
    """That on disk, else by a scan."""
    return index.load(path, path.stat().st_size) if index.found_path(path) else index.scan(path)


def _tell(out: Path, counts: Mapping[str, int], left_out: Collection[Mapping[str, str]], ignored: Counter[str]) -> None:
    print(f"{out} is complete: codes of {' and '.join(f'{count:,} of {name}' for name, count in counts.items())}")
    if left_out:
        codes = ", ".join(f"{code} {n}" for code, n in sorted(Counter(line["code"] for line in left_out).items()))
        print(f"{len(left_out):,} could not be decoded and have no codes ({codes}; see {out / LEFT_OUT})")
    if ignored:
        kinds = ", ".join(f".{kind} ({count})" for kind, count in sorted(ignored.items()))
        print(f"not copied, as it is never read: {kinds}")
