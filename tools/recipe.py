"""Runs a recipe from an empty folder: the commands in the docstring of a configuration, one after the other.

    python tools/recipe.py configs/adapt/code.py [--optim.precision fp32 --model.adapters.0.base fp32]

What is there is kept: a bundle, a data set and a finished run are not made again, and a training that was stopped goes
on. Words behind the configuration are for its `mmfm train`. Commands that want a picture or a question of yours are
shown at the end. `make recipe CONFIG=configs/adapt/code.py` installs what it needs before.
"""

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

MADE, RUN, YOURS = ("import", "data"), ("train", "eval", "report"), ("chat", "generate", "embed")
BEFORE = re.compile(r"^    \((?:the bundle and data|all) of (\S+)\)$", re.MULTILINE)
Command = list[str]


def commands_of(config: Path) -> list[Command]:
    """The words of each `mmfm` line of the docstring; first what is made by those of another one that it names."""
    text = ast.get_docstring(ast.parse(config.read_text("utf-8")), clean=False) or ""
    found: list[Command] = []
    for other in BEFORE.findall(text):
        found += [words for words in commands_of(Path(other)) if words[1] in MADE]
    found += [shlex.split(line, comments=True) for line in re.findall(r"^    (mmfm .+)$", text, re.MULTILINE)]
    if not any(words[1] == "train" for words in found):
        raise SystemExit(f"{config} shows no `mmfm train` in its docstring, so it is no recipe")
    return found


def steps_of(commands: Sequence[Command], config: Path, more: Sequence[str]) -> tuple[list[Command], list[Command]]:
    """What is to be run here and now, and what is for the reader."""
    steps, yours = [], []
    for words in commands:
        kind, *rest = words[1:]
        if kind in YOURS:
            yours.append(words)
        elif kind == "import" and Path(rest[-1]).exists():
            print(f"{rest[-1]} is there")
        elif kind == "train":
            name = rest[rest.index("--name") + 1] if "--name" in rest else _name(Path(rest[0]))
            resume = ["--resume"] * any((Path("runs") / name / "checkpoints").glob("step-*"))
            steps.append([*words, *(more if Path(rest[0]) == config else ()), *resume])
        else:
            steps.append(words)
    return steps, yours


def _name(config: Path) -> str:
    from mmfm.config.load import read_run

    return read_run(config).name


def main(
    words: Sequence[str], run: Callable[[Command], int] = lambda one: subprocess.run(one, check=False).returncode
) -> int:
    """The status of the first command that fails, else 0."""
    if not words or not Path(words[0]).is_file():
        raise SystemExit(f"{' '.join(words[:1]) or 'no file'}: give a configuration, such as configs/adapt/code.py")
    config, more = Path(words[0]), words[1:]
    commands = commands_of(config)
    yours: list[Command] = []
    for command in commands:
        steps, own = steps_of([command], config, more)  # one by one: the earlier ones make what later ones look for
        yours += own
        for step in steps:
            print(f"$ {shlex.join(step)}", flush=True)
            if status := run([sys.executable, "-m", *step]):
                return status
    for command in yours:
        print(f"now yours: {shlex.join(command)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # the command has said what it saved; the same words go on
        sys.exit(130)
