"""How the data sets of a suite lie on the disk; paths are relative to its root. Standard library only."""

from dataclasses import dataclass

from mmfm.config import Checked


@dataclass(frozen=True, kw_only=True)
class Tars(Checked):
    """Shards as elsewhere. A sample's class: its .cls, else the json's "label", else its text.

    `captions`: a field of the .json, a text or a list of them; "": each line of the .txt, else the json's captions,
    caption or text.
    """

    shards: str
    captions: str = ""


@dataclass(frozen=True, kw_only=True)
class ClassFolders(Checked):
    """A folder for each class, as ImageNet has them: path/class/*.jpg, or sounds. Folders within are looked through."""

    path: str = "."


@dataclass(frozen=True, kw_only=True)
class Table(Checked):
    """A .csv or .tsv with a row for each file of the folder `media`; rows of one file are joined.

    `file`, `captions`, `labels` and `fold` are columns. A label cell holds several where `between` parts them. `suffix`
    is added to names without one that is known. `columns` names the columns of a table without a heading. `comment`:
    what the lines before the heading or the first row begin with that are none of the table, such as #; after it no
    line is left out. `may_lack`: rows whose file is not there are left out and counted, not refused.
    """

    table: str
    media: str
    file: str
    captions: tuple[str, ...] = ()
    labels: str = ""
    between: str = ""
    fold: str = ""
    folds: tuple[int, ...] = ()  # only these; (): all
    suffix: str = ""
    prefix: str = ""
    columns: tuple[str, ...] = ()
    comment: str = ""
    may_lack: bool = False


@dataclass(frozen=True, kw_only=True)
class Coco(Checked):
    """Captions of pictures: COCO's JSON, or Karpathy's with its own splits (test, val, train, restval)."""

    annotations: str
    media: str
    split: str = ""


@dataclass(frozen=True, kw_only=True)
class Transcripts(Checked):
    """LibriSpeech's folders: *.trans.txt with a line "NAME WORDS" for each NAME.flac beside it."""

    path: str = "."


@dataclass(frozen=True, kw_only=True)
class Shards(Checked):
    """Shards that are read as training reads its sources: SHARDS, or SHARDS+MORE to search among MORE too."""

    shards: str


Data = Tars | ClassFolders | Table | Coco | Transcripts


@dataclass(frozen=True, kw_only=True)
class Names(Checked):
    """A table of classes: the column of what labels say (`mark`), and that of the name that is put into prompts."""

    table: str
    mark: str
    name: str
