"""The table of modalities: which there are, and what their files are called. Those of one's own are added to it.

A modality of one's own is a class in a file outside mmfm (mmfm/config/extend.py): what its files end in, how bytes
become a tensor, and the tower that reads these. It is a source, in pairs and tasks; only the three of mmfm are written.
It is known from when its file is executed, and shards must be indexed where it is: `mmfm data index FOLDER --extension
FILE`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from mmfm.config.base import MODALITIES, require
from mmfm.config.extend import Extension

FILES: dict[str, str] = {
    **dict.fromkeys(("png", "jpg", "jpeg", "webp"), "image"),
    **dict.fromkeys(("wav", "flac", "ogg", "opus", "mp3"), "audio"),
    "txt": "text",
}  # the extension of a file -> its modality
CODES = {"image": "imagecodes.npy", "audio": "audiocodes.npy"}  # a codec's, of the part beside (mmfm.data.codes)
EXTENSIONS = [*FILES, "json", "cls", *CODES.values()]  # all that is read of a sample; the rest is counted
_own: dict[str, "type[Modality]"] = {}


def modality_names() -> tuple[str, ...]:
    """The names of all: text last of those of mmfm, then those of one's own."""
    return (*MODALITIES, *_own)


def media_names() -> tuple[str, ...]:
    """Those that are read of files: all but text."""
    return tuple(name for name in modality_names() if name != "text")


@dataclass(frozen=True, kw_only=True)
class Modality(Extension):
    """A modality of one's own, in `Model.modalities`; its fields are those of its tower.

    decode: the bytes of a file as a tensor, BadSample where they are none. Tensors of one shape are stacked; others
    are padded along their first axis, with zeros. tower: a module whose forward(x, keep) gives `Tokens` of `width`;
    `keep` is True where x is real, [n, 1] where it was stacked.
    """

    name: ClassVar[str] = ""
    files: ClassVar[tuple[str, ...]] = ()
    width: int = 64

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        taken = [end for end in cls.files if end in EXTENSIONS and FILES.get(end) != cls.name]
        require(cls.name.isidentifier() and bool(cls.files), f"{cls.__name__} needs a name and the ends of its files")
        require(
            cls.name not in (*MODALITIES, "json", "cls"), f"{cls.__name__}: there is a modality {cls.name!r} already"
        )
        require(not taken, f"{cls.__name__}: files that end in {', '.join(taken)} are of another kind already")
        _own[cls.name] = cls
        for end in cls.files:
            if end not in FILES:
                FILES[end] = cls.name
                EXTENSIONS.append(end)

    def decode(self, data: bytes) -> Any:
        raise NotImplementedError

    def tower(self) -> Any:
        raise NotImplementedError


def require_known(name: str, where: str) -> None:
    known = modality_names()
    require(name in known, f"{where} names {name!r}; modalities are {', '.join(known)}")
