"""The commands `mmfm data ...`: each is its options, as a dataclass, and what it does when called.

What a field's docstring says is its line in `mmfm data COMMAND --help`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from mmfm.config import require


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Written and spoken numbers as WebDataset shards, from what pip installed."""

    folder: tyro.conf.Positional[str]
    """Where it is written, such as data/numbers."""
    seed: int = 0
    """The same seed gives the same bytes."""

    def __call__(self) -> None:
        from mmfm.datasets import numbers

        numbers.build(Path(self.folder), seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class Stamps:
    """Pictures, captions in many languages, spoken descriptions and sound effects, from a package of Debian."""

    folder: tyro.conf.Positional[str]
    """Where it is written, such as data/stamps."""
    deb: str = ""
    """The package tuxpaint-stamps-default as a file; else apt-get downloads it into FOLDER.deb, where it stays."""

    def __call__(self) -> None:
        from mmfm.datasets import stamps

        stamps.build(Path(self.folder), deb=Path(self.deb) if self.deb else None)


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Conversations about composed pictures with exact answers: written, spoken, without a picture, and few shots.

    Of two packages of Debian, cut-outs and, for a test in another style, emoji.
    """

    folder: tyro.conf.Positional[str]
    """Where it is written, such as data/scenes."""
    seed: int = 0
    """The same seed gives the same bytes."""
    train: int = 720
    """Pictures of each of seven questions in train; what is spoken and shown in shots is in proportion."""
    evals: int = 160
    """The same of test; half as many of test-style, a quarter of val."""
    deb: str = ""
    """The package tuxpaint-stamps-default as a file; else apt-get downloads it into FOLDER.deb, where it stays."""
    emoji_deb: str = ""
    """The package fonts-noto-color-emoji likewise."""

    def __call__(self) -> None:
        from mmfm.datasets import scenes

        scenes.build(
            Path(self.folder),
            seed=self.seed,
            train=self.train,
            evals=self.evals,
            deb=Path(self.deb) if self.deb else None,
            emoji_deb=Path(self.emoji_deb) if self.emoji_deb else None,
        )


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Passages of English text, from a package of Debian: the King James Bible."""

    folder: tyro.conf.Positional[str]
    """Where it is written, such as data/corpus."""
    deb: str = ""
    """The package bible-kjv-text as a file; else apt-get downloads it into FOLDER.deb, where it stays."""

    def __call__(self) -> None:
        from mmfm.datasets import corpus

        corpus.build(Path(self.folder), deb=Path(self.deb) if self.deb else None)


@dataclass(frozen=True, kw_only=True)
class Descriptions:
    """Texts to sum up and to translate, as conversations: what Debian says of its packages."""

    folder: tyro.conf.Positional[str]
    """Where it is written, such as data/descriptions."""
    languages: tuple[str, ...] = ("fr", "de", "it")
    """Into which it is translated: any of fr de it da es ja pl pt_BR ru uk."""
    lists: str = ""
    """A folder of apt's lists; else apt-get fetches them into FOLDER.lists, where they stay."""

    def __call__(self) -> None:
        from mmfm.datasets import descriptions

        lists = Path(self.lists) if self.lists else None
        descriptions.build(Path(self.folder), languages=self.languages, lists=lists)


@dataclass(frozen=True, kw_only=True)
class Packages:
    """Records of Debian's packages, and questions that one of them answers, for answers with retrieval."""

    folder: tyro.conf.Positional[str]
    """Where it is written, such as data/packages."""
    packages: int = 5_000
    """How many there are records of."""
    lists: str = ""
    """A folder of apt's lists; else apt-get fetches them into FOLDER.lists, where they stay."""

    def __call__(self) -> None:
        from mmfm.datasets import package_facts

        lists = Path(self.lists) if self.lists else None
        package_facts.build(Path(self.folder), packages=self.packages, lists=lists)


@dataclass(frozen=True, kw_only=True)
class Code:
    """Functions of Python's standard library with a line hidden, as conversations; some are tested by what they give.

    Of the Python that runs this; each function is run with limits, without network, and writes nothing.
    """

    folder: tyro.conf.Positional[str]
    """Where it is written, such as data/code."""
    library: str = ""
    """A folder of Python modules; else the standard library of the Python that runs this."""
    tests: int = 200
    """Functions of test at most, those first that can be tested."""

    def __call__(self) -> None:
        from mmfm.datasets import python_functions

        python_functions.build(
            Path(self.folder), library=Path(self.library) if self.library else None, tests=self.tests
        )


@dataclass(frozen=True, kw_only=True)
class Index:
    """Write the indexes that tars below a folder lack (X.idx.json beside X.tar), and each folder's shards.json."""

    folder: tyro.conf.Positional[str]
    """The folder of shards, or one above."""
    again: bool = False
    """Also where there is a valid one."""
    parts: tuple[str, ...] = ()
    """Where samples have several parts of a kind, or names of their own: those that are read, such as `jpg` (and no
    .png beside it) or `input.jpg caption.txt`. Kept for later indexes."""
    last_dot: bool = False
    """A key ends at the last dot of a name, and not at the first: 22.1.png is a sample, and no part of the document 22.
    Kept for later indexes."""
    tokenizer: str = ""
    """Count the tokens of each sample's texts too: `bytes`, or the path of a tokenizer.json. For Data.tokens_per_batch
    and Data.balance_by_length."""
    workers: int = 0
    """Processes; 0: one per core."""

    def __call__(self) -> None:
        from mmfm.data.member_names import EXTENSIONS, How, numbered
        from mmfm.datasets.indexing import index_folder

        require(self.workers >= 0, f"--workers {self.workers} must not be negative")
        asked = tuple(part.lower().removeprefix(".") for part in self.parts)
        wrong = next((part for part in asked if numbered(part)[1] not in EXTENSIONS), "")
        told = f"--parts {wrong} is of no kind that is read ({', '.join(EXTENSIONS)})"
        require(not wrong, f"{told}; name one that ends with one of these")
        how = How(parts=asked, last_dot=self.last_dot) if asked or self.last_dot else None
        folder, tokenizer = Path(self.folder), self.tokenizer
        index_folder(folder, again=self.again, how=how, tokenizer=tokenizer, workers=self.workers)


@dataclass(frozen=True, kw_only=True)
class Build:
    """Turn a folder of files, a CSV, TSV, JSONL, JSON or Parquet, or a saved Hugging Face dataset into shards.

    A table names files, or holds conversations in the form of OpenAI, LLaVA, ShareGPT, ms-swift or Alpaca. A build
    that was stopped goes on when the same command is given again.
    """

    input: tyro.conf.Positional[str]
    """Files that share a stem make a sample; in a table each row, with paths relative to the table."""
    out: tyro.conf.Positional[str]
    """Where the shards are written: a new folder, or one of the same build."""
    image: str = ""
    """Column of the pictures; without any of these four, guessed from usual names."""
    audio: str = ""
    """Column of the sounds."""
    text: str = ""
    """Column of the captions. The other columns go into the .json."""
    messages: str = ""
    """Column of conversations, such as messages or conversations; --image and --audio hold what <image> and <audio>
    stand for."""
    key: str = ""
    """Column that names each sample; else the number of its row."""
    classes: Literal["none", "folders"] = "none"
    """folders: the first folder below INPUT is the class, written as .cls and, where there is no text, .txt."""
    prefix: str = "shard"
    """Of the shards' names."""
    samples_per_shard: int = 1_000
    """Samples of the input in each shard."""
    check: Literal["decode", "headers", "none"] = "decode"
    """What is tried of each sample; those that fail are listed in OUT/left_out.jsonl."""
    max_seconds: float = 3_600.0
    """A longer sound is left out."""
    allow_missing: bool = False
    """Leave out samples whose files are missing; else they are an error, at the end."""
    workers: int = 0
    """Processes; 0: one per core."""

    def __call__(self) -> None:
        from mmfm.datasets.build import build
        from mmfm.datasets.build_rows import Columns

        require(self.workers >= 0, f"--workers {self.workers} must not be negative")
        build(
            self.input,
            self.out,
            columns=Columns(messages=self.messages, image=self.image, audio=self.audio, text=self.text, key=self.key),
            classes=self.classes == "folders",
            prefix=self.prefix,
            samples_per_shard=self.samples_per_shard,
            check=self.check,
            max_seconds=self.max_seconds,
            allow_missing=self.allow_missing,
            workers=self.workers,
        )


@dataclass(frozen=True, kw_only=True)
class Encode:
    """Copy shards with the codes of a run's codecs beside their pictures and sounds, so that training can read them.

    One that was stopped goes on when the same command is given again.
    """

    run: tyro.conf.Positional[str]
    """The run whose codecs encode, such as runs/codec-image."""
    shards: tyro.conf.Positional[str]
    """What is encoded: a folder of shards, a tar, a glob or a pattern."""
    out: tyro.conf.Positional[str]
    """Where the shards are written: a new folder, or one of the same command."""
    batch_size: int = 16
    """Samples that are encoded at once."""
    step: int = 0
    """Which checkpoint of the run; 0: the last."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1; auto: as the run says, which may have been trained on another machine."""

    def __call__(self) -> None:
        import torch

        from mmfm.data.decode import decode_of
        from mmfm.datasets.encode import coders_of, encode
        from mmfm.inference.load import load_model
        from mmfm.runtime.devices import device_of_each
        from mmfm.runtime.machine import cores

        model = load_model(Path(self.run), self.step or None)
        device = device_of_each(self.device, model.run.accelerator)
        model.to(device)
        torch.set_num_threads(min(model.run.threads, cores()))
        coders = coders_of(dict(model.core.codecs.named_children()), model.config.codecs)
        encode(
            coders, self.shards, Path(self.out), decode=decode_of(model.run.data), batch=self.batch_size, device=device
        )


DATA: dict[str, type[Any]] = {
    "numbers": Numbers,
    "stamps": Stamps,
    "scenes": Scenes,
    "corpus": Corpus,
    "descriptions": Descriptions,
    "packages": Packages,
    "code": Code,
    "build": Build,
    "index": Index,
    "encode": Encode,
}
