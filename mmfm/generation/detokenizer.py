"""Text as it is written: ids come one by one, and what is sure of the text goes out, up to a stop string.

A character of several bytes is given whole or not at all; so is a stop string, wherever tokens cut it.
"""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
BROKEN = "\ufffd"  # what a decoder puts for bytes that make no character, perhaps not yet


class Detokenizer:
    """The text of one row. decode: ids -> text, as a tokenizer's."""

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self.decode, self.stop = decode, tuple(stop)
        self.ids: list[int] = []
        self.start = self.clean = self.said = 0  # ids[start:] are decoded anew; `said` characters of them are known
        self.waiting, self.given, self.last, self.stopped = "", "", "", False

    def add(self, local: int) -> str:
        """What is new and sure after this id; `last` has it too."""
        self.ids.append(local)
        text = self.decode(self.ids[self.start :])
        whole = not text.endswith(BROKEN)
        self.waiting += text[self.said : len(text) if whole else len(text) - 1]
        self.said = len(text) if whole else max(self.said, len(text) - 1)
        if whole:  # the tokens since the last clean place stay, since some decoders treat a first token differently
            self.start, self.clean = self.clean, len(self.ids)
            self.said = len(self.decode(self.ids[self.start :]))
        return self._give()

    def end(self) -> str:
        """What had to wait, at the end."""
        if self.stopped:
            return ""
        self.waiting += self.decode(self.ids[self.start :])[self.said :]
        self.start, self.said = len(self.ids), 0
        return self._give(last=True)

    @property
    def text(self) -> str:
        """All that was given."""
        return self.given

    def _give(self, last: bool = False) -> str:
        if self.stopped:
            return ""
        places = [place for word in self.stop if (place := self.waiting.find(word)) >= 0]
        if places:
            sure, self.stopped = min(places), True
        else:
            sure = len(self.waiting) - (0 if last else self._begun())
        new, self.waiting = self.waiting[:sure], self.waiting[sure:]
        self.last = new
        self.given += new
        return new

    def _begun(self) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        longest = max((len(word) for word in self.stop), default=1) - 1
        sizes = range(min(longest, len(self.waiting)), 0, -1)
        return next((size for size in sizes if any(word.startswith(self.waiting[-size:]) for word in self.stop)), 0)
