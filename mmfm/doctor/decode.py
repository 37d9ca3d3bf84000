"""A sample of each set is decoded as training and scores would: what fails, by code; rates and channels of its sounds.

With what the sweep knows of all samples this gives the share that would be lost, and whether a run survives it.
"""

import io
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import soundfile

from mmfm.config import MODALITIES, Run
from mmfm.data.index import EXTENSIONS, MODALITY
from mmfm.data.shards import Sample, text_of
from mmfm.data.stream import decode_of, read_example
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
        if MODALITY.get(name) == "audio":
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
    if not any(found.bad for found in decoded):
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


def lost_share(one: Set, found: Decoded, known: Swept) -> float:
    """Estimated fraction of the set that cannot be used: what is known of all, and what else failed when decoded."""
    rest = sum(count for code, count in found.bad.items() if not code.startswith(SWEPT) and not known.doomed[code])
    return min(1.0, known.lost / max(len(one), 1) + rest / max(found.read, 1))


def _loss(one: Set, found: Decoded, known: Swept, run: Run) -> Iterator[Finding]:
    share = lost_share(one, found, known)
    if not share or one.split != TRAIN:
        return
    told = f"{one.label}: about {share:.2%} of {plural(len(one), 'sample')} would be replaced by others"
    if share > run.data.most_bad:
        told += f", over data.most_bad={run.data.most_bad:.2%}: training would stop; mend the shards, or allow more"
        yield finding("ERROR", "too_many_lost", told, (), round(share * len(one)))
    else:
        told += f"; data.most_bad={run.data.most_bad:.2%} allows it"
        yield finding("NOTE", "some_lost", told, (), round(share * len(one)))


def _rates(sets: Sequence[Set], decoded: Sequence[Decoded], run: Run) -> Iterator[Finding]:
    """Sounds that lack the highest frequencies that the model looks at."""
    if run.model.audio is None:
        return
    wanted = 2 * run.model.audio.mel.high_hz
    for one, found in zip(sets, decoded, strict=True):
        if low := sum(rate < wanted for rate in found.rates_hz):
            told = (
                f"{one.label}: {low:,} of {plural(len(found.rates_hz), 'sound')} have a rate below {wanted:g} Hz, and "
            )
            told += "so nothing in the highest of the model's bins; lower mel.high_hz if most are such"
            yield finding("NOTE", "low_rate", told, (), low)


def _table(sets: Sequence[Set], decoded: Sequence[Decoded], swept: Sequence[Swept]) -> Table:
    rows = [
        (
            one.label,
            found.read,
            sum(found.bad.values()),
            known.lost,
            f"{lost_share(one, found, known):.2%}",
            round(found.read / max(found.seconds, 1e-9)),
        )
        for one, found, known in zip(sets, decoded, swept, strict=True)
    ]
    head = ("set", "decoded", "of these bad", "bad by headers and texts, of all", "lost, about", "decoded per s")
    return table("", head, rows)
