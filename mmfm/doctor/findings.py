"""What an examination says: findings with a level, tables and distributions, in sections. The verdict follows.

Names of shards and keys, and whatever else comes out of shards, is data of others: here it loses what could move a
cursor or break a file, and so no page, terminal or JSON that shows it has to.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from jaxtyping import Num

Level = Literal["OK", "NOTE", "WARNING", "ERROR"]
LEVELS: tuple[Level, ...] = ("OK", "NOTE", "WARNING", "ERROR")  # the worst last
FORMAT = 1  # of the JSON
SHOWN = 5  # examples of a finding
LONGEST = 400  # characters of one of them
BINS = 24
REFUSED = 2  # exit status


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One sentence. `code` is for machines, `examples` name shard and key, `count` is of all cases.

    `pictures`: for each example those to compare, as data: URIs; a page shows them, the JSON leaves them out.
    """

    level: Level
    code: str
    message: str
    examples: tuple[str, ...] = ()
    count: int = 0
    pictures: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells are words or numbers; `head` names the columns."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str | int | float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """How one set's values are spread: `counts` over the bins of its distribution; `n` values in all."""

    name: str
    n: int
    least: float
    median: float
    high: float  # 95 of 100 are not above it
    most: float
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Histograms over the same bins, a row for each set. `edges` has one more than each row's counts."""

    title: str
    unit: str
    edges: tuple[float, ...]
    rows: tuple[Row, ...]

    @property
    def span(self) -> tuple[float, float]:
        return min(row.least for row in self.rows), max(row.most for row in self.rows)

    @property
    def constant(self) -> bool:
        """Whether all values of all sets are the same."""
        return self.span[0] == self.span[1]


@dataclass(frozen=True, kw_only=True)
class Section:
    name: str
    findings: tuple[Finding, ...] = ()
    tables: tuple[Table, ...] = ()
    distributions: tuple[Distribution, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """All sections of one examination of the run `run`, described by the file `config`."""

    run: str
    config: str
    seconds: float
    sections: tuple[Section, ...]

    def count(self, level: Level) -> int:
        return sum(item.level == level for section in self.sections for item in section.findings)

    @property
    def status(self) -> int:
        """Exit status: 0 go, 2 do not."""
        return REFUSED if self.count("ERROR") else 0

    @property
    def verdict(self) -> str:
        """One line."""
        errors, warnings = self.count("ERROR"), self.count("WARNING")
        if errors:
            return f"Do not train {self.run} yet: {plural(errors, 'error')}, {plural(warnings, 'warning')}."
        if warnings:
            return f"{self.run} can be trained; {plural(warnings, 'warning')} to read first."
        return f"{self.run} can be trained: nothing is wrong with what was looked at."


def to_json(diagnosis: Report) -> str:
    """Strict JSON: every finding, table and bin, with the verdict and the exit status; but for pictures."""
    counts = {level: diagnosis.count(level) for level in LEVELS}
    told = {"format": FORMAT, "verdict": diagnosis.verdict, "status": diagnosis.status, "counts": counts}
    tree = {**told, **asdict(diagnosis)}
    for item in (item for section in tree["sections"] for item in section["findings"]):
        del item["pictures"]
    return json.dumps(tree, indent=1, allow_nan=False) + "\n"


def finding(level: Level, code: str, message: str, examples: Iterable[str] = (), count: int = 0) -> Finding:
    """`examples`: the first few are kept, of all cases or of as many as were noted."""
    cases = list(examples)
    shown = tuple(clean(item) for item in cases[:SHOWN])
    return Finding(level=level, code=code, message=clean(message), examples=shown, count=count or len(cases))


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str | int | float]]) -> Table:
    cells = [tuple(clean(cell) if isinstance(cell, str) else cell for cell in row) for row in rows]
    return Table(title=clean(title), head=tuple(head), rows=tuple(cells))


def clean(text: str) -> str:
    """One printable line: line ends, terminal codes and half characters are shown as Python writes them."""
    cut = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def plural(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 'es' if thing.endswith('s') else 's'}"


def distribution(title: str, unit: str, sets: Iterable[tuple[str, Num[np.ndarray, " _"]]]) -> Distribution | None:
    """None where no set has a value. Bins of whole numbers hold equally many; those of a wide span are logarithmic."""
    found = [(name, values) for name, values in sets if len(values)]
    if not found:
        return None
    whole = all(values.dtype.kind in "iu" for _, values in found)
    edges = _edges(float(min(v.min() for _, v in found)), float(max(v.max() for _, v in found)), whole)
    return Distribution(title=title, unit=unit, edges=edges, rows=tuple(_row(*one, edges) for one in found))


def _edges(least: float, most: float, whole: bool) -> tuple[float, ...]:
    if least == most:
        return float(least) - 0.5, float(most) + 0.5
    if least > 0 and most / least > 50:
        return tuple(np.geomspace(least, most, BINS + 1).tolist())
    if whole:
        wide = math.ceil((int(most) - int(least) + 1) / BINS)
        return tuple(first - 0.5 for first in range(int(least), int(most) + wide + 1, wide))
    return tuple(np.linspace(least, most, BINS + 1).tolist())


def _row(name: str, values: Num[np.ndarray, " n"], edges: tuple[float, ...]) -> Row:
    """The outermost bins take what rounding left outside."""
    counts, _ = np.histogram(values.clip(edges[0], edges[-1]), bins=np.asarray(edges))
    ordered = np.sort(values)
    at = [ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.95)]
    return Row(
        name=clean(name),
        n=len(values),
        least=float(ordered[0]),
        median=float(at[0]),
        high=float(at[1]),
        most=float(ordered[-1]),
        counts=tuple(counts.tolist()),
    )
