"""Every metric that an evaluation can write: what it is called, what it means, and which way it is better.

Tables, charts, reports and comparisons all read METRICS; nothing else knows a metric by its name. Stdlib only.

A metric of what judges read is written JUDGE/NAME, one of several codebooks NAME/BOOK; both have the entry of NAME.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Unit = Literal["share", "rank", "bits", "bits/byte", "bits/code", "bits/px", "bits/s", "dB", "number"]
GROUPS = (
    "Zero-shot classification",
    "Retrieval",
    "Probes",
    "Writing",
    "Filling in",
    "Codecs",
    "Drawing and speaking, as judges read it",
)
CLASSES, RETRIEVAL, PROBES, WRITING, FILLING, CODECS, JUDGED = GROUPS
OTHER = "Other"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What is known of a metric.

    `meaning` is told to people beside the number, `chance` says what the chance level is of. `higher_is_better`: None
    where neither direction is better. `headline`: runs are compared by it, and a terminal shows it. `during_training`:
    it is scored while a run trains. A "share" is a part of one, shown in per cent.
    """

    label: str
    meaning: str
    group: str
    unit: Unit = "share"
    higher_is_better: bool | None = True
    headline: bool = False
    during_training: bool = False
    chance: str = ""

    @property
    def explained(self) -> str:
        """The meaning, and the direction where a reader may not expect it."""
        return f"{self.meaning}; lower is better" if self.higher_is_better is False else self.meaning


ORDER, SILENCE, CONSTANT = "a random order", "silence", "the best constant answer"
METRICS: dict[str, Metric] = {
    "acc@1": Metric(
        label="acc@1",
        meaning="right at the first guess",
        group=CLASSES,
        headline=True,
        during_training=True,
        chance=ORDER,
    ),
    "acc@5": Metric(label="acc@5", meaning="right among five guesses", group=CLASSES, chance=ORDER),
    "mean_per_class": Metric(
        label="mean per class", meaning="right at the first guess, mean of the classes", group=CLASSES, chance=ORDER
    ),
    "mAP": Metric(
        label="mAP", meaning="average precision, mean of the classes", group=CLASSES, headline=True, chance=ORDER
    ),
    "R@1": Metric(
        label="R@1",
        meaning="a match in first place",
        group=RETRIEVAL,
        headline=True,
        during_training=True,
        chance=ORDER,
    ),
    "R@5": Metric(label="R@5", meaning="a match among the first 5", group=RETRIEVAL, chance=ORDER),
    "R@10": Metric(label="R@10", meaning="a match among the first 10", group=RETRIEVAL, chance=ORDER),
    "median_rank": Metric(
        label="median rank",
        meaning="of the first match",
        group=RETRIEVAL,
        unit="rank",
        higher_is_better=False,
        chance=ORDER,
    ),
    "exact": Metric(
        label="exact",
        meaning="written word for word",
        group=WRITING,
        headline=True,
        during_training=True,
        chance=SILENCE,
    ),
    "wer": Metric(
        label="WER",
        meaning="word errors per word",
        group=WRITING,
        higher_is_better=False,
        headline=True,
        chance=SILENCE,
    ),
    "cer": Metric(
        label="CER", meaning="letter errors per letter", group=WRITING, higher_is_better=False, chance=SILENCE
    ),
    "hallucinated": Metric(
        label="hallucinated",
        meaning="something written where the reference has no word",
        group=WRITING,
        higher_is_better=False,
        headline=True,
        chance=SILENCE,
    ),
    "truncated": Metric(
        label="truncated",
        meaning="writing cut at the limit of tokens",
        group=WRITING,
        higher_is_better=False,
        chance=SILENCE,
    ),
    "cider": Metric(
        label="CIDEr",
        meaning="likeness to the references, rare words weighing more",
        group=WRITING,
        unit="number",
        headline=True,
        chance=SILENCE,
    ),
    "cider_plain": Metric(
        label="CIDEr, plain",
        meaning="CIDEr without clipping and without a cost of length",
        group=WRITING,
        unit="number",
        chance=SILENCE,
    ),
    **{
        f"bleu{size}": Metric(
            label=f"BLEU-{size}",
            meaning=f"runs of up to {size} words that a reference has too"
            if size > 1
            else "words that a reference has",
            group=WRITING,
            headline=size == 4,
            chance=SILENCE,
        )
        for size in range(1, 5)
    },
    "rouge_l": Metric(
        label="ROUGE-L", meaning="longest common run of words", group=WRITING, headline=True, chance=SILENCE
    ),
    "bits_per_byte": Metric(
        label="bits per byte",
        meaning="surprise at the true text",
        group=WRITING,
        unit="bits/byte",
        higher_is_better=False,
        headline=True,
        chance="bytes that are equally likely",
    ),
    "nelbo_bits_per_byte": Metric(
        label="bits per byte, bound",
        meaning="at most the surprise at the true text",
        group=FILLING,
        unit="bits/byte",
        higher_is_better=False,
        headline=True,
        chance="bytes that are equally likely",
    ),
    "bits_per_byte_with_length": Metric(
        label="bits per byte with length",
        meaning="the bound, and what the length costs",
        group=FILLING,
        unit="bits/byte",
        higher_is_better=False,
        chance="bytes that are equally likely",
    ),
    "bits_per_code_bound": Metric(
        label="bits per code, bound",
        meaning="at most the surprise at the true codes",
        group=FILLING,
        unit="bits/code",
        higher_is_better=False,
        headline=True,
        chance="codes that are equally likely",
    ),
    "masked_acc@15": Metric(
        label="masked_acc@15",
        meaning="right ids where 15 % are hidden",
        group=FILLING,
        headline=True,
        chance="ids that are equally likely",
    ),
    "psnr": Metric(
        label="PSNR",
        meaning="dB between a picture and what is decoded of its codes",
        group=CODECS,
        unit="dB",
        headline=True,
        during_training=True,
        chance="plain grey",
    ),
    "ssim": Metric(
        label="SSIM",
        meaning="likeness of structure; 1 is the same picture",
        group=CODECS,
        unit="number",
        headline=True,
        chance="plain grey",
    ),
    "spectral_distance": Metric(
        label="spectral distance",
        meaning="between the spectra of a sound and of what is decoded of its codes",
        group=CODECS,
        unit="number",
        higher_is_better=False,
        headline=True,
        during_training=True,
        chance="noise as loud",
    ),
    "stoi": Metric(
        label="STOI",
        meaning="short-time objective intelligibility; 1 is the same speech",
        group=CODECS,
        unit="number",
        headline=True,
        chance="noise as loud",
    ),
    "si_sdr": Metric(
        label="SI-SDR",
        meaning="dB between a sound and what is decoded of its codes, phases included",
        group=CODECS,
        unit="dB",
        chance="noise as loud",
    ),
    "bits_per_pixel": Metric(
        label="bits per pixel",
        meaning="what the codes cost",
        group=CODECS,
        unit="bits/px",
        higher_is_better=False,
        headline=True,
        chance="8 bits for every value of a pixel",
    ),
    "bits_per_second": Metric(
        label="bits per second",
        meaning="what the codes cost",
        group=CODECS,
        unit="bits/s",
        higher_is_better=False,
        headline=True,
        chance="16 bits for every sample",
    ),
    "codebook_usage": Metric(
        label="codes used",
        meaning="of all codes of the book, those that occur",
        group=CODECS,
        headline=True,
        chance="one code alone",
    ),
    "code_entropy_bits": Metric(
        label="code entropy",
        meaning="bits that a code of the book carries",
        group=CODECS,
        unit="bits",
        higher_is_better=None,
        chance="one code alone",
    ),
    "read": Metric(label="read", meaning="a judge reads the right name", group=JUDGED, headline=True, chance=CONSTANT),
    "right": Metric(
        label="right", meaning="a judge reads the right name", group=JUDGED, headline=True, chance=CONSTANT
    ),
    "named": Metric(label="named", meaning="a judge reads some name of a class", group=JUDGED, headline=True),
    "number": Metric(label="number", meaning="a judge reads the name of some number", group=JUDGED, headline=True),
    "read real": Metric(
        label="read real",
        meaning="the same judge, in the split's own",
        group=JUDGED,
        higher_is_better=None,
        chance=CONSTANT,
    ),
    "held_out": Metric(
        label="held out",
        meaning="how well the judge reads scans or voices that it has not learned from",
        group=JUDGED,
        higher_is_better=None,
        chance="one name of a hundred",
    ),
    "read decoded": Metric(
        label="read decoded", meaning="in the split's own, decoded of their codes", group=JUDGED, chance=CONSTANT
    ),
    "nearer": Metric(
        label="nearer",
        meaning="answers whose voice is nearer to the prompt's than to nine of ten others",
        group=JUDGED,
        headline=True,
        chance="any voice",
    ),
    "frechet": Metric(
        label="Frechet distance",
        meaning="between the features of what was made and of the split's own",
        group=JUDGED,
        unit="number",
        higher_is_better=False,
    ),
    "kid": Metric(
        label="kernel distance",
        meaning="between the features of what was made and of the split's own",
        group=JUDGED,
        unit="number",
        higher_is_better=False,
    ),
}
PLAIN = {name.lower().replace("_", " "): name for name in METRICS}


def plain(metric: str) -> str:
    """The name of a metric as words, without regard to case."""
    return metric.lower().replace("_", " ")


def entry_of(metric: str) -> str | None:
    """The name in METRICS of a metric of results: wer, WER, speech/wer, codebook_usage/3; None where none is."""
    return next((PLAIN[name] for name in _names(plain(metric)) if name in PLAIN), None)


def _names(name: str) -> Iterator[str]:
    first, _, last = name.rpartition("/")
    yield name
    yield first if last.isdecimal() else last


def metric_of(metric: str) -> Metric:
    """What is known of a metric; of one that is not registered only its name, and no direction."""
    name = entry_of(metric)
    return (
        Metric(label=metric, meaning="", group=OTHER, unit="number", higher_is_better=None)
        if name is None
        else METRICS[name]
    )


def label(metric: str) -> str:
    """What people call it: WER; speech/WER; codes used/3."""
    name, first, last = entry_of(metric), *metric.rpartition("/")[::2]
    if name is None:
        return metric.replace("_", " ")
    if not first or plain(metric) in PLAIN:
        return METRICS[name].label
    return f"{METRICS[name].label}/{last}" if last.isdecimal() else f"{first.replace('_', ' ')}/{METRICS[name].label}"


def is_headline(metric: str) -> bool:
    """Whether runs are compared by it."""
    return metric_of(metric).headline


def is_share(metric: str) -> bool:
    """Whether it is a part of one, shown in per cent."""
    return metric_of(metric).unit == "share"


def group_of(metric: str, task: str) -> str:
    """The chart that a figure stands in: of classes that labels made ("image:knn") that of probes, and of what a judge
    reads that of judges, whatever the metric."""
    known = metric_of(metric)
    if known.group == CLASSES and ":" in task:
        return PROBES
    return JUDGED if "/" in metric and known.group == WRITING else known.group


def better(metric: str, difference: float) -> int:
    """Which of two is better by first less second: 1 the first, -1 the second, 0 neither."""
    direction = metric_of(metric).higher_is_better
    if direction is None or not difference:
        return 0
    return 1 if (difference > 0) == direction else -1
