"""mmfm: one model that reads and writes text, images and audio. `mmfm.load(RUN)` gives it back from a run's folder.

Torch is imported by what needs it, when it is called, so that `import mmfm` and `mmfm --help` stay fast.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmfm.inference.processing import Sound as Sound

os.environ.setdefault("WDS_SECURE", "1")  # webdataset then refuses pickles and `pipe:` addresses

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`mmfm.Sound`, which needs torch."""
    if name != "Sound":
        raise AttributeError(f"module 'mmfm' has no attribute {name!r}")
    from mmfm.inference.processing import Sound

    return Sound


def load(run: str | Path, step: int | str | None = None, *, device: str = "auto", dtype=None, extensions=(), ema=False):
    """The trained model of a run's folder, ready to encode and write; `step` picks a checkpoint, or "best".

    Without it that is the last, and "best" is the one that `Run.best` kept.

    A bundle of a whole model is one too. device: "auto" is the GPU if there is one, else the CPU. dtype: of weights and
    computation, such as "bfloat16" or torch.bfloat16; float32 where nothing is said; "auto" is the precision that it
    was trained in where it is on a GPU, else float32; "int8" has the trunk in 8 bits.
    extensions: the Python files of what it was trained with and is not part of mmfm, such as an objective of one's own;
    they are executed. ema: the moving average of the weights, which a run with `optim.ema` keeps.
    """
    from mmfm.config.extend import give
    from mmfm.inference.bundle.load import open_whole

    give(extensions)
    return _placed(open_whole(run, step, ema=ema), device, dtype)


def _placed(model, device: str, dtype):
    """On its device and in its precision."""
    from mmfm.runtime.devices import device_of, dtype_of, inference_dtype

    if str(dtype) == "auto":
        return model.to(device_of(device), inference_dtype(model.run.optim.precision, device_of(device)))
    if str(dtype) == "int8":
        from mmfm.generation import int8

        return int8(model.to("cpu" if device == "auto" else device_of(device)))
    return model.to(device_of(device), dtype_of(dtype))


def load_encoder(modality: str, where: str | Path, *, check: bool = True, device: str = "cpu", dtype=None):
    """The encoder of one modality, of a bundle's folder, a run's, or "owner/name" on the hub: `tokens` and `embed`.

    Only what it needs is read. `check`: it must give what it gave when it was written. device, dtype: as of `load`.
    """
    from mmfm.inference.bundle.load import load_encoder
    from mmfm.runtime.devices import device_of, dtype_of

    place, kind = device_of(device), dtype_of(dtype)
    return load_encoder(modality, where, check=check).to(place, kind)


def from_pretrained(where: str | Path, *, check: bool = True, device: str = "auto", dtype=None):
    """The whole model of a bundle, from its folder or from "owner/name" on the hub, as `load` gives that of a run."""
    from mmfm.inference.bundle.load import from_pretrained

    return _placed(from_pretrained(where, check=check), device, dtype)


def from_peft(folder: str | Path, base: str = "fp32"):
    """The adapters of a PEFT folder, as a configuration that begins with them: Model(adapters=from_peft("lora"), ...).
    base: how the weights under them are kept."""
    from mmfm.export.peft_config import from_peft

    return from_peft(folder, base)


def save_bundle(run, folder: str | Path, modalities: tuple[str, ...] | None = None, *, force: bool = False):
    """A run's folder or model, or only these of its modalities, as a folder that other people can load and trust."""
    from mmfm.export.bundle import save_bundle

    return save_bundle(run, folder, modalities, force=force)


def push_to_hub(run, repo_id: str, modalities: tuple[str, ...] | None = None, *, private: bool = False) -> str:
    """A bundle of a run's folder or model, or a bundle's folder, to "owner/name" on the hub; returns its address."""
    from mmfm.export.publish import push_to_hub

    return push_to_hub(run, repo_id, modalities, private=private)


def native(folder: str | Path, part: str = ""):
    """The tower or trunk of a bundle or a run, as a configuration that starts from its weights:
    Model(image=native("bundles/a"))."""
    from mmfm.inference.bundle.contents import native

    return native(folder, part)


def chat_template(folder: str | Path):
    """The chat template of a bundle or a run, as a configuration: Model(chat=chat_template("bundles/smol"))."""
    from mmfm.inference.bundle.contents import chat_template

    return chat_template(folder)


def native_model(folder: str | Path):
    """A whole bundle's model, as the configuration of a run that goes on with it: Run(model=.., start=folder)."""
    from mmfm.inference.bundle.contents import native_model

    return native_model(folder)
