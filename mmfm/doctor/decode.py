"""A sample of each set is decoded as training and scores would: what fails, by code; rates and channels of its sounds.

With what the sweep knows of all samples this gives the share that would be lost, and whether a run survives it.
"""

import io
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import soundfile

from mmfm.config import MODALITIES, Conformer, Run
from mmfm.data.example import decode_of, read_example
from mmfm.data.index import EXTENSIONS, modality_of
from mmfm.data.sample import Sample, text_of
from mmfm.doctor.findings import Finding, Section, Table, distribution, finding, plural, table
from mmfm.doctor.sweep import Swept
from mmfm.doctor.tars import TRAIN, Set, read
from mmfm.evals.split import spread
from mmfm.inputs import CODES, BadSample

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


def decode(one: Set, run: Run, samples: int) -> Decoded:
    """At most `samples` of the set, evenly spread; 0: all."""
    found, start = Decoded(), time.perf_counter()
    how = decode_of(run.data)
    wanted = MODALITIES if one.source is None else one.source.provides
    plain = tuple(name for name in wanted if name != "text" or one.source is None or not one.source.texts)
    for sample in _spread(one, samples or None):
        found.read += 1
        _header(found, sample)
        try:
            read_example(sample, run.model, how, plain)
            if plain != tuple(wanted) and one.source is not None:
                text_of(sample, one.source.texts)
        except BadSample as why:
            found.bad[why.code] += 1
            found.cases.setdefault(why.code, []).append(str(why))
    found.seconds = time.perf_counter() - start
    return found


def _spread(one: Set, samples: int | None) -> Iterator[Sample]:
    chosen, first = spread(len(one), samples), 0
    for tar in one.tars:
        places = [at - first for at in chosen if first <= at < first + tar.samples]
        yield from (sample for _, sample in read(tar, EXTENSIONS, places))
        first += tar.samples


def _header(found: Decoded, sample: Sample) -> None:
    """Rate and channels of a sound, as libsndfile reads them; what it cannot read is counted when decoded."""
    for name, data in sample.parts.items():
        if modality_of(name) == "audio":
            try:
                seen = soundfile.info(io.BytesIO(data))
            except soundfile.LibsndfileError:
                continue
            found.rates_hz.append(seen.samplerate)
            found.channels.append(seen.channels)


def decoding(sets: Sequence[Set], decoded: Sequence[Decoded], swept: Sequence[Swept], run: Run) -> Section:
    """What fails, and what all of that does to the run."""
    findings = [item for one in zip(sets, decoded, swept, strict=True) for item in _failures(*one)]
    total = sum(found.read for found in decoded)
    if total and not any(found.bad for found in decoded):
        told = f"all of the {plural(total, 'sample')} that were tried decode"
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


def _failures(one: Set, found: Decoded, known: Swept) -> Iterator[Finding]:
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


def lost(samples: int, found: Decoded, known: Swept) -> Lost:
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


def _loss(one: Set, found: Decoded, known: Swept, run: Run) -> Iterator[Finding]:
    share, most = lost(len(one), found, known), run.data.most_bad
    if not share.about or one.split != TRAIN:
        return
    told = f"{one.label}: about {share.about:.2%} of {plural(len(one), 'sample')} would be replaced by others"
    count = round(share.about * len(one))
    if share.least > most:
        told += f", over data.most_bad={most:.2%}: training would stop; mend the shards, or allow more"
        yield finding("ERROR", "too_many_lost", told, (), count)
    elif share.about > most:
        told += f", perhaps over data.most_bad={most:.2%}, where training stops; decode more of them: --samples 0"
        yield finding("WARNING", "perhaps_too_many_lost", told, (), count)
    else:
        yield finding("NOTE", "some_lost", f"{told}; data.most_bad={most:.2%} allows it", (), count)


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


def _table(sets: Sequence[Set], decoded: Sequence[Decoded], swept: Sequence[Swept]) -> Table:
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
