"""Every annotation of mmfm is checked while the tests run (jaxtyping's shapes, beartype's types); torch has one thread.

The fixtures make small files of real formats: they are functions, so that a test states what it writes.
"""

import io
import random
import signal
import tarfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import checked

checked.install("mmfm")

import jaxtyping  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import soundfile  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a background job of a shell, and so in what tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """No draw depends on which test ran before; a hook and no fixture, as fixtures of modules draw too."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


# Files that take a minute or so begin before the many that take seconds: Makefile gives each file to one process.
FIRST = (
    "resume", "launch", "traps", "edge_inputs", "train", "tasks_any", "export", "build", "stream", "eval_ranks",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = [f"test_{name}" for name in FIRST]
    items.sort(key=lambda item: names.index(item.path.stem) if item.path.stem in names else len(names))


Samples = Mapping[str, Mapping[str, bytes]]


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No graph of before, and no checks of annotations, which would be traced too. Torch warns of what the compiler
    asks of the tensors that it traces."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        yield
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def write_shard() -> Callable[..., Path]:
    """write_shard(path, {key: {extension: bytes}}) writes a tar, as Python's `tarfile` does, and returns its path."""

    def write(path: Path, samples: Samples, layout: int = tarfile.USTAR_FORMAT) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", format=layout) as tar:
            for key, parts in samples.items():
                for extension, data in parts.items():
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        return path

    return write


@pytest.fixture(scope="session")
def encode_image() -> Callable[..., bytes]:
    """encode_image(pixels uint8 [height, width] or [height, width, channels], "PNG" | "JPEG" | "WEBP")."""

    def encode(pixels: np.ndarray, layout: str = "PNG", **options: object) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, layout, **options)
        return file.getvalue()

    return encode


@pytest.fixture(scope="session")
def encode_audio() -> Callable[..., bytes]:
    """encode_audio(wave float [samples] or [samples, channels], rate_hz, "WAV" | "FLAC" | "OGG" | "MP3")."""

    def encode(wave: np.ndarray, rate_hz: int = 16_000, layout: str = "WAV", subtype: str | None = None) -> bytes:
        file = io.BytesIO()
        soundfile.write(file, wave, rate_hz, format=layout, subtype=subtype)
        return file.getvalue()

    return encode


@pytest.fixture(scope="session")
def sine() -> Callable[..., np.ndarray]:
    """sine(hz, seconds, rate_hz): float32 samples, half of full scale."""

    def wave(hz: float, seconds: float = 1.0, rate_hz: int = 16_000) -> np.ndarray:
        return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)

    return wave
