"""One pass over all samples without decoding any: which modalities each has, how long, how large, and what it says.

Lengths and sizes are those that the files state in their headers. A text is what training or a score would read; where
a source names several places for it, the places take turns as their weights say.
"""

from array import array
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mmfm.config import MESSAGES, MODALITIES, Run
from mmfm.data.conversations import messages_of
from mmfm.data.decode import WORDS, Decode, text_hash
from mmfm.data.documents import texts_of
from mmfm.data.index import measured, modality_of
from mmfm.data.sample import Sample, text_of
from mmfm.doctor.findings import Distribution, Finding, Section, distribution, finding, plural, table
from mmfm.doctor.shard_integrity import TRAIN, Set, but_for, index_of, read
from mmfm.evals.reading import Reader
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.chat import Part, require_mentioned
from mmfm.preprocessing.tokenizer import Tokenizer

GOLDEN = 0.618033988749895  # its multiples, modulo 1, fall evenly
MOST_TEXTS = 200_000  # different ones of which tokens are counted
NOTED = 50  # cases of one kind whose names are kept


@dataclass
class ScanStats:
    """What the samples of one set have. `doomed`: cases that training replaces, or a score leaves out, by code."""

    have: Counter[str] = field(default_factory=Counter)
    doomed: Counter[str] = field(default_factory=Counter)
    cases: dict[str, list[str]] = field(default_factory=dict)
    lost: int = 0  # samples with any of these
    sounds: int = 0
    seconds: array = field(default_factory=lambda: array("d"))
    widths: array = field(default_factory=lambda: array("q"))
    heights: array = field(default_factory=lambda: array("q"))
    characters: array = field(default_factory=lambda: array("q"))
    truncated: int = 0  # texts of which only the beginning is read
    texts: Counter[str] = field(default_factory=Counter)
    hashes: dict[int, str] = field(default_factory=dict)  # of each different text, and the first sample that has it

    def doom(self, code: str, case: str) -> None:
        self.doomed[code] += 1
        if len(noted := self.cases.setdefault(code, [])) < NOTED:
            noted.append(case)


def scan(one: Set, run: Run, tokenizer: Tokenizer | None = None) -> ScanStats:
    """All samples of the set. tokenizer: the run's, by which a text may be too long."""
    stats = ScanStats()
    for number, tar in enumerate(one.tars):
        with tar.path.open("rb", buffering=0) as file:
            for place, sample in read(tar, WORDS):
                before = sum(stats.doomed.values())
                draw = (place + number) * GOLDEN % 1
                _scan_sample(stats, one, run, sample, index_of(tar).parts(place), file.fileno(), draw, tokenizer)
                stats.lost += sum(stats.doomed.values()) > before
    return stats


def _scan_sample(
    stats: ScanStats,
    one: Set,
    run: Run,
    sample: Sample,
    parts: Mapping[str, tuple[int, int]],
    file: int,
    draw: float,
    tokenizer: Tokenizer | None,
) -> None:
    media = [kind for name in parts if (kind := modality_of(name)) in ("image", "audio")]
    kinds = set(media)
    try:
        if one.source is not None and MESSAGES in one.source.modalities:
            _check_parts(sample, media)
        for text in _texts(one, run, sample, kinds.copy(), draw):
            kinds.add("text")
            _note_text(stats, text, sample.where)
            _note_length(stats, text, sample.where, tokenizer)
    except BadSample as why:
        kinds.add("text")
        if one.source is None or {"text", MESSAGES} & set(one.source.modalities):
            stats.doom(why.code, str(why))
    stats.have.update(kinds)
    for name in one.source.modalities if one.source is not None else ():
        if name not in kinds and name != MESSAGES:
            stats.doom(f"missing_{name}", sample.where)
    measures = list(measured(file, parts))
    clips = [seen.seconds for seen in measures if seen.seconds >= 0]
    stats.sounds += media.count("audio")
    stats.seconds.extend(clips)
    stats.widths.extend(seen.width for seen in measures if seen.width > 0)
    stats.heights.extend(seen.height for seen in measures if seen.width > 0)
    if max(clips, default=0) > run.data.max_seconds and not run.data.crop_seconds and _hears(one, run):
        stats.doom("audio_too_long", f"{sample.where} ({max(clips):.2f} s)")


def _texts(one: Set, run: Run, sample: Sample, media: Collection[str], draw: float) -> list[str]:
    """What training, or else a score, would read of a sample: of a document all texts, of a question with its answer
    both. Raises BadSample."""
    if one.source is not None and MESSAGES in one.source.modalities:
        return [text for message in messages_of(sample) for text in message.texts]
    if one.source is None:
        reader = Reader(model=run.model, decode=Decode(), sources=run.data.train, texts=run.eval.texts)
        result = reader.words(sample, media)
        fields, answer = () if result.way is None else result.way.texts, result.answer
        text = result.text
    else:
        fields, targets = one.source.texts, one.source.targets
        text = text_of(sample, fields, draw)
        answer = text_of(sample, targets, draw) if targets and text is not None else None
        if targets and text is not None and answer is None:
            names = " or ".join(place.field for place in targets)
            raise BadSample("missing_text", f"{sample.where} has no answer, which its source asks for ({names})")
    texts = [text] if fields else texts_of(sample)
    return [each for each in (*texts, answer) if each is not None]


def _check_parts(sample: Sample, media: Sequence[str]) -> None:
    """BadSample where the parts of a conversation are not those that its messages mention."""
    mentioned = [piece.kind for message in messages_of(sample) for piece in message.content if isinstance(piece, Part)]
    require_mentioned(Counter(mentioned), Counter(media), sample.where)


def _hears(one: Set, run: Run) -> bool:
    return run.model.audio is not None and (one.source is None or "audio" in one.source.modalities)


def _note_text(found: ScanStats, text: str, case: str) -> None:
    found.characters.append(len(text))
    found.hashes.setdefault(text_hash(text), case)
    if text in found.texts or len(found.texts) < MOST_TEXTS:
        found.texts[text] += 1


def _note_length(found: ScanStats, text: str, case: str, tokenizer: Tokenizer | None) -> None:
    """BadSample where training would leave out a text for its length."""
    told = tokenizer.excess(text) if tokenizer is not None else ""
    if not told or tokenizer is None:
        return
    if tokenizer.limits.skip:
        raise BadSample("text_too_long", f"{case}: {told}")
    found.truncated += 1
    if len(noted := found.cases.setdefault("text_truncated", [])) < NOTED:
        noted.append(f"{case}: {told}")


def presence(sets: Sequence[Set], swept: Sequence[ScanStats], run: Run) -> Section:
    """What each set has, against what its source provides."""
    findings = [item for one, found in zip(sets, swept, strict=True) for item in _lacks(one, found, run)]
    if any(map(len, sets)) and not any(item.level in ("WARNING", "ERROR") for item in findings):
        findings.insert(0, finding("OK", "present", f"every sample has what its source provides{but_for(sets)}"))
    rows = [
        (one.label, len(one), *(found.have[name] for name in MODALITIES), _provides(one))
        for one, found in zip(sets, swept, strict=True)
    ]
    head = ("set", "samples", *(f"with {name}" for name in MODALITIES), "modalities")
    return Section(name="Modalities", findings=tuple(findings), tables=(table("", head, rows),))


def _provides(one: Set) -> str:
    return ", ".join(one.source.modalities) if one.source is not None else "–"


def _lacks(one: Set, found: ScanStats, run: Run) -> list[Finding]:
    findings, n = list[Finding](), len(one)
    for code, count in sorted(found.doomed.items()):
        if code.startswith(("missing_", "text_", "json_")):
            over = one.split == TRAIN and count > run.data.max_bad_fraction * n
            what = f"no {code[8:]}, which the source provides" if code.startswith("missing_") else code
            then = _then(one, over, run)
            told = f"{one.label}: {count:,} of {plural(n, 'sample')}: {what}; {then}"
            findings.append(finding("ERROR" if over else "WARNING", code, told, found.cases[code], count))
    for name in MODALITIES:
        if one.source is not None and name not in one.source.modalities and found.have[name]:
            told = f"{one.label}: {found.have[name]:,} of {plural(n, 'sample')} have {name}, which is not read, as the "
            told += f"source does not provide it; add {name!r} to `provides` to learn from it"
            findings.append(finding("NOTE", f"unread_{name}", told, (), found.have[name]))
    return findings


def _then(one: Set, over: bool, run: Run) -> str:
    if one.split != TRAIN:
        return "no score counts them"
    if over:
        most = run.data.max_bad_fraction
        return f"more than data.max_bad_fraction={most:g} allows: mend the shards, or declare what they have"
    return "each is replaced by another sample, and counted"


def lengths(sets: Sequence[Set], swept: Sequence[ScanStats], run: Run, tokenizer: Tokenizer | None) -> Section:
    """Distributions by the files' headers, and of texts."""
    named = [(one.label, found) for one, found in zip(sets, swept, strict=True)]
    drawn = [
        distribution("Length of sounds", "s", [(name, np.array(s.seconds, np.float64)) for name, s in named]),
        distribution("Width of pictures", "px", [(name, np.array(s.widths, np.int64)) for name, s in named]),
        distribution("Height of pictures", "px", [(name, np.array(s.heights, np.int64)) for name, s in named]),
        distribution(
            "Width by height",
            "",
            [(name, np.array(s.widths, np.int64) / np.array(s.heights, np.int64)) for name, s in named],
        ),
        distribution("Length of texts", "characters", [(name, np.array(s.characters, np.int64)) for name, s in named]),
    ]
    findings = [item for one, found in zip(sets, swept, strict=True) for item in _too_long(one, found, run)]
    findings += [item for one, found in zip(sets, swept, strict=True) for item in _truncated(one, found)]
    findings += [item for one, found in zip(sets, swept, strict=True) for item in _unknown(one, found)]
    if tokenizer is not None:
        drawn.append(_tokens(named, tokenizer))
        findings += _capped(named)
    if any(s.seconds for s in swept) and not any(item.level in ("WARNING", "ERROR") for item in findings):
        told = f"no sound is longer than max_seconds={run.data.max_seconds:g}{but_for(sets)}"
        findings.insert(0, finding("OK", "lengths", told))
    return Section(name="Lengths", findings=tuple(findings), distributions=tuple(d for d in drawn if d is not None))


def _too_long(one: Set, found: ScanStats, run: Run) -> list[Finding]:
    count = found.doomed["audio_too_long"]
    if not count:
        return []
    over = one.split == TRAIN and count > run.data.max_bad_fraction * len(one)
    remedy = "raise data.max_seconds, set data.crop_seconds, or cut them"
    told = f"{one.label}: {plural(count, 'sound')} longer than max_seconds={run.data.max_seconds:g}, "
    told += f"which {'stops training' if over else 'are not used'}; {remedy}"
    return [finding("ERROR" if over else "WARNING", "audio_too_long", told, found.cases["audio_too_long"], count)]


def _truncated(one: Set, found: ScanStats) -> list[Finding]:
    if not found.truncated:
        return []
    told = (
        f"{one.label}: of {found.truncated:,} of {plural(len(found.characters), 'text')} only the beginning is read, "
    )
    told += "as they are longer than data.max_text_tokens, the text tower or the trunk takes; cut them, raise it, or "
    told += "set data.long_text='skip'"
    return [finding("WARNING", "text_truncated", told, found.cases["text_truncated"], found.truncated)]


def _unknown(one: Set, found: ScanStats) -> list[Finding]:
    unknown = found.sounds - len(found.seconds)
    if unknown <= 0:
        return []
    told = f"{one.label}: {plural(unknown, 'sound')} whose header does not say how long; decoding will tell"
    return [finding("NOTE", "length_unknown", told, (), unknown)]


def _capped(named: Sequence[tuple[str, ScanStats]]) -> list[Finding]:
    capped = [name for name, found in named if sum(found.texts.values()) < len(found.characters)]
    told = f"tokens are those of the first {MOST_TEXTS:,} different texts of each set"
    return [finding("NOTE", "tokens_capped", told, capped)] if capped else []


def _tokens(named: Sequence[tuple[str, ScanStats]], tokenizer: Tokenizer) -> Distribution | None:
    """Of every text, by the run's tokenizer; equal texts are encoded once."""
    sets = []
    for name, found in named:
        each = np.array([len(tokenizer.encode(text)) for text in found.texts], dtype=np.int64)
        sets.append((name, np.repeat(each, np.array(list(found.texts.values()), dtype=np.int64))))
    return distribution("Length of texts", "tokens", sets)
