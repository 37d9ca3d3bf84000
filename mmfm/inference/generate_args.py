"""What `mmfm generate` can be asked, checked before torch is imported. What a field's docstring says is its help."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import tyro

from mmfm.config import MODALITIES, Generative, UserError, require
from mmfm.config.task import Task, parse_chain
from mmfm.inference.chat_args import files_in
from mmfm.inference.known_tasks import links_of

SUFFIX = {"image": ".png", "audio": ".wav"}
NAMES = {"text": "text", "image": "picture", "audio": "sound"}
PLACES = ("run", "task", "out", "num_samples", "ema", "device", "dtype", "force", "texts", "json", *MODALITIES)


@dataclass(frozen=True, kw_only=True)
class GenerateArgs:
    """A task, what it reads, and how its target is to be made."""

    run: tyro.conf.Positional[str]
    """The run's folder, such as runs/quickstart."""
    task: tyro.conf.Positional[str]
    """Sources > target."""
    image: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A .png, .jpg or .webp to read, or to fill in; a folder: each of its pictures on its own."""
    audio: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A .wav, .flac, .ogg or .mp3 to read, to continue or to fill in; a folder: each of its sounds on its own."""
    text: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A text to read; or to fill in, with a _ for each token to be found."""
    texts: str = ""
    """A file of texts, one a line, each to be read on its own."""
    mask: str = ""
    """What to make anew: a fraction, or left, right, top or bottom of a picture, or seconds of a sound: 0.5-1.0."""
    out: str = ""
    """The .png or .wav to write; several pictures are one sheet, or with {} in the name a file each. Of a folder
    {} is the name of what was read, of --texts the number of the line."""
    num_samples: int = 1
    """How many to make, with seeds one after the other; texts a line each."""
    batch_size: int = 0
    """How many to make at a time; 0: all at once, and of a folder or --texts 16. It changes no result, only the
    memory."""
    ema: bool = False
    """The moving average of a run's weights, which optim.ema keeps."""
    device: str = "auto"
    """Where to compute: cpu, or cuda; auto: on a GPU if there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    """In which precision; auto: on a GPU as it was trained, else float32; int8: the trunk in 8 bits, on a CPU."""
    force: bool = False
    """Replace the files of --out that are there."""
    seed: int = 0
    """Of all draws: the same gives the same."""
    temperature: float | Literal["auto"] = "auto"
    """0: always the likeliest; 1: as the model believes. auto: 0 for texts, 1 for pictures and sounds."""
    top_k: int = 0
    """Draw among so many of the likeliest; 0: among all."""
    top_p: float = 1.0
    """Draw among the likeliest that together have this chance."""
    min_p: float = 0.0
    """Draw among those with this part of the likeliest one's chance."""
    num_beams: int = 1
    """Look for the likeliest with so many beams, and draw nothing."""
    guidance: float = 1.0
    """How far to follow the sources: above 1 farther. The task must have been trained with drop."""
    best_of: int = 1
    """Draw so many, and keep the one that the model finds nearest to its sources."""
    num_steps: int = 0
    """In how many rounds to fill in; 0: eight."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """End a text before this."""
    repetition_penalty: float = 1.0
    """Above 1: what was read or written before is less likely."""
    min_tokens: int = 0
    """Before so many tokens a text or a sound does not end."""
    max_tokens: int = 0
    """Where to stop at the latest; 0: after 64 tokens of a text, 4 seconds of a sound. A picture has its own number."""

    json: bool = False
    """Print a line of JSON for each text: what was read if it is of several, "text", and "finish": "length" where it
    was cut."""
    logprobs: bool = False
    """With --json: the logarithm of the chance of each token and of the end."""

    @property
    def given(self) -> dict[str, Any]:
        """What `Interface.generate` is told; what is as by default is left out."""
        return {name: list(files) for name in MODALITIES if (files := getattr(self, name))} | self.how

    @property
    def how(self) -> dict[str, Any]:
        """The same without what is read."""
        own = [field for field in fields(self) if field.name not in PLACES]
        return {f.name: value for f in own if (value := getattr(self, f.name)) != f.default}

    @property
    def several(self) -> str:
        """The modality of which a folder or a file of lines is given; empty: one sample."""
        folders = [kind for kind in SUFFIX for one in getattr(self, kind) if Path(one).is_dir()]
        return "text" if self.texts else "".join(folders[:1])

    def samples(self) -> list[tuple[str, dict[str, list[str]]]]:
        """For each file of the folder, or each line of --texts: itself, and what is read with it."""
        held = {name: list(getattr(self, name)) for name in MODALITIES if getattr(self, name)}
        if self.several == "text":
            return [(line, held | {"text": [*self.text, line]}) for line in lines_of(Path(self.texts))]
        place = next(at for at, one in enumerate(held[self.several]) if Path(one).is_dir())
        before, after = held[self.several][:place], held[self.several][place + 1 :]
        files = files_in(Path(held[self.several][place]), self.several)
        return [(file, held | {self.several: [*before, file, *after]}) for file in files]

    def names(self) -> list[str]:
        """The files that are to be written. UserError: two of them are one."""
        if not self.out:
            return []
        if not self.several:
            return names_of(self.out, self.num_samples)
        made = [one for one, _ in self.samples()]
        if self.several == "text":
            return names_of(self.out, len(made))
        held: dict[str, str] = {}
        for file in made:
            name = self.out.replace("{}", Path(file).stem)
            require(name not in held, f"--out: {held.get(name)} and {file} would both be {name}; give one another name")
            held[name] = file
        return list(held)

    def check(self, writes: Sequence[Generative] | None = None) -> None:
        """UserError for what is wrong. writes: what the model was trained to write; None: that is not known yet."""
        links = parse_chain(self.task) if writes is None else links_of(self.task, writes)
        _check_given(self, links[0])
        heat, beams = self.temperature, self.num_beams
        require(self.max_tokens >= 0, f"--max-tokens {self.max_tokens} must not be negative; 0: as usual")
        require(heat == "auto" or heat >= 0, f"--temperature {heat} must not be negative")
        require(self.num_samples > 0, f"--num-samples {self.num_samples} must be greater than 0")
        require(self.batch_size >= 0, f"--batch-size {self.batch_size} must not be negative; 0: all at once")
        auto = beams == 1 and links[-1].target != "text"
        drawn = auto if heat == "auto" else heat > 0
        drawn = drawn or any(link.target != "text" for link in links[:-1])
        one, times = NAMES[str(links[-1].target)], self.num_samples
        told = f"--num-samples {times} would write one {one} {times} times; set --temperature"
        told += ", and leave out --num-beams" * (beams > 1)
        require(self.num_samples == 1 or drawn, told)
        check_out(self.out, self.task, str(links[-1].target), self.num_samples)
        _check_several(self, str(links[-1].target))
        text = links[-1].target == "text"
        require(text or not self.json, f"--json prints texts, and task {self.task!r} makes a {one}; leave it out")
        require(self.json or not self.logprobs, "--logprobs are printed by --json; add it")
        there = [name for name in self.names() if Path(name).exists()]
        told = f"--out: {', '.join(there[:2])}{' and others are' if there[2:] else ' is'} there already"
        require(self.force or not there, f"{told}; give another name, or --force replaces it")


def _check_given(asked: GenerateArgs, first: Task) -> None:
    given = {name for name in MODALITIES if getattr(asked, name)} | ({"text"} if asked.texts else set())
    sources = set(first.sources)
    for name in sorted(sources - given):
        require(False, f"task {asked.task!r} reads {name}, and none is given; add --{name}")
    for name in sorted(given - sources - ({str(first.target)} if first.fill else set())):
        flag = "--texts" if name == "text" and asked.texts else f"--{name}"
        require(False, f"task {asked.task!r} does not read {name}; leave out {flag}, or name it in the task")
    for name in sorted(given - {"text"}):
        for file in getattr(asked, name):
            require(Path(file).exists(), f"--{name}: there is no file {file!r}; check the path")


def _check_several(asked: GenerateArgs, target: str) -> None:
    """UserError where a folder or --texts does not go with the rest."""
    folders = sum(Path(one).is_dir() for kind in SUFFIX for one in getattr(asked, kind))
    told = "only one of --image, --audio and --texts can stand for several; give the others one by one"
    require(folders + bool(asked.texts) <= 1, told)
    if not asked.several:
        return
    require(asked.num_samples == 1, f"--num-samples {asked.num_samples} is for one thing; of several each is made once")
    asked.samples()
    told = f"--out {asked.out}: several are made; name each, such as --out '{{}}{SUFFIX.get(target)}'"
    require(target == "text" or "{}" in asked.out, told)


def lines_of(file: Path) -> list[str]:
    """UserError for what is no file of texts, and for an empty line, of which nothing can be made."""
    require(file.is_file(), f"--texts: there is no file {str(file)!r}; check the path")
    try:
        lines = file.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"--texts: {file} is no text in UTF-8; write it again") from None
    require(bool(lines), f"--texts: {file} is empty; write a text into each line")
    for number, line in enumerate(lines, 1):
        require(bool(line.strip()), f"--texts: line {number} of {file} is empty; take it out")
    return lines


def names_of(out: str, n: int) -> list[str]:
    """The files that n things are written to: with {} in the name one for each, numbered from 1 on, else one."""
    digits = len(str(n))
    return [out.replace("{}", f"{i:0{digits}}") for i in range(1, n + 1)] if "{}" in out else [out]


def check_out(out: str, task: str, target: str, n: int) -> None:
    """UserError unless n things of this kind can be written there: told before the work, not after."""
    if target == "text":
        require(not out, f"--out {out}: a text is printed; leave --out away, or add > {out} behind the command")
        return
    what, suffix = NAMES[target], SUFFIX[target]
    require(bool(out), f"task {task!r} makes a {what}; say where to write it: --out {what}{suffix}")
    path = Path(out)
    require(not path.is_dir(), f"--out {out} is a folder; give a file in it, such as {path / f'{what}{suffix}'}")
    require(path.suffix.lower() == suffix, f"--out {out}: a {what} is written as {suffix}; end the name so")
    require(path.parent.is_dir(), f"--out {out}: there is no folder {str(path.parent)!r}; make it, or choose another")
    require(out.count("{}") <= 1, f"--out {out}: one {{}} is where the number goes; leave the others out")
    numbered = f"{path.stem}-{{}}{suffix}"
    require(
        target == "image" or n == 1 or "{}" in out, f"--num-samples {n} sounds need a name each; say --out '{numbered}'"
    )
