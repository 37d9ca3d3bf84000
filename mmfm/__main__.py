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
from typing import Any

import mmfm
from mmfm.config import Run, UserError, one_line, require
from mmfm.config.extend import give
from mmfm.runtime import machine
from mmfm.runtime.process import TRY_AGAIN, Stopped

HELP = """\
usage: mmfm COMMAND ...

One model that reads and writes text, images and audio.

train and watch
  mmfm train CONFIG       train a run; --check says what it would do, --resume goes on, --optim.lr 3e-4 changes a value
  mmfm doctor CONFIG      look at all that a run would read, and say whether to train it
  mmfm plan CONFIG        say what it would take on GPUs that need not be here: --gpus 64 --device h100
  mmfm show CONFIG        write the first batch as a page: pictures, sounds, tokens, masks, and who takes what
  mmfm runs [FOLDER]      list runs: steps, best score, data, size

score and compare
  mmfm eval RUN [SUITE]   score a run on splits or a suite, each figure with its interval and chance level
  mmfm report RUN         write a page of curves, scores, pictures and sounds
  mmfm compare RUN RUN    say which differences of scored runs chance does not explain

use
  mmfm generate RUN TASK  make the target of a task, such as 'image>text' or 'text>image'
  mmfm embed RUN SHARDS   write the embeddings of pictures, sounds and texts, with their keys, as .npz
  mmfm chat RUN           talk with it: --image a.png --text 'What is this?'; a spoken question is an --audio

data
  mmfm data WHAT ...      build, index and encode shards; the data sets that come with mmfm

other programs
  mmfm import SOURCE OUT  make a bundle of an encoder, a language model or a whole CLIP of another library
  mmfm export RUN OUT     write a run for open_clip, transformers, timm, ONNX or torch.export

`mmfm COMMAND --help` lists the options of a command. --extension FILE, anywhere, gives the Python file of an objective
of one's own, without which a run that was trained with it cannot be opened; the file is executed. --debug, anywhere,
shows the traceback of an error. --version prints the version.

Exit status: 0 done; 1 the machine failed (disk, memory, a killed process), or mmfm did, which the line then says;
2 a mistake in what was given; 75 stopped by SIGTERM or SIGUSR1 and saved, `mmfm train ... --resume` goes on;
130 Ctrl-C; 141 the reader of the output has gone.
"""

# Packages that only some need, and the extra of pyproject.toml that brings each.
EXTRAS: dict[str, str] = dict.fromkeys(("timm", "open_clip", "transformers", "torchvision"), "encoders")
EXTRAS |= {"gguf": "weights", "datasets": "data", "s3fs": "remote", "google": "remote"}
EXTRAS |= dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "export")


FLAGS = {"--check", "--resume", "--force"}


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
    from mmfm.cli import COMMANDS, PlanArgs, Train

    name, *rest = words
    require(name in COMMANDS, f"there is no command {name!r}; there are {', '.join(COMMANDS)}{nearest(name, COMMANDS)}")
    kind = COMMANDS[name]
    if isinstance(kind, dict):
        return nested(kind, rest, f"mmfm {name}")
    if kind not in (Train, PlanArgs):
        return parse(kind, rest, f"mmfm {name}")
    from mmfm.config.load import read_run

    if rest and rest[0] in ("-h", "--help"):
        return parse(kind, rest, f"mmfm {name} CONFIG", kind(run=Run(name="NAME")))
    told = f"mmfm {name} needs a configuration first: mmfm {name} CONFIG ..."
    require(bool(rest) and not rest[0].startswith("-"), told)
    run = read_run(rest[0])
    if kind is Train and set(rest[1:]) <= FLAGS:  # tyro takes a second to learn all options of a run
        return Train(run=run, **{word.removeprefix("--"): True for word in rest[1:]})
    return parse(kind, rest[1:], f"mmfm {name} {rest[0]}", kind(run=run))


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
    """tyro's reading of the words. What it says of a mistake stays its own; a UserError of ours is one line."""
    import tyro

    given = {} if default is None else {"default": default}
    markers = (tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalMetavarFromFieldName)
    screen = io.StringIO()  # has no encoding: what is drawn there is plain, whatever the terminal
    shown = sys.stdout if {"-h", "--help"} & set(words) else screen
    try:
        with contextlib.redirect_stderr(screen), contextlib.redirect_stdout(shown):
            return tyro.cli(kind, prog=program, args=words, config=markers, **given)
    except SystemExit as exit:
        ours = next((error for error in causes(exit) if isinstance(error, UserError)), None)
        if exit.code and ours is not None:
            raise ours from exit
        print(screen.getvalue(), end="", file=sys.stderr)
        raise


def nearest(word: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(word.partition("=")[0].replace("_", "-"), list(known), n=3, cutoff=0.7)
    return f"; the nearest are {', '.join(found)}" if found else ""


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
