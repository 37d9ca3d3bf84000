"""What the model of configs/any.py draws and says, read by judges; writes results.json, a drawing and a sound.

    python experiments/006-any-to-any/measure.py --tune any     # on val: which temperature and guidance
    python experiments/006-any-to-any/measure.py

The choices that `--tune` tries stand in tuning.json under the name that it is given, and what was chosen of them in
CHOSEN.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

import mmfm
from mmfm.data.decode import Decode, Example, collate, read_example
from mmfm.data.shard_specs import expand
from mmfm.data.shards import Shards
from mmfm.evals.judges.choose import judge
from mmfm.evals.judges.contract import Judge, seen
from mmfm.evals.judges.digits import halves
from mmfm.evals.judges.figures import is_number, read_right
from mmfm.evals.metrics import Bootstrap, Score, mean
from mmfm.inference.interface import Interface, Sound
from mmfm.inference.media_files import files_of, write_files

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
sys.path.append(str(ROOT / "tools"))  # of scripts that are run, not imported
from experiment import setting  # noqa: E402
from gather import END, cell  # noqa: E402
from readme import between  # noqa: E402
from speaker import nearer, same_speaker, speaker  # noqa: E402

RUN = "runs/any"
BEGIN = "<!-- results: written by measure.py -->"
NEEDS = {"text>image": "image", "text>audio": "audio", "image>text>audio": "image", "audio>text>image": "audio"}
CHOSEN: dict[str, dict[str, float]] = {
    "image": {"temperature": 0.7, "guidance": 2.5},
    "audio": {"temperature": 0.7, "guidance": 2.5},
    "fill": {"temperature": 0.0},
}
TRIED = {
    "image": [{"temperature": t, "guidance": g} for t, g in itertools.product((0.5, 0.7, 1.0), (1.0, 1.5, 2.5, 4.0))],
    "audio": [{"temperature": t, "guidance": g} for t, g in itertools.product((0.5, 0.7, 1.0), (1.0, 2.5, 4.0, 6.0))],
    "fill": [{"temperature": t} for t in (0.0, 0.3, 0.5, 0.7, 1.0)],
}
AT_ONCE = 40


def examples(model: Interface, split: str, modality: str, most: int) -> list[Example]:
    """At most so many samples that have this modality, spread over the split."""
    shards = Shards(expand(f"data/numbers/{split}"))
    found = [read_example(shards[at], model.config, Decode(max_seconds=4.0)) for at in range(len(shards))]
    held = [example for example in found if getattr(example, modality) is not None]
    return [held[int(at)] for at in np.linspace(0, len(held) - 1, min(most, len(held)))]


def label(example: Example) -> str:
    return str(example.meta["label"])


def made(model: Interface, task: str, held: Sequence[Example], **options: Any) -> list[Any]:
    """A picture (uint8 tensor) or a `AudioPreprocess` for each example, whose place is its seed."""
    things = []
    for start in range(0, len(held), AT_ONCE):
        part = held[start : start + AT_ONCE]
        seeds = torch.arange(start, start + len(part))
        coded = model.make(task, collate(part, model.tokenizer), seeds=seeds, **options)
        things += [model.decode(task.rpartition(">")[2].removesuffix("~"), item.ids) for item in coded]
    return [thing if isinstance(thing, Sound) else torch.from_numpy(np.array(thing))[None] for thing in things]


def read(reader: Judge, things: Sequence[Any]) -> list[str]:
    if reader.of == "image":
        return reader.read(things)
    return reader.read([sound.wave for sound in things], things[0].rate_hz)


def real(model: Interface, held: Sequence[Example], modality: str, decoded: bool) -> list[Any]:
    """The examples' own items; decoded: through the codec and back."""
    if modality == "image":
        own: list[Any] = [example.image for example in held]
    else:
        own = [Sound(example.audio, model.config.audio.sound.rate_hz) for example in held]
    if not decoded:
        return own
    things = []
    for start in range(0, len(held), AT_ONCE):
        ids, keep = model.core.written(
            modality, collate(held[start : start + AT_ONCE], model.tokenizer).items[modality]
        )
        found, heard = model.core.codec(modality).decode(ids, keep)
        rows = (
            found if modality == "image" else [Sound(w[k], own[0].rate_hz) for w, k in zip(found, heard, strict=True)]
        )
        things += list(rows)
    return things


def figures_of(model: Interface, split: str, most: int, judges: Mapping[str, Sequence[Judge]]) -> Iterator[Score]:
    """Everything that is asked of one split."""
    eight = most if split == "val" else most // 2
    for task, needs in NEEDS.items():
        target = task.rpartition(">")[2]
        held = examples(model, split, needs, most)
        yield from readings(model, task, held, judges[target], **CHOSEN[target])
        if task == f"text>{target}":
            yield from readings(
                model, task, held[:: most // eight], judges[target], "best of 8: ", rerank=8, **CHOSEN[target]
            )
    for modality, readers in judges.items():
        # The reader of digits learned from the scans of test: what it can do is seen on those of val.
        held = examples(model, "val" if modality == "image" else split, modality, most)
        for decoded, words in ((False, "real"), (True, "decoded")):
            things = real(model, held, modality, decoded)
            for reader in readers:
                yield read_right(f"{modality}, {words}", reader.name, list(map(label, held)), read(reader, things))
    yield from continued(model, examples(model, split, "audio", most), judges["audio"])
    yield from filled(model, examples(model, split, "image", most), judges["image"][0])


def readings(
    model: Interface, task: str, held: Sequence[Example], readers: Sequence[Judge], name: str = "", **options: Any
) -> Iterator[Score]:
    things = made(model, task, held, **options)
    for reader in readers:
        found = read(reader, things)
        yield read_right(name + task, reader.name, list(map(label, held)), found)
        if reader.of == "audio":
            yield is_number(name + task, reader.name, found)


def continued(model: Interface, held: Sequence[Example], readers: Sequence[Judge]) -> Iterator[Score]:
    """Sounds cut in their middle and continued: whether the whole is a number, and whose voice the new part is."""
    coded = []
    options = {key: value for key, value in CHOSEN["audio"].items() if key != "guidance"}
    for start in range(0, len(held), AT_ONCE):
        part = collate(held[start : start + AT_ONCE], model.tokenizer)
        seeds = torch.arange(start, start + part.size)
        coded += [(start + item.row, item) for item in model.make("audio>audio", part, seeds=seeds, **options)]
    sounds = [model.decode("audio", item.ids) for _, item in coded]
    for reader in readers:
        yield is_number("audio>audio", reader.name, read(reader, sounds))
    books = len(model.core.forms["audio"].sizes)
    step, rate = model.core.codec("audio").step_samples, sounds[0].rate_hz
    pairs = [
        (row, s.wave[: c.start // books * step], s.wave[c.start // books * step :])
        for (row, c), s in zip(coded, sounds, strict=True)
    ]
    pairs = [pair for pair in pairs if min(map(len, pair[1:])) >= rate // 8]
    voices = [str(held[row].meta["voice"]) for row, _, _ in pairs]
    prompts, answers = (speaker([pair[at] for pair in pairs], rate) for at in (1, 2))
    others = torch.tensor([[a != b for b in voices] for a in voices])
    yield same_speaker("audio>audio", nearer(prompts, answers, prompts, others).numpy())


def filled(model: Interface, held: Sequence[Example], svc: Judge) -> Iterator[Score]:
    """The right half hidden and filled in: whether two classifiers of different kinds see one digit there."""
    scans, digits = load_digits(return_X_y=True)
    near = KNeighborsClassifier(3).fit(scans[1_437:], digits[1_437:])
    things = {
        "image~": made(model, "image~", held, mask="right", **CHOSEN["fill"]),
        "image, real": real(model, held, "image", False),
    }
    things["image, noise"] = [
        torch.from_numpy(np.random.default_rng(0).permuted(x.numpy(), axis=2)) for x in things["image, real"]
    ]
    for task, pictures in things.items():
        right = torch.stack([halves(picture)[1] for picture in seen(pictures)]).flatten(1).numpy() * 16
        units = [name_of(text) for text in svc.read(pictures)]
        agree = np.array([a == str(b) for a, b in zip(units, near.predict(right), strict=True)], float)
        yield Score(
            task=task, metric="two readers agree on the right half", statistic=mean(agree), n=len(agree), chance=0.1
        )
    with_text = made(model, "text>image~", held, mask="right", **CHOSEN["fill"], guidance=CHOSEN["image"]["guidance"])
    yield read_right("text>image~, right half", svc.name, list(map(label, held)), svc.read(with_text))


def name_of(text: str) -> str:
    """The last digit of a number in words."""
    from mmfm.evals.judges.contract import NAMES

    return str(NAMES.index(text) % 10) if text in NAMES else ""


def rows_of(split: str, figures: Iterator[Score]) -> list[dict[str, Any]]:
    rows = []
    for figure in figures:
        low, high = figure.interval(Bootstrap())
        row = {"split": split, "task": figure.task, "metric": figure.metric, "value": figure.value}
        rows.append({**row, "low": low, "high": high, "chance": round(figure.chance, 9), "n": figure.n})
        print(split, figure.task, figure.metric, f"{figure.value:.3f} ({low:.3f} to {high:.3f})", flush=True)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each score, a column for each split."""
    splits = list(dict.fromkeys(row["split"] for row in rows))
    found = {(row["task"], row["metric"], row["split"]): row for row in rows}
    lines = [["made", "score", *splits], ["---"] * (2 + len(splits))]
    for task, metric in dict.fromkeys((row["task"], row["metric"]) for row in rows):
        lines.append([f"`{task}`", metric, *(cell(found.get((task, metric, split))) for split in splits)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def render(readme: str, results: str) -> str:
    """The README with the tables that belong to tuning.json and to the text of results.json."""
    tried = tuning_table(json.loads((HERE / "tuning.json").read_text("utf-8")))
    readme = between(readme, "<!-- tuning: written by measure.py -->", "<!-- end of tuning -->", tried)
    return between(readme, BEGIN, END, table(json.loads(results)["rows"]))


def tuning_table(tried: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A line for each choice on val, a column for each run that was tried."""
    lines = [["task", "temperature", "guidance", *tried], ["---"] * (3 + len(tried))]
    keys = [(row["task"], row["temperature"], row["guidance"]) for rows in tried.values() for row in rows]
    right = {(name, *key_of(row)): row for name, rows in tried.items() for row in rows}
    for key in dict.fromkeys(keys):
        found = [right.get((name, *key)) for name in tried]
        cells = ["-" if row is None else f"{row['right']:.3f} of {row['n']}" for row in found]
        lines.append([f"`{key[0]}`", str(key[1]), str(key[2]), *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def key_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["task"], row["temperature"], row["guidance"]


def tune(model: Interface, judges: Mapping[str, Sequence[Judge]], most: int) -> list[dict[str, Any]]:
    """Every choice on val."""
    found = []
    for target in judges:
        choices = TRIED[target]
        held = examples(model, "val", target, most)
        for options in choices:
            things = made(model, f"text>{target}", held, **options)
            figure = read_right(
                f"text>{target}", judges[target][0].name, list(map(label, held)), read(judges[target][0], things)
            )
            found.append({"task": figure.task, **options, "right": figure.value, "n": figure.n})
            print(found[-1], flush=True)
    held = examples(model, "val", "image", most)
    for options in TRIED["fill"]:
        CHOSEN["fill"] = options
        for figure in filled(model, held, judges["image"][0]):
            if "~" in figure.task:
                found.append({"task": figure.task, **options, "guidance": "-", "right": figure.value, "n": figure.n})
                print(found[-1], flush=True)
    return found


def show(model: Interface, judges: Mapping[str, Sequence[Judge]]) -> dict[str, str]:
    """What the README shows: drawings, a sound; what the model writes of the first, and a judge hears in the last."""
    drawings = model.generate_many("text>image", text="forty-two", n=8, **CHOSEN["image"])
    (sound,) = model.generate_many("text>audio", text="forty-two", best_of=8, **CHOSEN["audio"])
    for name, things in {"forty-two.png": drawings, "forty-two.wav": [sound]}.items():
        write_files(files_of(things, str(HERE / name)))
    sentence = str(model.generate("image>text", image=drawings[0]))
    return {"sentence": sentence, "heard": read(judges["audio"][0], [sound])[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", default="", help="what to call this run in tuning.json; then no more is done")
    parser.add_argument("--show", action="store_true", help="only what the README shows, anew")
    parser.add_argument("--most", type=int, default=320, help="samples of each task and split")
    parser.add_argument(
        "--whisper", type=int, default=0, help="let Whisper hear so many sounds of each split too: slow"
    )
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    model, began = mmfm.load(RUN), time.monotonic()
    judges = {"image": [judge("digits")], "audio": [judge("speech")]}
    with torch.no_grad():
        if chosen.show:
            results = HERE / "results.json"
            results.write_text(json.dumps(json.loads(results.read_text()) | show(model, judges), indent=1) + "\n")
            return
        if chosen.tune:
            before = json.loads((HERE / "tuning.json").read_text())
            after = before | {chosen.tune: tune(model, judges, chosen.most)}
            (HERE / "tuning.json").write_text(json.dumps(after, indent=1) + "\n")
            return
        rows = [
            row
            for split in ("test", "test-unseen")
            for row in rows_of(split, figures_of(model, split, chosen.most, judges))
        ]
        if chosen.whisper:
            hears = [judge("whisper")]
            for split in ("test", "test-unseen"):
                held = examples(model, split, "audio", chosen.whisper)
                rows += rows_of(split, readings(model, "text>audio", held, hears, **CHOSEN["audio"]))
                things = real(model, held, "audio", False)
                rows += rows_of(
                    split, iter([read_right("audio, real", "whisper", list(map(label, held)), read(hears[0], things))])
                )
        shown = show(model, judges)
    told = setting(["experiments/006-any-to-any/measure.py", *sys.argv[1:]])
    results = (
        json.dumps(
            {**told, "seconds": round(time.monotonic() - began), "options": CHOSEN, **shown, "rows": rows},
            indent=1,
        )
        + "\n"
    )
    (HERE / "results.json").write_text(results)
    readme = HERE / "README.md"
    readme.write_text(render(readme.read_text(), results))


if __name__ == "__main__":
    main()
