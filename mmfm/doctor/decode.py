"""A sample of each set is decoded as training and scores would: what fails, by code; rates and channels of its sounds.

With what the sweep knows of all samples this gives the share that would be lost, and whether a run survives it.
"""

import io
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import soundfile

from mmfm.config import Conformer, Run
from mmfm.data import order
from mmfm.data.decode import OF_ITEMS, decode_of
from mmfm.data.example_cache import Cache
from mmfm.data.index import MODALITY
from mmfm.data.sample import Sample
from mmfm.data.stream_plan import Plan
from mmfm.doctor.findings import Finding, Section, Table, distribution, finding, plural, table
from mmfm.doctor.scan import ScanStats
from mmfm.doctor.shard_integrity import TRAIN, Proven, Set, but_for
from mmfm.evals.reading import Reader
from mmfm.evals.split import spread
from mmfm.preprocessing import CODES, BadSample
from mmfm.preprocessing.tokenizer import Tokenizer, load_tokenizer

SOUNDS = tuple(name for name, kind in MODALITY.items() if kind == "audio")
SWEPT = ("missing_", "text_", "json_")  # codes, or their beginnings, that the sweep knows of every sample


@dataclass
class Decoded:
    """What came of the samples that were decoded."""

    read: int = 0
    seconds: float = 0.0  # that it took
    bad: Counter[str] = field(default_factory=Counter)
    cases: dict[str, list[str]] = field(default_factory=dict)
    rates_hz: list[int] = field(default_factory=list)
    channels: list[int] = field(default_factory=list)


def decode(one: Set, run: Run, samples: int, tokenizer: Tokenizer | None = None) -> Decoded:
    """At most `samples` of the set, evenly spread; 0: all. Read as training reads them, or else as a score."""
    found, start, shards = Decoded(), time.perf_counter(), Proven(one.tars)
    if not len(shards):
        return found
    read = _reader(one, run, shards, tokenizer or load_tokenizer("bytes"))
    for at in spread(len(shards), samples or None):
        found.read += 1
        _header(found, shards.read(at, SOUNDS))
        try:
            read(at)
        except BadSample as why:
            found.bad[why.code] += 1
            found.cases.setdefault(why.code, []).append(str(why))
    found.seconds = time.perf_counter() - start
    return found


def _reader(one: Set, run: Run, shards: Proven, tokenizer: Tokenizer) -> Callable[[int], object]:
    """What reads a sample by its number, and raises BadSample where training or a score cannot use it."""
    if one.source is None:
        how = Reader(model=run.model, decode=decode_of(run.data), sources=run.data.train, texts=run.eval.texts)
        return lambda at: how.read(shards[at])
    own = replace(run, data=replace(run.data, train=(one.source,), batch_size=one.source.weight))
    turns = order.Order(run.seed, [shards.counts()], [1], block=1)
    plan = Plan(run=own, tokenizer=tokenizer, sources=(shards,), order=turns, rank=0, world=1, cache=Cache(0))
    middle = np.full(OF_ITEMS + 2, 0.5, np.float32)
    return lambda at: plan.chosen(0, at, middle)


def _header(found: Decoded, sample: Sample) -> None:
    """Rate and channels of sounds, as libsndfile reads them; what it cannot read is counted when decoded."""
    for data in sample.parts.values():
        try:
            seen = soundfile.info(io.BytesIO(data))
        except soundfile.LibsndfileError:
            continue
        found.rates_hz.append(seen.samplerate)
        found.channels.append(seen.channels)


def decoding(sets: Sequence[Set], decoded: Sequence[Decoded], swept: Sequence[ScanStats], run: Run) -> Section:
    """What fails, and what all of that does to the run."""
    findings = [item for one in zip(sets, decoded, swept, strict=True) for item in _failures(*one)]
    total = sum(found.read for found in decoded)
    if total and not any(found.bad for found in decoded):
        told = f"all of the {plural(total, 'sample')} that were tried decode{but_for(sets)}"
        findings.append(finding("OK", "decodes", told, (), total))
    findings += [item for one in zip(sets, decoded, swept, strict=True) for item in _loss(*one, run)]
    findings += _rates(sets, decoded, run)
    named = [(one.label, found) for one, found in zip(sets, decoded, strict=True)]
    drawn = (
        distribution("Sampling rate", "Hz", [(name, np.array(d.rates_hz, np.int64)) for name, d in named]),
        distribution("Channels", "", [(name, np.array(d.channels, np.int64)) for name, d in named]),
    )
    return Section(
        name="Decoding",
        findings=tuple(findings),
        tables=(_table(sets, decoded, swept),),
        distributions=tuple(item for item in drawn if item is not None),
    )


def _failures(one: Set, found: Decoded, known: ScanStats) -> Iterator[Finding]:
    """But for those that the sweep has counted in all samples, and told."""
    for code, count in found.bad.most_common():
        if known.doomed[code]:
            continue
        told = f"{one.label}: {count:,} of {found.read:,} decoded: {code}, {CODES[code]}"
        yield finding("WARNING", code, told, found.cases[code], count)


class Lost(NamedTuple):
    """Fraction of a set that cannot be used: the best estimate, and what it is at least, with 95 % confidence."""

    about: float
    least: float


def lost(samples: int, found: Decoded, known: ScanStats) -> Lost:
    """What is known of all `samples`, and what else failed among those that were decoded, of which the rest is like."""
    rest = sum(count for code, count in found.bad.items() if not code.startswith(SWEPT) and not known.doomed[code])
    sure, share = known.lost / max(samples, 1), rest / max(found.read, 1)
    least = share if found.read == samples else at_least(rest, found.read)
    return Lost(min(1.0, sure + share), min(1.0, sure + least))


def at_least(cases: int, of: int, z: float = 1.645) -> float:
    """The lower end of Wilson's interval (1927) of a share, one-sided 95 %."""
    if not cases:
        return 0.0
    share = cases / of
    spread = z * math.sqrt(share * (1 - share) / of + z**2 / (4 * of**2))
    return (share + z**2 / (2 * of) - spread) / (1 + z**2 / of)


def _loss(one: Set, found: Decoded, known: ScanStats, run: Run) -> Iterator[Finding]:
    share, most = lost(len(one), found, known), run.data.max_bad_fraction
    if not share.about or one.split != TRAIN:
        return
    told = f"{one.label}: about {share.about:.2%} of {plural(len(one), 'sample')} would be replaced by others"
    count = round(share.about * len(one))
    if share.least > most:
        told += f", over data.max_bad_fraction={most:.2%}: training would stop; mend the shards, or allow more"
        yield finding("ERROR", "too_many_lost", told, (), count)
    elif share.about > most:
        told += (
            f", perhaps over data.max_bad_fraction={most:.2%}, where training stops; decode more of them: --samples 0"
        )
        yield finding("WARNING", "perhaps_too_many_lost", told, (), count)
    else:
        yield finding("NOTE", "some_lost", f"{told}; data.max_bad_fraction={most:.2%} allows it", (), count)


def _rates(sets: Sequence[Set], decoded: Sequence[Decoded], run: Run) -> Iterator[Finding]:
    """Sounds that lack the highest frequencies that the model looks at."""
    audio = run.model.audio
    if audio is None:
        return
    wanted = 2 * audio.mel.high_hz if isinstance(audio, Conformer) else audio.sound.rate_hz
    for one, found in zip(sets, decoded, strict=True):
        if low := sum(rate < wanted for rate in found.rates_hz):
            told = f"{one.label}: {low:,} of {plural(len(found.rates_hz), 'sound')} have a rate below {wanted:g} Hz, "
            told += "and so nothing in the highest of the model's bins; lower mel.high_hz if most are such"
            yield finding("NOTE", "low_rate", told, (), low)


def _table(sets: Sequence[Set], decoded: Sequence[Decoded], swept: Sequence[ScanStats]) -> Table:
    rows = [
        (
            one.label,
            found.read,
            sum(found.bad.values()),
            known.lost,
            f"{lost(len(one), found, known).about:.2%}",
            round(found.read / max(found.seconds, 1e-9)),
        )
        for one, found, known in zip(sets, decoded, swept, strict=True)
    ]
    head = ("set", "decoded", "of these bad", "bad by headers and texts, of all", "lost, about", "decoded per s")
    return table("", head, rows)
