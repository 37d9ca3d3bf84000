"""The shared token space: marks, text, image codes and audio codes, side by side in one embedding table.

Ids of one modality ("local ids", as its tokenizer or codec gives them) become ids of the table by an offset.
"""

from dataclasses import dataclass

from torch import Tensor

MARKS = ("pad", "hidden", "end", "begin text", "begin image", "begin audio")


@dataclass(frozen=True)
class CodeFormat:
    """How the local ids of a target follow each other: step t takes one of book t % len(sizes), and book k's ids come
    after those of the books before it. The end comes after whole turns, and where `length` is given just there.

    empty: the end may come at once, as in texts.
    """

    sizes: tuple[int, ...]
    length: int = 0
    empty: bool = False

    def candidates(self, step: int) -> range:
        """The local ids that may stand at this step; none where only the end may."""
        if self.length and step >= self.length:
            return range(0)
        book = step % len(self.sizes)
        start = sum(self.sizes[:book])
        return range(start, start + self.sizes[book])

    def may_end(self, step: int) -> bool:
        """Whether the end may stand here in place of an id."""
        if self.length:
            return step >= self.length
        return step % len(self.sizes) == 0 and (step > 0 or self.empty)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """How many local ids each modality has; zero keeps no room for it."""

    text: int
    image: int = 0
    audio: int = 0

    @property
    def size(self) -> int:
        return len(MARKS) + self.text + self.image + self.audio

    @property
    def pad(self) -> int:
        return MARKS.index("pad")

    @property
    def hidden(self) -> int:
        """What stands where a token of the input was masked."""
        return MARKS.index("hidden")

    @property
    def end(self) -> int:
        return MARKS.index("end")

    def begin(self, modality: str) -> int:
        """The mark that opens a target of this modality, and so says what is to be written."""
        return MARKS.index(f"begin {modality}")

    def span(self, modality: str) -> range:
        """The ids of the table that belong to one modality."""
        sizes = {"text": self.text, "image": self.image, "audio": self.audio}
        start = len(MARKS)
        for name, size in sizes.items():
            if name == modality:
                return range(start, start + size)
            start += size
        raise ValueError(f"no modality called {modality!r}; there are {', '.join(sizes)}")

    def shared(self, modality: str, local: Tensor) -> Tensor:
        """Local ids -> ids of the table."""
        return local + self.span(modality).start

    def local(self, modality: str, shared: Tensor) -> Tensor:
        """Ids of the table -> local ids; the inverse of `shared`."""
        return shared - self.span(modality).start
