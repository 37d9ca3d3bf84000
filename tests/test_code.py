"""The set `code`, from a small library that is made here, and pass@1 of answers that are known to be right or wrong."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from mmfm.config import CHATML, ChatTemplate, UserError
from mmfm.data.shards import Shards
from mmfm.datasets import python_functions
from mmfm.datasets.debian import split_of
from mmfm.datasets.function_checks import Program, checked_body, checked_line, known
from mmfm.datasets.function_source import functions_in, gap_of
from mmfm.evals.answer_metrics import Told, answer_scores, line_similarity
from mmfm.evals.pass_at import in_gap, passes, program_of
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.chat import encode_chat, parse_messages
from mmfm.preprocessing.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from mmfm.runtime import limited
from mmfm.runtime.python_calls import outcomes

CLAMP = '''\
def clamp(value, low):
    """At least this."""
    if value < low:
        value = low
    return value
'''
CLASS = """\
import os

class Thing:
    @property
    def size(self):
        # how many there are
        total = len(self.own)
        return total * SCALE

def short(): return 1

async def later(one):
    two = await one
    three = two + 1
    four = three + 2
    return four
"""
TURNS = {"psm": ["system", "user", "assistant"], "spm": ["user", "system", "assistant"]}


def module_of(split: str, number: int = 0) -> str:
    """One that Python has, as functions are called in the names of theirs."""
    names = ("copy", "json", "struct", "heapq", "textwrap", "math")
    return [name for name in names if split_of(name, python_functions.TEST, python_functions.VAL) == split][number]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module for each split and a second one of train, which repeats what test has; and what is no module."""
    folder = tmp_path_factory.mktemp("library")
    other = "def {0}_sum(values):\n    {0}_total = 0\n    for {0}_one in values:\n        {0}_total += {0}_one * {1}\n"
    other += "    return {0}_total + {1}\n"
    for number, split in enumerate(("test", "val", "train")):
        text = CLAMP if split == "test" else other.format(split, number)
        (folder / f"{module_of(split)}.py").write_text("import math\n\n\n" + text)
    (folder / f"{module_of('train', 1)}.py").write_text(CLAMP)
    (folder / f"{module_of('test', 1)}.py").write_text(CLASS)
    (folder / "broken.py").write_text("def (:\n")
    (folder / "test").mkdir()
    (folder / "test" / "skipped.py").write_text(CLAMP)
    return folder


@pytest.fixture(scope="module")
def built(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code") / "code"
    python_functions.build(folder, library=library)
    return folder


def read(folder: Path, pattern: str = "*.tar") -> list[dict[str, Any]]:
    shards = Shards(sorted(folder.glob(pattern)))
    return [json.loads(shards[at].parts["json"]) for at in range(len(shards))]


def joined(sample: dict[str, Any]) -> str:
    """The function again, whatever the order of turns."""
    order = {"system": 0, "assistant": 1, "user": 2}
    turns = sorted(sample["messages"], key=lambda turn: order[turn["role"]])
    return "".join(turn["content"] for turn in turns)


def test_a_gap_and_what_is_around_it_are_the_function_again() -> None:
    """Methods lose their indentation, decorators stay; comments and headers are never hidden."""
    size, later = functions_in(CLASS, "things")
    assert size.text.startswith("@property\ndef size(self):\n    # how") and (size.name, later.name) == (
        "size",
        "later",
    )
    assert size.gaps() == [3] and later.gaps() == [1, 2, 3]
    for function in (size, later):
        assert function.parameters is None
        for at in function.gaps():
            assert "".join(gap_of(function, at)) == function.text
            assert gap_of(function, at).hidden == "\n" + function.lines[at]
    assert gap_of(size, 0, len(size.lines)) == ("", size.text, "")


def test_the_header_holds_the_docstring_and_parameters_are_those_that_must_be_given() -> None:
    (clamp,) = functions_in(CLAMP, "m")
    assert (clamp.header, clamp.parameters, clamp.gaps()) == (2, 2, [2, 3])
    named = "def f(a, b=1, *rest, {}):\n    x = a\n    y = x\n    z = y\n    return z\n"
    (some,), (none,) = (functions_in(named.format(last), "m") for last in ("last=2", "last"))
    assert (some.parameters, none.parameters) == (2, None)


def test_the_set_has_no_function_in_two_splits(built: Path) -> None:
    """What test has is in no other, though a module of train says the same."""
    found = {split: {joined(one) for one in read(built / split)} for split in ("train", "val", "test")}
    assert not found["train"] & found["test"] and not found["train"] & found["val"]
    assert {sample["module"] for sample in read(built / "train")} == {module_of("train")}
    manifest = json.loads((built / "code.json").read_text())
    assert manifest["left_out"]["nearly repeated"] == 1 and manifest["tested"] == 1
    assert manifest["samples"]["train"] == {"psm": 1, "spm": 1, "next": 1, "prefix": 0, "body": 0}
    assert "| body | 0 | 0 | 1 |" in (built / "README.md").read_text()
    assert (built / "LICENSE").read_text().startswith("Copyright")


def test_turns_are_in_the_order_of_their_kind(built: Path) -> None:
    for split in ("train", "test"):
        for kind, roles in TURNS.items():
            for sample in read(built / split, f"{kind}-*.tar"):
                assert [turn["role"] for turn in sample["messages"]] == roles and sample["kind"] == kind
    by_kind = {sample["kind"]: sample for sample in read(built / "test") if sample["function"] == "clamp"}
    assert joined(by_kind["psm"]) == joined(by_kind["spm"]) == CLAMP.rstrip()
    assert joined(by_kind["body"]) == joined(by_kind["next"]) == CLAMP.rstrip()
    assert by_kind["prefix"]["messages"][1] == {"role": "user", "content": ""}
    assert joined(by_kind["prefix"]) + by_kind["psm"]["messages"][1]["content"] == CLAMP.rstrip()


def test_the_same_library_gives_the_same_bytes(built: Path, library: Path, tmp_path: Path) -> None:
    python_functions.build(tmp_path / "again", library=library)
    first, second = (json.loads((place / "code.json").read_text()) for place in (built, tmp_path / "again"))
    assert first["files"] == second["files"] and len(first["files"]) > 6


def test_a_library_without_functions_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no function of 5 to 12 lines"):
        python_functions.build(tmp_path / "code", library=tmp_path / "empty")
    monkeypatch.setattr(limited, "LIBRARY", "libnothing.so.2")
    with pytest.raises(UserError, match="libnothing"):
        python_functions.build(tmp_path / "code", library=tmp_path / "empty")


def test_what_a_function_gives_is_plain_data_of_a_program_with_limits() -> None:
    """Names of its module are there; errors and objects are none; changed arguments are told; builtins that it hides
    and what it prints change nothing."""
    code = "def repr(a, b=0):\n    print('[1]')\n    a += dedent('  x')\n    return [a, {2, 1}]\n"
    assert outcomes("textwrap", code, "repr", ["('y',)", "(1,)"]) == ["list('yx', set(1, 2))", None]
    grow = "def grow(a):\n    a.append(len(a))\n"
    assert outcomes("os", grow, "grow", ["([],)"]) == ["None and changes its arguments to tuple(list(0))"]
    assert outcomes("os", "def f(a):\n    return object()\n", "f", ["(1,)"]) == [None]
    assert outcomes("os", "def f(a):\n    yield a\n", "f", ["(1,)"]) == ["list(1)"]


@pytest.mark.parametrize("body", ["while True: pass", "os._exit(0)", "raise SystemExit", "return (", "os.fork()"])
def test_a_function_that_ends_its_program_gives_nothing(body: str) -> None:
    found = outcomes("os", f"def f(a):\n    {body}\n", "f", ["(1,)"])
    assert found is None or found == [None]


def test_a_function_writes_and_reaches_nothing(tmp_path: Path) -> None:
    place = tmp_path / "new"
    code = f"def f(a):\n    open({str(place)!r}, 'w')\n    return 1\n"
    assert outcomes("os", code, "f", ["(1,)"]) == [None] and not place.exists()
    assert outcomes("socket", "def f(a):\n    return socket().fileno() > 0\n", "f", ["(1,)"]) == [None]


@pytest.fixture(scope="module")
def programs() -> dict[str, Program]:
    (clamp,) = functions_in(CLAMP, "math")
    told = known(clamp)
    assert told is not None
    line, body = checked_line(told, 1), checked_body(told)
    assert line is not None and body is not None and line[0] == 3, "`if` is no whole statement"
    return {"line": line[1], "function": body}


def test_nothing_is_tested_that_asks_the_clock_or_does_not_miss_its_line() -> None:
    """Two runs of the first agree, within a second; of the second all outcomes are one."""
    clock = CLAMP.replace("value = low", "value = time.time() // 1e9")
    (asks, same) = (next(functions_in(text, "time")) for text in (clock, CLAMP.replace("return value", "return 1")))
    assert known(asks) is None and known(same) is None
    (idle,) = functions_in(CLAMP.replace("value = low", "value = value"), "math")
    told = known(idle)
    assert told is not None and checked_line(told, 0) is None and checked_body(told) is not None


def test_the_right_line_passes_and_pass_or_a_wrong_one_does_not(programs: dict[str, Program]) -> None:
    line = programs["line"]
    assert passes("\n        value = low", line) == 1.0
    assert passes("\n        value = low\n    nonsense(", line) == 1.0, "one line alone stands in the gap"
    assert passes("\n        value = max(low, value)", line) == 1.0, "other words that do the same"
    for wrong in (
        "\n        pass",
        "\n        value = value",
        "\n        low = value",
        "\n    value = low",
        "",
        "\n  (",
    ):
        assert passes(wrong, line) == 0.0, wrong


def test_a_body_passes_up_to_what_is_no_part_of_it(programs: dict[str, Program]) -> None:
    body = programs["function"]
    assert body.after == "" and body.before.endswith('"""At least this."""')
    right = "\n    if low > value:\n        return low\n\n    return value"
    assert passes(right + "\n\ndef other(:\n    x", body) == 1.0
    for wrong in ("\n    pass", "\n    return value", "\n    return low", "\nreturn value"):
        assert passes(wrong, body) == 0.0, wrong


def test_strange_code_cannot_say_that_it_is_right(programs: dict[str, Program]) -> None:
    """It is not told what is right, and what it prints as an answer is not that of the calls."""
    line = programs["line"]
    forged = json.dumps([*line.outcomes[:-1], "x"])
    assert passes(f"\n        value = low; print({forged!r})", line) == 1.0, "what it prints is not read"
    assert passes(f"\n        import os; os.write(1, {forged.encode()!r}); os._exit(0)", line) == 0.0


@pytest.mark.parametrize(
    "written, until, expected",
    [
        ("\n    a\n    b", "line", "\n    a"),
        ("\n\n  \n    a", "line", "\n    a"),
        (" a\nb", "line", " a"),
        ("", "line", ""),
        ("\n    a\n\n    b\nc\n    d", "function", "\n    a\n\n    b"),
        ("\n    a", "function", "\n    a"),
        ("\na\n    b", "function", ""),
    ],
)
def test_what_of_an_answer_stands_in_the_gap(written: str, until: str, expected: str) -> None:
    assert in_gap(written, until).rstrip("\n") == expected


def test_a_program_that_is_none_is_refused(programs: dict[str, Program]) -> None:
    good = json.loads(json.dumps(programs["line"]._asdict()))
    assert program_of(good, "here") == programs["line"] and program_of(None, "here") is None
    broken = [[], {**good, "module": "os; import x"}, {**good, "until": "end"}, {**good, "outcomes": []}]
    for tree in (*broken, {**good, "arguments": [1]}, {**good, "function": None}):
        with pytest.raises(BadSample, match='here: its "program" must have') as error:
            program_of(tree, "here")
        assert error.value.code == "messages_program"


def test_pass_at_1_is_of_those_that_have_a_program(programs: dict[str, Program]) -> None:
    line = programs["line"]
    told = Told(["\n        value = low", "\n  x", "y"], [["value = low"]] * 3, ["a", "b", "c"], [], [line, line, None])
    (score,) = answer_scores("code", told, ("pass",))
    assert (score.metric, score.value, score.n, score.items) == ("pass_at_1", 0.5, 2, ("a", "b"))
    assert answer_scores("code", told._replace(programs=[None] * 3), ("pass",)) == []
    assert line_similarity("\n  abc\nd", ["abd"]) == pytest.approx(2 / 3)


def test_a_template_that_strips_nothing_keeps_indentation() -> None:
    """The ids are those of the three parts as they are; with `strip` they are of the stripped ones."""
    tokenizer = load_tokenizer("bytes")
    plain = ChatTemplate(system=("<p>", ""), user=("<s>", ""), assistant=("<m>", ""), strip=False)
    turns = [("system", "def f():"), ("user", "\n    return x"), ("assistant", "\n    x = 1 \n")]
    messages = parse_messages([{"role": role, "content": text} for role, text in turns], "here")
    found = encode_chat(messages, plain, tokenizer)
    learned = [token for token, learn in zip(found.ids, found.learn, strict=True) if learn]
    assert learned == [*b"\n    x = 1 \n", -3]
    assert found.ids == [*b"<p>def f():<s>\n    return x<m>\n    x = 1 \n", -3]
    stripped = encode_chat(messages, replace(plain, strip=True), tokenizer)
    assert stripped.ids == [*b"<p>def f():<s>return x<m>x = 1", -3]


def test_parts_are_tokenised_as_the_whole_text_is() -> None:
    """Because a gap begins at a line break: with byte pairs that join spaces, as GPT-2's do."""
    (clamp,) = functions_in(CLAMP, "m")
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(train_tokenizer([CLAMP, CLASS], 400).to_json()))
    for at in clamp.gaps():
        parts = [tokenizer.encode(part) for part in gap_of(clamp, at)]
        assert np.concatenate(parts).tolist() == tokenizer.encode(clamp.text)
    assert CHATML.strip
