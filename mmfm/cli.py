"""The commands: each is its options, as a dataclass, and what it does when called. Torch is imported by the call.

What a field's docstring says is its line in `mmfm COMMAND --help`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mmfm.config import Run, require
from mmfm.config.load import read_run
from mmfm.datasets.commands import DATA
from mmfm.evals.command import Evaluate
from mmfm.evals.judges.command import Judges
from mmfm.inference.bundle.contents import check_weights
from mmfm.inference.chat_args import ChatArgs
from mmfm.inference.generate_args import GenerateArgs
from mmfm.plan.arguments import PlanArgs
from mmfm.runtime.launch import first_process, launched
from mmfm.training.check_summary import opener_for, show_check
from mmfm.training.preflight import SourceSummary, check, check_suites, finished


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train the run that CONFIG describes: a Python file, whose config() is executed, or a saved run.json.

    CONFIG comes first; the options after it change its values, such as --optim.lr 3e-4.
    """

    check: bool = False
    """Read the configuration and the headers of the shards, say what would be trained, and stop."""
    resume: bool = False
    """Continue from the run's last checkpoint."""
    force: bool = False
    """Begin again, and replace what the run's folder holds."""
    run: Annotated[Run, tyro.conf.arg(name="")]

    def __call__(self) -> None:
        launch = launched()
        found = self._look() if launch is None or self.check else []  # else when the ranks have met
        if self.check:
            if first_process():
                show_check(self.run, found)
            return
        if launch is None and finished(self.run) and not self.force:
            print(f"{self.run.folder} is trained already and kept; --force trains it again")
            return
        from mmfm.training.fit import train

        folder = train(self.run, resume=self.resume, force=self.force, look=self._look)
        if first_process():  # with several ranks each is a process that comes by here
            print(folder)

    def _look(self) -> list[SourceSummary]:
        if self.run.accelerator == "gpu":
            from mmfm.runtime.rendezvous import device_of_rank

            device_of_rank(self.run.accelerator)
        found = check(self.run, opener_for(self.run))
        check_suites(self.run)
        begun = any(self.run.folder.glob("checkpoints/step-*"))  # what goes on asks nothing of where it began
        if self.force or not begun:
            check_weights(self.run.model)
        if self.run.start and (self.force or not begun):
            from mmfm.inference.bundle import check_start

            check_start(self.run)
        return found


@dataclass(frozen=True, kw_only=True)
class Show:
    """Write the first batch of a run as a page: captions, augmented pictures, sounds, tokens, masks, who takes what."""

    config: tyro.conf.Positional[str]
    """What `mmfm train` is given: a Python file, whose config() is executed, or a saved run.json."""
    html: str = "show.html"
    """The file of the page."""
    samples: int = 16
    """So many of the batch are shown."""

    def __call__(self) -> None:
        require(self.samples > 0, f"--samples {self.samples} must be greater than 0")
        run = read_run(self.config)
        check(run, opener_for(run))
        from mmfm.report.show import show

        print(show(run, self.html, self.samples))


@dataclass(frozen=True, kw_only=True)
class Runs:
    """List the runs of a folder: steps, best score, data, size on the disk."""

    folder: tyro.conf.Positional[str] = "runs"
    """The folder that runs are written to, or one run's."""

    def __call__(self) -> None:
        from mmfm.training.runs import show_runs

        show_runs(Path(self.folder))


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Look at all that a run would read, and say whether to train it. Exit status 0: go, 2: an error says no."""

    config: tyro.conf.Positional[str]
    """What `mmfm train` is given: a Python file, whose config() is executed, or a saved run.json."""
    html: str = ""
    """A file for a page with all of it."""
    json: str = ""
    """A file for all of it, for machines; - is the standard output, and then nothing else is printed there."""
    samples: int = 512
    """Decode that many samples of each set, evenly spread; 0: all."""
    quick: bool = False
    """Leave out what takes long: checksums, duplicates, speed and memory."""
    fetch: bool = False
    """Fetch shards behind URLs, to look inside; else only their lists are read."""

    def __call__(self) -> None:
        require(self.samples >= 0, f"--samples {self.samples} must not be negative; 0 decodes all")
        run = read_run(self.config)
        from mmfm.doctor.command import doctor

        raise SystemExit(doctor(run, **vars(self)))


@dataclass(frozen=True, kw_only=True)
class Generate(GenerateArgs):
    """Make the target of a task, such as 'image>text', 'text>image' or 'audio~'. Quote it: > belongs to the shell.

    Texts are printed; pictures and sounds are written to --out. A chain such as 'image>text>audio' makes one thing of
    another; what is chosen of how is for its last link. A source that the task names twice is given twice, in order.
    """

    def __call__(self) -> None:
        from mmfm.inference.bundle.contents import written_by

        self.check(written_by(Path(self.run)))
        import mmfm
        from mmfm.inference.generate_command import produce
        from mmfm.runtime.devices import tell_slow_products

        tell_slow_products(self.dtype, self.device)
        model = mmfm.load(self.run, device=self.device, dtype=self.dtype, **({"ema": True} if self.ema else {}))
        produce(model, self)


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Write the unit embeddings of all pictures, sounds and texts of shards, with their keys, as a file of numpy's."""

    run: tyro.conf.Positional[str]
    """The run's folder, such as runs/quickstart, or that of a whole model's bundle."""
    shards: tyro.conf.Positional[tuple[str, ...]]
    """Shards: a folder, a tar, a pattern or a URL; of several what they hold together."""
    out: str = "embeddings.npz"
    """The file: image, image.keys, text, text.keys, text.texts, ..."""
    batch_size: int = 0
    """Samples at a time; 0: as the run says."""
    limit: int = 0
    """So many samples, spread evenly; 0: all."""
    step: int = 0
    """Which checkpoint; 0: the last."""
    device: str = "auto"
    """Where to compute: cpu, or cuda; auto: as the run says, on a GPU if there is one."""

    def __call__(self) -> None:
        require(len(self.shards) > 0, "mmfm embed needs shards: mmfm embed RUN SHARDS --out embeddings.npz")
        for name in ("batch_size", "limit", "step"):
            told = f"--{name.replace('_', '-')} {getattr(self, name)} must not be negative"
            require(getattr(self, name) >= 0, told)
        from mmfm.evals.embed import embed_shards

        how = {"batch_size": self.batch_size, "limit": self.limit, "step": self.step or None, "device": self.device}
        for modality, shape in embed_shards(self.run, self.shards, self.out, **how).items():
            print(f"{modality}: {shape[0]:,} of {shape[1]:,} numbers")
        print(self.out)


@dataclass(frozen=True, kw_only=True)
class Chat(ChatArgs):
    """Talk with a model that learned conversations, or with an imported language model: text, pictures and sounds."""

    def __call__(self) -> None:
        self.check()
        import mmfm
        from mmfm.inference.chat_command import converse
        from mmfm.inference.chat_documents import read_documents
        from mmfm.runtime.devices import tell_slow_products

        documents = read_documents(self)
        tell_slow_products(self.dtype, self.device)
        model = mmfm.load(self.run, device=self.device, dtype=self.dtype, **({"ema": True} if self.ema else {}))
        converse(model, self, documents)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write RUN/report.html, one file that holds all it shows: curves, scores, pictures, sounds."""

    run: tyro.conf.Positional[str]
    """The run's folder, such as runs/quickstart."""

    def __call__(self) -> None:
        from mmfm.report.report import write_report

        print(write_report(Path(self.run)))


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a run for other programs: a folder for open_clip, transformers, timm or PEFT, or ONNX or torch.export.

    Adapters are merged, but for PEFT, whose folder holds them alone.
    """

    run: tyro.conf.Positional[str]
    """The run's folder, such as runs/quickstart, one of its checkpoints, or a bundle's folder."""
    out: tyro.conf.Positional[str]
    """The folder to be made."""
    to: Literal["hf", "open_clip", "timm", "onnx", "torch_export", "peft"] = "hf"
    """For whom; hf: the folder that mmfm, the hub and transformers read; peft: the trunk's adapters, for transformers'
    own Llama or Qwen."""
    modality: tuple[str, ...] = ()
    """Only these, of image, audio and text; else all that the model reads."""
    part: Literal["", "trunk"] = ""
    """trunk, with --to hf: the trunk alone, as a plain Llama or Qwen of transformers."""
    step: int = 0
    """Which checkpoint; 0: the last."""
    ema: bool = False
    """The moving average of the weights, which optim.ema keeps."""
    force: bool = False
    """Replace OUT where it is an earlier export."""

    def __call__(self) -> None:
        from mmfm.export.command import export

        step = self.step or None
        chosen = {"modalities": self.modality, "part": self.part, "step": step, "ema": self.ema}
        print(export(self.run, self.to, self.out, **chosen, force=self.force))


@dataclass(frozen=True, kw_only=True)
class Import:
    """Make a bundle of an encoder, a language model, or a whole CLIP of another library, and measure the difference.

    The bundle is a folder that `mmfm.load_encoder` opens and that a configuration can start from; one of a whole model
    (CLIP, SigLIP, CLAP) is also what `mmfm eval`, `compare`, `embed` and `mmfm.load` take as they take a run.
    """

    source: tyro.conf.Positional[str]
    """timm:NAME, open_clip:NAME/TAG, hf:NAME, torchaudio:BUNDLE, wheel:PACKAGE, or a folder that these wrote."""
    out: tyro.conf.Positional[str]
    """The folder to write."""
    modality: Literal["", "image", "audio", "text", "trunk", "whole"] = ""
    """What to take of the source; else what it is. trunk: a causal language model; whole: all that shares a space."""
    layout: Literal["auto", "native", "wrapped"] = "auto"
    """native: as a part of our own; wrapped: the source's module as it is; auto: native where that has a place."""
    force: bool = False
    """Replace the bundle that is there."""

    def __call__(self) -> None:
        from transformers.utils import logging

        from mmfm.export.importer import import_source
        from mmfm.export.saved import import_saved, is_saved

        logging.disable_progress_bar()
        if is_saved(self.source):
            print(import_saved(self.source, self.out, force=self.force))
            return
        how = {"modality": self.modality, "layout": self.layout, "force": self.force}
        print(import_source(self.source, self.out, **how).line())
        print(self.out)


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Make a run without adapters of one that has them: in fp32, and proved on inputs before it is written."""

    run: tyro.conf.Positional[str]
    """The run's folder, such as runs/chat, or one of its checkpoints."""
    out: tyro.conf.Positional[str]
    """The run's folder to be made. `mmfm export` makes a bundle, of a run with adapters too."""
    step: int = 0
    """Which checkpoint; 0: the last."""
    ema: bool = False
    """The moving average of the adapters, which optim.ema keeps."""
    force: bool = False
    """Replace OUT where it was merged earlier."""

    def __call__(self) -> None:
        from mmfm.export.merge import merge

        print(merge(self.run, self.out, step=self.step or None, ema=self.ema, force=self.force).line())
        print(self.out)


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare runs that were scored on the same data: their figures, and which differences chance does not explain."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """The runs' folders, two or more, each scored by `mmfm eval`."""
    out: str = ""
    """A file for a page with all of it, such as compare.html."""
    json: str = ""
    """A file for all of it, for machines."""
    resamples: int = 10_000
    """Resamples behind each interval and test."""
    seed: int = 0
    """Of the resamples."""

    def __call__(self) -> None:
        from mmfm.report.compare import compare

        compare(self.runs, **{name: value for name, value in vars(self).items() if name != "runs"})


COMMANDS: dict[str, type[Any] | dict[str, type[Any]]] = {
    "train": Train,
    "show": Show,
    "plan": PlanArgs,
    "runs": Runs,
    "eval": Evaluate,
    "generate": Generate,
    "embed": Embed,
    "chat": Chat,
    "data": {**DATA, "judges": Judges},
    "doctor": Doctor,
    "report": Report,
    "compare": Compare,
    "import": Import,
    "export": Export,
    "merge": Merge,
}
