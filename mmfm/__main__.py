"""The command line: parse first, import torch after. A mistake is one line and exit status 2; --debug shows the rest.

Exit status: 0 done, 1 a fault of the machine or the program, 2 a mistake in the input, 75 stopped by SIGTERM or SIGUSR1
after saving, to be started again with --resume, 130 interrupted, 141 no reader.
"""

import contextlib
import difflib
import io
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import mmfm
from mmfm.config import Run, UserError, one_line, require
from mmfm.config.extend import give
from mmfm.runtime import machine
from mmfm.runtime.process import TRY_AGAIN, Stopped

HELP = """\
usage: mmfm COMMAND ...

One model that reads and writes text, images and audio.

  mmfm train CONFIG [--check] [--resume] [--force] [--optim.lr 3e-4 ...]
  mmfm doctor CONFIG [--html FILE] [--json FILE] [--samples N] [--quick]
  mmfm eval RUN --data SHARDS [SHARDS ...] [--out results.json] [--ranks N]
  mmfm eval RUN SUITE.py [--root FOLDER]
  mmfm generate RUN TASK [--image FILE] [--audio FILE] [--text TEXT] [--out FILE]
  mmfm data numbers|stamps|judges FOLDER
  mmfm data build INPUT OUT [--image COLUMN] [--audio COLUMN] [--text COLUMN]
  mmfm data index FOLDER
  mmfm data encode RUN SHARDS OUT
  mmfm report RUN
  mmfm compare RUN RUN ... [--out compare.html] [--json FILE]
  mmfm import SOURCE OUT [--modality image|audio|text|trunk] [--layout native|wrapped|auto]
  mmfm export RUN OUT --to open_clip|hf|timm|onnx|torch_export

`mmfm COMMAND --help` lists the options of a command. --extension FILE, anywhere, gives the Python file of an objective
of one's own, without which a run that was trained with it cannot be opened; the file is executed. --debug, anywhere,
shows the traceback of an error.
--version prints the version.

Exit status: 0 done; 1 the machine failed (disk, memory, a killed process), or mmfm did, which the line then says;
2 a mistake in what was given; 75 stopped by SIGTERM or SIGUSR1 and saved, `mmfm train ... --resume` goes on;
130 Ctrl-C; 141 the reader of the output has gone.
"""

WORDS = {
    r"^Error parsing ": "",
    r"invalid literal for int\(\) with base 10: (.*)": r"\1 is no whole number",
    r"could not convert string to float: (.*)": r"\1 is no number",
    r"no type matching .* could be instantiated from \[('.*')\]\. Got errors.*": r"\1 is no number",
    r"^Missing from ([\w ]+):": r"\1 needs",
}  # tyro's and Python's words, and ours

# Packages that only some need, and the extra of pyproject.toml that brings each.
EXTRAS: dict[str, str] = dict.fromkeys(("timm", "open_clip", "transformers", "torchvision"), "encoders")
EXTRAS |= {"gguf": "weights", "datasets": "data", "s3fs": "remote", "google": "remote"}
EXTRAS |= dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "export")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    machine.spare_threads()  # before torch is imported, which reads it once
    try:
        run(with_extensions(words))
        sys.stdout.flush()  # here a reader that has gone is noticed in time
        return 0
    except BaseException as error:
        if debug:
            traceback.print_exc()
        return report(error, words[:1] == ["train"])


def with_extensions(words: list[str]) -> list[str]:
    """The words without each `--extension FILE`, which is executed: what a run of one's own needs to be opened."""
    rest, files = [], []
    waiting = iter(words)
    for word in waiting:
        name, _, file = word.partition("=")
        if name == "--extension":
            files.append(file or next(waiting, ""))
        else:
            rest.append(word)
    give(files)
    return rest


def run(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(HELP, end="")
    elif words[0] == "--version":
        print(f"mmfm {mmfm.__version__}")
    else:
        command(words)()


def command(words: list[str]) -> Any:
    """The command that the words ask for, ready to be called."""
    from mmfm.cli import COMMANDS, Train

    name, *rest = words
    require(name in COMMANDS, f"there is no command {name!r}; there are {', '.join(COMMANDS)}{nearest(name, COMMANDS)}")
    kind = COMMANDS[name]
    if isinstance(kind, dict):
        return nested(kind, rest, f"mmfm {name}")
    if kind is not Train:
        return parse(kind, rest, f"mmfm {name}")
    from mmfm.config.load import read_run

    if rest and rest[0] in ("-h", "--help"):
        return parse(Train, rest, "mmfm train CONFIG", Train(run=Run(name="NAME")))
    require(bool(rest) and not rest[0].startswith("-"), "mmfm train needs a configuration first: mmfm train CONFIG ...")
    return parse(Train, rest[1:], f"mmfm train {rest[0]}", Train(run=read_run(rest[0])))


def nested(kinds: dict[str, type], words: list[str], program: str) -> Any:
    """One of several commands under one name, ready to be called."""
    name, *rest = words or [""]
    if name in ("-h", "--help"):
        lines = [f"  {program} {kind}: {(kinds[kind].__doc__ or '').splitlines()[0]}" for kind in kinds]
        print("\n".join([f"usage: {program} WHAT ...", "", *lines, "", f"`{program} WHAT --help` lists its options."]))
        raise SystemExit(0)
    known = f"{program} needs one of {', '.join(kinds)}"
    require(name in kinds, f"{known}, not {name!r}{nearest(name, kinds)}" if name else f"{known}; see {program} --help")
    return parse(kinds[name], rest, f"{program} {name}")


def parse(kind: type, words: list[str], program: str, default: Any = None) -> Any:
    """tyro's reading of the words, with its boxes of several lines turned into the house's one."""
    import tyro

    given = {} if default is None else {"default": default}
    markers = (tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalMetavarFromFieldName)
    screen = io.StringIO()  # has no encoding: what is drawn there is plain, whatever the terminal
    shown = sys.stdout if {"-h", "--help"} & set(words) else screen
    try:
        with contextlib.redirect_stderr(screen), contextlib.redirect_stdout(shown):
            value, unknown = tyro.cli(kind, prog=program, args=words, config=markers, return_unknown_args=True, **given)
    except SystemExit as exit:
        if not exit.code:
            raise
        ours = next((error for error in causes(exit) if isinstance(error, UserError)), None)
        raise ours or UserError(f"{sentence(screen.getvalue())}; see {program} --help") from exit
    if unknown:
        word, options = unknown[0], names(kind if default is None else default)
        what = (
            f"there is no option {word!r}{nearest(word, options)}" if word[0] == "-" else f"{word!r} is a word too many"
        )
        raise UserError(f"{what}; see {program} --help")
    return value


def names(owner: Any, prefix: str = "--") -> Iterator[str]:
    """The options that tyro makes of a dataclass, or of an instance with all that it holds."""
    kinds = get_type_hints(owner if isinstance(owner, type) else type(owner))
    for field in fields(owner):
        name = prefix + field.name.replace("_", "-")
        value = None if isinstance(owner, type) else getattr(owner, field.name)
        parts = value if isinstance(value, tuple) else ()
        if value in ((), None) and any(is_dataclass(kind) for kind in get_args(kinds[field.name])):
            continue  # tyro cannot add to a list of these, nor build what is not there
        if isinstance(value, Run):
            yield from names(value)
        elif is_dataclass(value):
            yield from names(value, f"{name}.")
        elif parts and is_dataclass(parts[0]):
            for i, part in enumerate(parts):
                yield from names(part, f"{name}.{i}.")
        else:
            yield f"{prefix}no-{name.removeprefix(prefix)}" if value is True else name  # the flag is what changes it


def nearest(word: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(word.partition("=")[0].replace("_", "-"), list(known), n=3, cutoff=0.7)
    return f"; the nearest are {', '.join(found)}" if found else ""


def sentence(screen: str) -> str:
    """What a box says between its first two rules, without the deeper indented help, on one line."""
    parts = re.split(r"^ *-{8,} *$", screen, flags=re.MULTILINE)
    told = [line for line in parts[len(parts) > 1].splitlines() if not line.startswith(" " * 10)]
    said = " ".join(" ".join(told).split())
    for pattern, ours in WORDS.items():
        said = re.sub(pattern, ours, said)
    return said[:1].lower() + said[1:].rstrip(".")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def report(error: BaseException, training: bool = False) -> int:
    """Says in one line what went wrong, and returns the exit status."""
    if any(isinstance(cause, KeyboardInterrupt) for cause in causes(error)):  # Lightning exits by SystemExit
        return say("interrupted" + training * "; --resume continues from the last checkpoint", 130)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else say(str(error.code), 1) if error.code else 0
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter's last flush would complain
        return 141
    if isinstance(error, Stopped):
        return say(str(error), TRY_AGAIN)
    if isinstance(error, UserError):
        return say(str(error.args[-1]) if error.args else "", 2)
    if isinstance(error, ModuleNotFoundError) and (extra := EXTRAS.get((error.name or "").partition(".")[0])):
        return say(f"the package {error.name} is not installed; pip install 'mmfm[{extra}]' brings it", 2)
    if (told := machine.trouble(error)) is not None:
        return say(told if training else told.replace(machine.RESUME, machine.AGAIN), 1)
    told = str(error).strip()  # one of a loader process is a traceback, which ends with a line
    return say(f"{type(error).__name__}: {told}; this is a fault of mmfm, --debug shows where", 1)


def say(message: str, status: int) -> int:
    """A worker process hands over an error as a whole traceback, of which only the last line is meant for people."""
    last = message.strip().splitlines()[-1] if "Traceback (most recent call last)" in message else message
    line = one_line(re.sub(r"^[\w.]*(UserError|BadSample): ", "", last))
    print(f"mmfm: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
