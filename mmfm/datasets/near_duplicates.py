"""Texts that say again what was said: half or more of their runs of five words stood before."""

import re

RUN, MOST_KNOWN = 5, 0.5  # words of a run; of a text's runs, the part that may have stood before
WORD = re.compile(r"(?:[^\W\d_]|')+")


def runs_of(text: str) -> set[tuple[str, ...]]:
    """Every five words that follow each other, without case and marks."""
    words = WORD.findall(text.lower())
    return {tuple(words[at : at + RUN]) for at in range(len(words) - RUN + 1)}


class Seen:
    """The runs of all texts so far. A text of fewer than five words is like no other."""

    def __init__(self) -> None:
        self._runs: set[tuple[str, ...]] = set()

    def is_new(self, text: str) -> bool:
        """Whether it is no near duplicate; what a new one says is seen from then on."""
        runs = runs_of(text)
        if runs and len(runs & self._runs) >= MOST_KNOWN * len(runs):
            return False
        self._runs |= runs
        return True
