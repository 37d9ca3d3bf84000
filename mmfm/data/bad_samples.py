"""What could not be read: counted by source and code, listed, and more than a little of it stops the run.

Every rank notes what it met; now and then the counts of all ranks are added up, by whoever trains, and given back. So
all ranks know the same numbers, and stop at the same step. What is kept here depends on the contents of shards alone.
"""

import json
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mmfm.config import UserError
from mmfm.preprocessing import CODES

WINDOW, STEPS = 10_000, 4  # so many of a source's samples at least, and so many steps' at least, are looked back on
NAMES = tuple(CODES)
SHOWN = 3  # examples in the message that stops a run


class Bad(NamedTuple):
    """A sample that could not be used, and the position of the stream where another took its place."""

    source: int
    shard: str
    key: str
    code: str
    message: str
    position: int


class BadSampleCounter:
    """Counts of what was read and what was bad. `labels` name the sources.

    `max_bad_fraction` is a fraction of a source's last reads: of those of the last STEPS steps that read it, or of
    WINDOW where that is more. A run that has read fewer may have as many bad as if it had read WINDOW: a few bad
    ones at its start say little of the rest.
    """

    def __init__(self, labels: Sequence[str], max_bad_fraction: float) -> None:
        self.labels, self.max_bad_fraction = tuple(labels), max_bad_fraction
        self.reads = [0] * len(self.labels)
        self.bad: Counter[tuple[int, str]] = Counter()  # (source, code), over all ranks, since the run began
        self.truncated = [0] * len(self.labels)  # samples of each source with a text that was cut; these are not bad
        self._recent: list[deque[tuple[int, int]]] = [deque() for _ in self.labels]  # (reads, bad) of late
        self._of_late = np.zeros((len(self.labels), 2), np.int64)  # their sums
        self._new = [0] * (len(self._flat()) + len(self.labels))  # and at the end the truncated
        self._seen: list[Bad] = []
        self._lines: list[str] = []

    def _flat(self) -> list[int]:
        codes = [self.bad[source, code] for source in range(len(self.labels)) for code in NAMES]
        return [*self.reads, *codes]

    def record(self, reads: Sequence[int], bad: Sequence[Bad], truncated: Sequence[int] = ()) -> None:
        """What this rank met in one batch: reads of each source, the bad ones among them, and the truncated ones."""
        for source, count in enumerate(truncated):
            self._new[source - len(self.labels)] += count
        for source, count in enumerate(reads):
            self._new[source] += count
        for item in bad:
            self._new[len(self.labels) + item.source * len(NAMES) + NAMES.index(item.code)] += 1
            self._lines.append(json.dumps({**item._asdict(), "source": self.labels[item.source]}))
        self._seen = [*self._seen, *bad][-SHOWN:]

    def drain(self) -> list[int]:
        """This rank's counts since the last call, as whole numbers to be added up over ranks."""
        new, self._new = self._new, [0] * len(self._new)
        return new

    def add(self, totals: Sequence[int]) -> None:
        """The sum over ranks of what `take` gave. Raises UserError, on every rank alike, where too much is bad."""
        assert len(totals) == len(self._new)
        sources = range(len(self.labels))
        for source in sources:
            first = len(self.labels) + source * len(NAMES)
            found = {(source, code): n for code, n in zip(NAMES, totals[first:], strict=False) if n}
            self.reads[source] += totals[source]
            self.truncated[source] += totals[source - len(self.labels)]
            self.bad.update(found)
            self._remember(source, totals[source], sum(found.values()))
        for source in sources:
            reads, bad = self._of_late[source].tolist()
            if bad > self.max_bad_fraction * max(reads, WINDOW):
                raise UserError(self._over(source))

    def _remember(self, source: int, reads: int, bad: int) -> None:
        recent, of_late = self._recent[source], self._of_late[source]
        if reads or bad:
            recent.append((reads, bad))
            of_late += (reads, bad)
        while len(recent) > STEPS and of_late[0] - recent[0][0] >= WINDOW:
            of_late -= recent.popleft()

    def _over(self, source: int) -> str:
        reads, bad = self._of_late[source].tolist()
        codes = ", ".join(f"{code} {n}" for (of, code), n in self.bad.most_common() if of == source)
        where = "; ".join(dict.fromkeys(item.message for item in self._seen if item.source == source))
        told = f"{bad} of the last {reads} samples of {self.labels[source]!r}"
        seen = f" such as {where};" if where else ""
        return (
            f"{told} cannot be used ({codes}), over data.max_bad_fraction={self.max_bad_fraction:g} of "
            f"{max(reads, WINDOW)};{seen} skipped.jsonl in the run's folder lists them: mend the shards, or allow more"
        )

    def skipped(self) -> list[str]:
        """A JSON line for each bad sample that this rank met since the last call."""
        lines, self._lines = self._lines, []
        return lines

    def counts(self) -> dict[str, dict[str, int]]:
        """Source -> {"read": n, code: n, ...}, over all ranks."""
        bad = {label: {} for label in self.labels}
        for (source, code), n in sorted(self.bad.items()):
            bad[self.labels[source]][code] = n
        for label, n in zip(self.labels, self.truncated, strict=True):
            bad[label] |= {"truncated": n} if n else {}
        return {label: {"read": read, **bad[label]} for label, read in zip(self.labels, self.reads, strict=True)}

    def told(self) -> str:
        """One line about texts that were cut; empty where none was."""
        count, read = sum(self.truncated), sum(self.reads)
        which = ", ".join(f"{label} {n}" for label, n in zip(self.labels, self.truncated, strict=True) if n)
        told = f"{count} of {read} samples had a text longer than is read, of which the beginning was taken ({which})"
        return f"{told}; data.max_text_tokens and data.long_text say what becomes of such" if count else ""

    def state(self) -> dict[str, Any]:
        return {
            "totals": self._flat(),
            "truncated": list(self.truncated),
            "recent": [[list(pair) for pair in recent] for recent in self._recent],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`; whatever this rank has noted since is forgotten, as the stream goes back too."""
        totals, count = state["totals"], len(self.labels)
        names = NAMES[: len(totals) // max(count, 1) - 1]  # of an older checkpoint: new codes come last
        if len(state["recent"]) != count or len(totals) != count * (1 + len(names)):
            raise UserError("the checkpoint counts other sources or codes of bad samples; start anew with --force")
        self.reads, self.truncated = list(totals[:count]), list(state.get("truncated", [0] * count))
        pairs = [(source, code) for source in range(count) for code in names]
        self.bad = Counter({pair: n for pair, n in zip(pairs, totals[count:], strict=True) if n})
        self._recent = [deque((read, bad) for read, bad in recent) for recent in state["recent"]]
        self._of_late = np.array([np.sum(recent, axis=0) if recent else (0, 0) for recent in self._recent], np.int64)
        self._new, self._lines, self._seen = [0] * len(self._new), [], []
