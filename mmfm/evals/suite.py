"""What a suite is: data sets on disk, and what is asked of a model about each. Standard library only.

A suite is a short Python file that defines suite() -> Suite. Paths in it are relative to its root, which --root or the
environment names. A task's `name` is the "split" of its figures; without one it is the suite's. `metrics` are those of
one's own (`mmfm.config.Metric`), or "file.py:Name", a file beside the suite.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmfm.config import MESSAGES, Checked, Metric, UserError, media_names, modality_names, require
from mmfm.config.load import executed
from mmfm.evals.metrics_table import OWN, entry_of
from mmfm.evals.suite_data import ClassFolders as ClassFolders  # which suites name
from mmfm.evals.suite_data import Coco as Coco
from mmfm.evals.suite_data import Data, Names, Shards, Tars
from mmfm.evals.suite_data import Table as Table
from mmfm.evals.suite_data import Transcripts as Transcripts

ANSWER_METRICS = ("exact", "vqa", "contains", "shared_word", "f1", "rouge", "bleu", "chrf", "edit", "line", "pass")
SPELLINGS = ("verbatim", "plain", "letters", "whisper_basic", "whisper_english")  # see mmfm.evals.text_normalizers
COSTS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class Classify(Checked):
    """Zero-shot classes: acc@1, acc@5, mean per class.

    `classes`: the names, a file of them or a table; "": classnames.txt in the root, else the labels themselves.
    Labels are matched by name, or by place where they are numbers, or where as many folders as names are in order.
    `templates`: sentences with {}; (): those of the run.
    """

    data: Data
    classes: str | tuple[str, ...] | Names = ""
    templates: tuple[str, ...] = ()
    modality: str = "image"
    metrics: tuple[Metric, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        check_metrics(self, "ranking")
        check_seen(self)
        check_templates(self.templates)


@dataclass(frozen=True, kw_only=True)
class MultiLabel(Checked):
    """Zero-shot scores of every class against labels of any number: mAP over the classes that occur."""

    data: Data
    classes: str | tuple[str, ...] | Names = ""
    templates: tuple[str, ...] = ()
    modality: str = "audio"
    name: str = ""

    def __post_init__(self) -> None:
        check_seen(self)
        check_templates(self.templates)


@dataclass(frozen=True, kw_only=True)
class Retrieve(Checked):
    """Both directions of a pair: R@1, R@5, R@10, median rank. An item is found where any of its captions is (CLIP)."""

    data: Data
    pair: tuple[str, str] = ("image", "text")
    metrics: tuple[Metric, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        check_metrics(self, "ranking")
        known = set(self.pair) <= set(modality_names()) and self.pair[0] != self.pair[1]
        require(known, f"Retrieve.pair={self.pair}: give two different of {', '.join(modality_names())}")


@dataclass(frozen=True, kw_only=True)
class Caption(Checked):
    """Writing about a picture or a sound against all its captions: CIDEr, BLEU-1 to 4, ROUGE-L."""

    data: Data
    modality: str = "image"
    metrics: tuple[Metric, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        check_metrics(self, "texts")
        check_seen(self)


@dataclass(frozen=True, kw_only=True)
class Transcribe(Checked):
    """What was said: WER and CER, and how often something is written where the reference has no word.

    `spelling` is the normalizer of both sides, named in every result: see `mmfm.evals.text_normalizers`;
    whisper_english reads `spellings`, the normalizer.json of a Whisper tokenizer in the root. A reference may be
    empty: it is of silence.
    """

    data: Data
    spelling: str = "letters"
    spellings: str = ""
    modality: str = "audio"
    metrics: tuple[Metric, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        check_metrics(self, "texts")
        check_seen(self)
        known = f"Transcribe.spelling={self.spelling!r}: there are {', '.join(SPELLINGS)}"
        require(self.spelling in SPELLINGS, known)
        told = f"Transcribe.spellings={self.spellings!r} is a table for spelling='whisper_english'; leave it out"
        require(not self.spellings or self.spelling == "whisper_english", told)


@dataclass(frozen=True, kw_only=True)
class Answer(Checked):
    """Answers to the last question of conversations (`mmfm.evals.questions`), written greedily, and simple baselines.

    `metrics`: of ANSWER_METRICS; answers among a sample's "choices" are scored too, where it has such. `by_kind`: also
    for each "kind". `one_pass`: whether every token of the reference is the likeliest, so that greedy writes it, and
    bits per byte; `write=False` asks for no more than that, and takes a fraction of the time.

    `baselines`: "majority" is the commonest answer of each kind, in the shards `majority_of`, or else in the split
    itself, which it fits best; "source" copies the text that is to be translated or summarised, "first_sentence" its
    beginning.
    `blind`: the same model with the features of all pictures and sounds "zeros", or of another sample, "swapped".

    `documents`: shards of texts, or of pictures, that are put before a question: the `k` best by `retriever`, and for
    comparison what `beside` names: none, the right one (the .json's "document" is its key), and another one.
    `retriever`: "bm25", "model", a run's or bundle's folder, or the source of an encoder of texts.
    """

    shards: str
    metrics: tuple[str, ...] = ("exact", "vqa", "contains", "rouge", "chrf", "bleu")
    by_kind: bool = True
    one_pass: bool = True
    write: bool = True
    baselines: tuple[Literal["majority", "source", "first_sentence"], ...] = ("majority",)
    majority_of: str = ""
    blind: Literal["", "zeros", "swapped"] = ""
    documents: str = ""
    retriever: str = "bm25"
    k: int = 1
    beside: tuple[Literal["no", "right", "another"], ...] = ("no", "right", "another")
    name: str = ""

    def __post_init__(self) -> None:
        for name in self.metrics:
            require(name in ANSWER_METRICS, f"Answer.metrics: {name!r} is none of {', '.join(ANSWER_METRICS)}")
        require(self.one_pass or self.write, "Answer asks nothing with one_pass=False and write=False; leave one out")
        require(self.k > 0, f"Answer.k={self.k} must be above 0")
        told = "Answer.blind is of pictures and sounds, and documents are asked without it; make two tasks of it"
        require(not (self.blind and self.documents), told)

    @property
    def data(self) -> Tars:
        return Tars(shards=self.shards)


@dataclass(frozen=True, kw_only=True)
class KNN(Checked):
    """The k nearest of `train` vote, each with exp(cosine / temperature) (Wu et al., arXiv 1805.01978, 3.4).

    Without `test` each fold of `train` is asked of the others. Features are the unit embeddings.
    """

    train: Data
    test: Data | None = None
    k: int = 20
    temperature: float = 0.07
    modality: str = "image"
    name: str = ""

    def __post_init__(self) -> None:
        check_seen(self)
        require(self.k > 0, f"KNN.k={self.k} must be greater than 0")
        require(self.temperature > 0, f"KNN.temperature={self.temperature} must be greater than 0")


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Checked):
    """Logistic regression on the embeddings, standardised by `train`; its C is the best of `costs` on a part of
    `train` that is held out for it, never on `test`. Without `test` each fold of `train` is asked of the others.
    """

    train: Data
    test: Data | None = None
    costs: tuple[float, ...] = COSTS
    held_out: float = 0.2
    modality: str = "image"
    name: str = ""

    def __post_init__(self) -> None:
        check_seen(self)
        require(bool(self.costs) and min(self.costs) > 0, f"LinearProbe.costs={self.costs}: list numbers above 0")
        require(0 < self.held_out < 1, f"LinearProbe.held_out={self.held_out} must lie between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class Everything(Checked):
    """All that a run can be asked about shards such as it learns from: classes, retrieval between all pairs, writing,
    codecs, filling in, and what judges read in what it draws and says."""

    data: Shards
    name: str


Task = Everything | Classify | MultiLabel | Retrieve | Caption | Transcribe | Answer | KNN | LinearProbe


@dataclass(frozen=True, kw_only=True)
class Suite(Checked):
    """`layout` and `source` tell whoever lacks the data what lies where in the root, and what it is called."""

    name: str
    tasks: tuple[Task, ...]
    layout: str = ""
    source: str = ""
    root: str = ""  # where neither --root nor the environment says

    def __post_init__(self) -> None:
        plain = bool(self.name) and all(letter.isalnum() or letter in "-_" for letter in self.name)
        require(plain, f"Suite.name={self.name!r} must be of letters, digits, - and _: it becomes a file's name")
        require(bool(self.tasks), f"Suite {self.name!r} has no tasks; list some")
        named = [(type(task), task_name(self, task)) for task in self.tasks]
        twice = next((name for name in named if named.count(name) > 1), None)
        if twice:
            raise UserError(f"Suite {self.name!r} has two {twice[0].__name__} called {twice[1]!r}; give each a name=")

    @property
    def variable(self) -> str:
        """The environment's variable that names the root."""
        return f"MMFM_{self.name.upper().replace('-', '_')}_ROOT"

    @property
    def hint(self) -> str:
        """For errors: what was expected, and where it comes from."""
        layout = f"suite {self.name} expects {self.layout}; " if self.layout else ""
        source = f"the data set is {self.source}; " if self.source else ""
        return f"{layout}{source}name its folder by --root or {self.variable}"


def default_suite(splits: Mapping[str, str], talks: Mapping[str, str] | None = None) -> Suite:
    """What `mmfm eval RUN` asks without a suite: everything about each of these splits, name -> SHARDS; but the answers
    of those that are `talks`, name -> SHARDS of conversations."""
    asked = {name: Everything(data=Shards(shards=spec), name=name) for name, spec in splits.items()}
    told = {name: Answer(shards=spec, name=name, blind="zeros") for name, spec in (talks or {}).items()}
    return Suite(name="default", tasks=tuple({**asked, **told}.values()))


Key = tuple[Data | Shards, tuple[str, ...]]  # a data set, and what of it is needed


def keys_of(task: Task) -> list[Key]:
    """The data sets that a task asks about, and what of each it needs."""
    if isinstance(task, Everything):
        return [(task.data, ())]
    if isinstance(task, Retrieve):
        return [(task.data, tuple(name for name in media_names() if name in task.pair))]
    if isinstance(task, Answer):
        return [(task.data, (MESSAGES,))]
    if isinstance(task, KNN | LinearProbe):
        return [(data, (task.modality,)) for data in (task.train, task.test) if data is not None]
    return [(task.data, (task.modality,))]


def metrics_of(task: Task) -> tuple[Metric, ...]:
    """Those of one's own."""
    return task.metrics if isinstance(task, Classify | Retrieve | Caption | Transcribe) else ()


def task_name(suite: Suite, task: Task) -> str:
    return task.name or suite.name


def check_seen(task: Classify | MultiLabel | Caption | Transcribe | KNN | LinearProbe) -> None:
    rule = f"{type(task).__name__}.modality={task.modality!r} must be one of {', '.join(media_names())}"
    require(task.modality in media_names(), rule)


def check_metrics(task: Classify | Retrieve | Caption | Transcribe, of: str) -> None:
    """Raises UserError for a metric that takes something else, or whose name another one has."""
    names = [metric.name for metric in task.metrics]
    for metric in task.metrics:
        told = f"{type(task).__name__}.metrics: {metric.name}"
        require(metric.of == of, f"{told} takes {metric.of}, and this task gives {of}; ask it of another task")
        taken = names.count(metric.name) > 1 or (metric.name not in OWN and entry_of(metric.name) is not None)
        require(not taken, f"{told} has the name of another metric; call its class otherwise")


def check_templates(templates: tuple[str, ...]) -> None:
    for template in templates:
        require("{}" in template, f"the template {template!r} has no {{}} for the class's name; add it")


def read_suite(path: str | Path) -> Suite:
    """The suite that a Python file's `suite()` returns: the file is executed."""
    file = Path(path)
    require(
        file.suffix == ".py" and file.is_file(), f"there is no suite {str(path)!r}; give a Python file with suite()"
    )
    return executed(file, "suite", Suite, "mmfm.evals.suite.Suite")


def root_of(suite: Suite, given: str = "") -> Path:
    """The folder of --root, else of the environment, else of the suite."""
    root = given or os.environ.get(suite.variable, "") or suite.root
    require(bool(root), f"suite {suite.name} does not know where its data is; {suite.hint}")
    folder = Path(root).expanduser()
    require(folder.is_dir(), f"there is no folder {root}; {suite.hint}")
    return folder
