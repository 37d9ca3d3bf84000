"""METRICS: what is known of every metric that an evaluation can write. Standard library only.

Tables, charts, reports and comparisons all read it; nothing else knows a metric by its name. A metric that a judge
reads is written JUDGE/NAME, one of several codebooks NAME/BOOK; both have the entry of NAME.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

Unit = Literal["share", "rank", "bits", "bits/byte", "bits/code", "bits/px", "bits/s", "dB", "number"]
GROUPS = (
    "Zero-shot classification",
    "Retrieval",
    "Probes",
    "Writing",
    "Multiple choice",
    "Filling in",
    "Codecs",
    "Drawing and speaking, as judges read it",
)
CLASSES, RETRIEVAL, PROBES, WRITING, CHOOSING, FILLING, CODECS, JUDGED = GROUPS
OTHER = "Other"


@dataclass(frozen=True)
class Metric:
    """What is known of a metric.

    `meaning` stands beside the number, `chance` says what the chance level is of. A "share" is a part of one, shown in
    per cent. `higher_is_better`: None where neither direction is better. `headline`: runs are compared by it, and a
    terminal shows it. `during_training`: it is scored while a run trains. `sentence`: what the opening of a report says
    of it, with places for its value and for the task's source and target.
    """

    label: str
    meaning: str
    group: str
    unit: Unit = "share"
    higher_is_better: bool | None = True
    headline: bool = False
    during_training: bool = False
    chance: str = ""
    sentence: str = ""

    @property
    def explained(self) -> str:
        """The meaning, and the direction where a reader may not expect it."""
        return f"{self.meaning}; lower is better" if self.higher_is_better is False else self.meaning


headline = partial(Metric, headline=True)
lower = partial(Metric, higher_is_better=False)
leading = partial(Metric, headline=True, during_training=True)
lower_headline = partial(Metric, higher_is_better=False, headline=True)
neither = partial(Metric, higher_is_better=None)
ORDER, SILENCE, CONSTANT = "a random order", "silence", "the best constant answer"
BYTES, CODES, ONE_CODE = "bytes that are equally likely", "codes that are equally likely", "one code alone"
GREY, NOISE = "plain grey", "noise as loud"
METRICS: dict[str, Metric] = {
    "acc@1": leading(
        "acc@1", "right at the first guess", CLASSES, chance=ORDER, sentence="{value} of the {sources} named right"
    ),
    "acc@5": Metric("acc@5", "right among five guesses", CLASSES, chance=ORDER),
    "mean_per_class": Metric("mean per class", "right at the first guess, mean of the classes", CLASSES, chance=ORDER),
    "mAP": headline("mAP", "average precision, mean of the classes", CLASSES, chance=ORDER),
    "R@1": leading(
        "R@1",
        "a match in first place",
        RETRIEVAL,
        chance=ORDER,
        sentence="the right {target} ranked first for {value} of the {sources}",
    ),
    "R@5": Metric("R@5", "a match among the first 5", RETRIEVAL, chance=ORDER),
    "R@10": Metric("R@10", "a match among the first 10", RETRIEVAL, chance=ORDER),
    "median_rank": lower("median rank", "of the first match", RETRIEVAL, unit="rank", chance=ORDER),
    "exact_match": leading(
        "exact match",
        "written word for word",
        WRITING,
        chance=SILENCE,
        sentence="{value} of the texts of the {sources} written exactly",
    ),
    "wer": lower_headline(
        "WER",
        "word errors per word",
        WRITING,
        chance=SILENCE,
        sentence="{value} of the words of the {sources}' texts written wrong",
    ),
    "cer": lower("CER", "letter errors per letter", WRITING, chance=SILENCE),
    "hallucinated": lower_headline(
        "hallucinated", "something written where the reference has no word", WRITING, chance=SILENCE
    ),
    "truncated": lower("truncated", "writing cut at the limit of tokens", WRITING, chance=SILENCE),
    "cider": headline(
        "CIDEr", "likeness to the references, rare words weighing more", WRITING, unit="number", chance=SILENCE
    ),
    "cider_plain": Metric(
        "CIDEr, plain", "CIDEr without clipping and without a cost of length", WRITING, unit="number", chance=SILENCE
    ),
    "bleu1": Metric("BLEU-1", "words that a reference has", WRITING, chance=SILENCE),
    "bleu2": Metric("BLEU-2", "runs of up to 2 words that a reference has too", WRITING, chance=SILENCE),
    "bleu3": Metric("BLEU-3", "runs of up to 3 words that a reference has too", WRITING, chance=SILENCE),
    "bleu4": headline("BLEU-4", "runs of up to 4 words that a reference has too", WRITING, chance=SILENCE),
    "rouge_l": headline("ROUGE-L", "longest common run of words", WRITING, chance=SILENCE),
    "exact_one_pass": leading(
        "exact match, one pass",
        "each token is the likeliest, so greedy writes it",
        WRITING,
        chance=SILENCE,
    ),
    "vqa_accuracy": headline("VQA accuracy", "answers that at least three other people gave", WRITING, chance=SILENCE),
    "contains": headline("contains", "an answer stands in what is written", WRITING, chance=SILENCE),
    "shared_word": headline("shared word", "a word that says something is in an answer too", WRITING, chance=SILENCE),
    "token_f1": headline("F1", "words that an answer has too, precision and recall", WRITING, chance=SILENCE),
    "edit_similarity": headline("edit similarity", "letters that need no edit", WRITING, chance=SILENCE),
    "exact_line": headline("exact line", "the first line written letter for letter", WRITING, chance=SILENCE),
    "line_similarity": Metric(
        "line similarity", "letters of the first line that need no edit", WRITING, chance=SILENCE
    ),
    "pass_at_1": headline("pass@1", "the function so filled gives what it should", WRITING, chance=SILENCE),
    "rouge1": Metric("ROUGE-1", "words in common with the answer, F1", WRITING, chance=SILENCE),
    "rouge2": Metric("ROUGE-2", "runs of 2 words in common with the answer, F1", WRITING, chance=SILENCE),
    "rougeL": headline("ROUGE-L F1", "longest common run of words, F1 as rouge_score has it", WRITING, chance=SILENCE),
    "bleu": headline("BLEU", "runs of up to 4 words in common, as sacrebleu's", WRITING, chance=SILENCE),
    "chrf": headline("chrF", "runs of up to 6 letters in common, as sacrebleu's", WRITING, chance=SILENCE),
    "words_written": neither("words written", "ROUGE rises where less is written", WRITING, unit="number"),
    "length_ratio": neither(
        "length ratio", "words written for each word of the answer", WRITING, unit="number", chance=SILENCE
    ),
    "choice_acc": headline("choice", "the right choice is the likeliest", CHOOSING, chance="any of the choices"),
    "choice_acc_per_token": Metric(
        "choice per token", "the right choice is the likeliest by its mean token", CHOOSING, chance="any of the choices"
    ),
    "bits_per_byte": lower_headline(
        "bits per byte", "surprise at the true text", WRITING, unit="bits/byte", chance=BYTES
    ),
    "nelbo_bits_per_byte": lower_headline(
        "bits per byte, bound", "at most the surprise at the true text", FILLING, unit="bits/byte", chance=BYTES
    ),
    "bits_per_byte_with_length": lower(
        "bits per byte with length", "the bound, and what the length costs", FILLING, unit="bits/byte", chance=BYTES
    ),
    "bits_per_code_bound": lower_headline(
        "bits per code, bound", "at most the surprise at the true codes", FILLING, unit="bits/code", chance=CODES
    ),
    "masked_acc@15": headline(
        "masked_acc@15", "right ids where 15 % are hidden", FILLING, chance="ids that are equally likely"
    ),
    "psnr": leading("PSNR", "dB between a picture and what is decoded of its codes", CODECS, unit="dB", chance=GREY),
    "ssim": headline("SSIM", "likeness of structure; 1 is the same picture", CODECS, unit="number", chance=GREY),
    "spectral_distance": lower_headline(
        "spectral distance",
        "between the spectra of a sound and of what is decoded of its codes",
        CODECS,
        unit="number",
        during_training=True,
        chance=NOISE,
    ),
    "stoi": headline(
        "STOI", "short-time objective intelligibility; 1 is the same speech", CODECS, unit="number", chance=NOISE
    ),
    "si_sdr": Metric(
        "SI-SDR",
        "dB between a sound and what is decoded of its codes, phases included",
        CODECS,
        unit="dB",
        chance=NOISE,
    ),
    "bits_per_pixel": lower_headline(
        "bits per pixel", "what the codes cost", CODECS, unit="bits/px", chance="8 bits for every value of a pixel"
    ),
    "bits_per_second": lower_headline(
        "bits per second", "what the codes cost", CODECS, unit="bits/s", chance="16 bits for every sample"
    ),
    "codebook_usage": headline("codes used", "of all codes of the book, those that occur", CODECS, chance=ONE_CODE),
    "code_entropy_bits": neither(
        "code entropy", "bits that a code of the book carries", CODECS, unit="bits", chance=ONE_CODE
    ),
    "read": headline(
        "read",
        "a judge reads the right name",
        JUDGED,
        chance=CONSTANT,
        sentence="{value} of the {targets} that it makes read right by a judge",
    ),
    "right": headline("right", "a judge reads the right name", JUDGED, chance=CONSTANT),
    "named": headline("named", "a judge reads some name of a class", JUDGED),
    "number": headline("number", "a judge reads the name of some number", JUDGED),
    "read real": neither("read real", "the same judge, in the split's own", JUDGED, chance=CONSTANT),
    "held_out": neither(
        "held out",
        "how well the judge reads scans or voices that it has not learned from",
        JUDGED,
        chance="one name of a hundred",
    ),
    "read decoded": Metric("read decoded", "in the split's own, decoded of their codes", JUDGED, chance=CONSTANT),
    "nearer": headline(
        "nearer", "answers whose voice is nearer to the prompt's than to nine of ten others", JUDGED, chance="any voice"
    ),
    "frechet": lower(
        "Frechet distance", "between the features of what was made and of the split's own", JUDGED, unit="number"
    ),
    "kid": lower(
        "kernel distance", "between the features of what was made and of the split's own", JUDGED, unit="number"
    ),
}
OWN: dict[str, Metric] = {}  # of one's own, as `own_metrics` knows them
PLAIN = {name.lower().replace("_", " "): name for name in METRICS}


def plain(metric: str) -> str:
    """The name of a metric as words, without regard to case."""
    return metric.lower().replace("_", " ")


def entry_of(metric: str) -> str | None:
    """The name in METRICS of a metric of results: wer, WER, speech/wer, codebook_usage/3; of one's own its own name;
    None where none is."""
    if metric in OWN:
        return metric
    name = plain(metric)
    first, _, last = name.rpartition("/")
    return PLAIN.get(name) or PLAIN.get(first if last.isdecimal() else last)


def metric_of(metric: str) -> Metric:
    """What is known of a metric; of one that is not registered only its name, and no direction."""
    if metric in OWN:
        return OWN[metric]
    name = entry_of(metric)
    return METRICS[name] if name else Metric(metric, "", OTHER, unit="number", higher_is_better=None)


def label(metric: str) -> str:
    """What people call it: WER; speech/WER; codes used/3."""
    known, (first, _, last) = entry_of(metric), metric.rpartition("/")
    if known is None:
        return metric.replace("_", " ")
    told = metric_of(metric).label
    if not first or plain(metric) in PLAIN:
        return told
    return f"{told}/{last}" if last.isdecimal() else f"{first.replace('_', ' ')}/{told}"


def is_headline(metric: str) -> bool:
    """Whether runs are compared by it."""
    return metric_of(metric).headline


def is_control(task: str) -> bool:
    """Whether it is what a task is compared with, such as "messages>text (blind)", and no achievement of a run."""
    return task.endswith(")")


def is_share(metric: str) -> bool:
    """Whether it is a part of one, shown in per cent."""
    return metric_of(metric).unit == "share"


def group_of(metric: str, task: str) -> str:
    """The chart that a score stands in: of classes that labels made ("image:knn") that of probes, and of what a judge
    reads that of judges, whatever the metric."""
    group = metric_of(metric).group
    if group == CLASSES and ":" in task:
        return PROBES
    return JUDGED if "/" in metric and group == WRITING else group


def better(metric: str, difference: float) -> int:
    """Which of two is better by first less second: 1 the first, -1 the second, 0 neither."""
    direction = metric_of(metric).higher_is_better
    if direction is None or not difference:
        return 0
    return 1 if (difference > 0) == direction else -1
