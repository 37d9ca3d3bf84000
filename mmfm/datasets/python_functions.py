"""`code`: functions of Python's standard library with a line hidden, of which some are tested by what they give.

A sample is a conversation whose turns are parts of a function: what stands before the gap is the system's, what stands
behind it the user's, what is hidden the assistant's. In this order it is `kind` "psm" (prefix, suffix, middle), with
the suffix first "spm" (Bavarian et al., arXiv 2207.14255, 3). "prefix" and "body" have nothing behind the gap, "next"
nothing around it: the whole function is to be written. A hidden line begins with the line break before it, so that
both sides are tokenised as they are in the whole text. See `mmfm.datasets.function_checks` for "program".
"""

import hashlib
import platform
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmfm.config import require
from mmfm.data import shard_list
from mmfm.data.writer import ShardWriter, as_json
from mmfm.datasets.debian import SPLITS, split_of
from mmfm.datasets.folder import build_folder
from mmfm.datasets.function_checks import MOST_CHECKS, Program, checked_body, checked_line, known
from mmfm.datasets.function_source import LINES, Function, Gap, functions_of, gap_of
from mmfm.datasets.near_duplicates import Seen
from mmfm.runtime.files import replace_file
from mmfm.runtime.limited import refuse_unconfined

FORMAT, SHARD_SAMPLES = 1, 5_000
TEST, VAL = 40, 45  # of 100: few functions can be tested

README = """\
# code

Functions of {least} to {most} lines of the standard library of Python {version}, with a line hidden. WebDataset shards
of `.json` alone: "messages", "kind", "module", "function", "line" (the number of the hidden one) and, of functions that
are tested, "program".

| kind | train | val | test |
|---|---|---|---|
{rows}

- "psm": a turn of the system with what stands before the gap, one of the user with what stands behind it, and the
  hidden line as the assistant's. "spm": the user's turn first. In test both, and "prefix", which has nothing behind the
  gap, hide the same line of the same function. "body": after the header and its docstring, all that follows. "next":
  the whole function. A hidden line begins with the line break before it; no white space is taken off a turn.
- A split is a function of the module's name: with n = int(md5(name), 16) % 100, it is test where n < {test}, val where
  n is {test} to {val_last}, and train else. A function half of whose runs of five words stood in an earlier one, in the
  order test, val, train, is left out.
- "program" of {tested} functions of test: "module", "function", "before" and "after" the gap, "until" (what is read of
  an answer: its first "line", or all to the end of the "function"), and up to {most_checks} "arguments" with what the
  function gives for them as "outcomes", which two runs agree about. With `pass` in the gap some outcome is another one.
- `code.json`: these counts, and the size and hash of every file.

Left out: {left_out}.

## Licence

{copyright}

Python's standard library is under the PSF License Agreement, version 2 (PSF-2.0), whose text is in LICENSE. Functions
are copied as they are, but for indentation of methods; some files of the library carry notices of their authors too.
"""


def messages_of(gap: Gap, kind: str) -> list[dict[str, str]]:
    """The turns of this kind; a question of the user is always there."""
    before = [{"role": "system", "content": gap.before}] * bool(gap.before)
    after = [{"role": "user", "content": gap.after}]
    turns = after + before if kind == "spm" else before + after
    return [*turns, {"role": "assistant", "content": gap.hidden}]


@dataclass(kw_only=True)
class Made:
    """Samples by (split, kind), what was left out, by why, and how many functions are tested."""

    samples: Counter[tuple[str, str]] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    tested: int = 0

    def rows(self) -> list[str]:
        counts = {kind: [f"{self.samples[split, kind]:,}" for split in reversed(SPLITS)] for kind in KINDS}
        return [f"| {kind} | {' | '.join(row)} |" for kind, row in counts.items()]

    def left(self) -> str:
        return ", ".join(f"{count:,} {why}" for why, count in sorted(self.left_out.items())) or "nothing"

    def tree(self) -> dict[str, Any]:
        samples = {split: {kind: self.samples[split, kind] for kind in KINDS} for split in reversed(SPLITS)}
        return {"samples": samples, "tested": self.tested, "left_out": dict(sorted(self.left_out.items()))}


KINDS = ("psm", "spm", "next", "prefix", "body")


def build(folder: Path, *, library: Path | None = None, tests: int = 200) -> None:
    """Write the data set into `folder`. `library`: a folder of modules, of which those are tested that Python has by
    the same name; without it the standard library of the Python that runs. `tests`: functions of test at most, tested
    ones first. UserError where programs cannot be confined."""
    require(tests > 0, f"--tests {tests} must be above 0")
    place = library or Path(sysconfig.get_path("stdlib"))
    refuse_unconfined()

    def write(partial: Path) -> tuple[dict[str, Any], str]:
        made = _write(partial, list(functions_of(place)), tests)
        require(bool(made.samples), f"{place} holds no function of {LINES[0]} to {LINES[1]} lines; give another folder")
        replace_file(partial / "README.md", _page(made))
        replace_file(partial / "LICENSE", _licence(place))
        counts = ", ".join(f"{sum(made.samples[split, kind] for split in SPLITS):,} {kind}" for kind in KINDS)
        return {"python": platform.python_version(), **made.tree()}, f"{counts}; {made.tested} functions are tested"

    build_folder(folder, "code", {"tests": tests, "python": platform.python_version(), "format": FORMAT}, write)


def _licence(place: Path) -> str:
    """Where Python was installed without its text, the notice alone, and where the text is."""
    file = place / "LICENSE.txt"
    told = f"{sys.copyright}\n\nPSF License Agreement, version 2: https://docs.python.org/3/license.html\n"
    return file.read_text(encoding="utf-8") if file.is_file() else told


def _page(made: Made) -> str:
    return README.format(
        least=LINES[0],
        most=LINES[1],
        version=platform.python_version(),
        rows="\n".join(made.rows()),
        test=TEST,
        val_last=VAL - 1,
        tested=made.tested,
        most_checks=MOST_CHECKS,
        left_out=made.left(),
        copyright="\n".join(f"> {line}" for line in sys.copyright.splitlines() if line),
    )


class Tested(NamedTuple):
    """A function of test, the line that is hidden of it, and how the line and the body are tested."""

    function: Function
    line: int
    of_line: Program | None
    of_body: Program | None


def tested_functions(functions: Sequence[Function], most: int) -> list[Tested]:
    """Of these, whose line is tested first, so many at most; in an order by hash, as are those of which nothing is."""
    ordered = sorted(functions, key=lambda one: _number(one.key))
    found, others = [], []
    for one in ordered:
        told = known(one)
        line = checked_line(told, _number(one.key)) if told else None
        if told and line:
            found.append(Tested(one, line[0], line[1], checked_body(told)))
        else:
            others.append(Tested(one, _drawn(one, "line"), None, None))
    return (found + others)[:most]


def _drawn(function: Function, what: str) -> int:
    gaps = function.gaps()
    return gaps[_number(f"{what} {function.key}") % len(gaps)]


def _number(text: str) -> int:
    return int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(), 16)


def _write(folder: Path, functions: Sequence[Function], tests: int) -> Made:
    """Test first: what it holds is left out of val and train."""
    made, seen = Made(), Seen()
    for split in SPLITS:
        own = [one for one in functions if split_of(one.module, TEST, VAL) == split]
        kept = [one for one in own if one.gaps() and seen.is_new(one.text)]
        made.left_out["without a line to hide"] += sum(not one.gaps() for one in own)
        made.left_out["nearly repeated"] += sum(bool(one.gaps()) for one in own) - len(kept)
        (folder / split).mkdir()
        if split == "test":
            chosen = tested_functions(kept, tests)
            made.tested = sum(one.of_line is not None for one in chosen)
            made.left_out["in test, beyond --tests"] += len(kept) - len(chosen)
            samples = [sample for one in chosen for sample in asked(one)]
        else:
            samples = [sample for one in kept for sample in learned(one)]
        _write_split(folder / split, samples)
        made.samples.update((split, sample["kind"]) for sample in samples)
    return made


def _write_split(folder: Path, samples: Sequence[dict[str, Any]]) -> None:
    for kind in KINDS:
        with ShardWriter(folder, kind, samples=SHARD_SAMPLES) as writer:
            for sample in samples:
                if sample["kind"] == kind:
                    writer.write(f"{kind}-{sample['key']}", {"json": as_json(sample)})
    if samples:
        shard_list.write_list(folder)


def learned(function: Function) -> Iterator[dict[str, Any]]:
    """In each of the two orders a line, and the whole function."""
    for kind in ("psm", "spm"):
        line = _drawn(function, kind)
        yield sample_of(function, kind, gap_of(function, line), line)
    yield sample_of(function, "next", gap_of(function, 0, len(function.lines)), 0)


def asked(one: Tested) -> Iterator[dict[str, Any]]:
    """The same line in both orders and without what follows, the whole, and the body where it is tested."""
    gap = gap_of(one.function, one.line)
    alone = gap._replace(after="")
    for kind, own in {"psm": gap, "spm": gap, "prefix": alone}.items():
        yield sample_of(one.function, kind, own, one.line, one.of_line)
    size = len(one.function.lines)
    yield sample_of(one.function, "next", gap_of(one.function, 0, size), 0)
    if one.of_body:
        body = gap_of(one.function, one.function.header, size)
        yield sample_of(one.function, "body", body, one.function.header, one.of_body)


def sample_of(function: Function, kind: str, gap: Gap, line: int, program: Program | None = None) -> dict[str, Any]:
    """The .json of a gap."""
    about = {"key": function.key, "module": function.module, "function": function.name, "line": line}
    told = {} if program is None else {"program": program._asdict()}
    return {"messages": messages_of(gap, kind), "kind": kind, **about, **told}
