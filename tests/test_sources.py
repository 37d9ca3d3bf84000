"""Shards behind a URL are the same data: the stream, its checks and its evaluation do not see the difference."""

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mmfm.config import Data, Generative, Model, Optim, RemoteCache, Run, Source, TextTower, UserError
from mmfm.data import index, shard_list
from mmfm.data.sources import open_shards, open_source
from mmfm.data.stream import TrainStream
from mmfm.preprocessing.tokenizer import load_tokenizer
from mmfm.training.preflight import check


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_shard) -> Path:
    """Ten tars of four texts, indexed and listed."""
    root = tmp_path_factory.mktemp("shards")
    for n in range(10):
        write_shard(root / f"text-{n}.tar", {f"{n}{i}": {"txt": f"text {n} {i}".encode()} for i in range(4)})
        index.write(root / f"text-{n}.tar")
    shard_list.write_list(root)
    return root


@pytest.fixture(scope="module")
def url(folder) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def run_on(shards: str, cache: Path, workers: int = 0, limit_gb: float = 1.0) -> Run:
    store = RemoteCache(folder=str(cache), limit_gb=limit_gb)
    source = Source(shards=shards, modalities=("text",))
    data = Data(train=(source,), batch_size=4, num_workers=workers, shuffle_buffer=8, remote_cache=store)
    model = Model(image=None, audio=None, text=TextTower(width=32, heads=2))
    return Run(
        name="t", model=model, data=data, generative=(Generative(task=">text"),), optim=Optim(steps=25, warmup_steps=1)
    )


def keys(run: Run, start: int = 0) -> list[tuple[str, ...]]:
    return [batch.keys for batch in TrainStream(run, load_tokenizer("bytes"), rank=0, world=1, start=start)]


@pytest.mark.parametrize("workers", [0, 2])
def test_remote_is_local(folder, url, tmp_path, workers):
    """The same batches and the same fingerprint, with a cache that holds four of the ten tars; resumed too."""
    here = run_on(str(folder), tmp_path)
    there = run_on(url + "/text-{0..9}.tar", tmp_path, workers, limit_gb=4.5 * 10_240 / 10**9)
    assert keys(there) == keys(here) and keys(there, start=7) == keys(here)[7:]
    prints = [TrainStream(run, load_tokenizer("bytes"), rank=0, world=1).fingerprint() for run in (here, there)]
    assert prints[0] == prints[1]
    assert 1 <= len(list(tmp_path.glob("*.tar"))) <= 4


def open_and_removed() -> int:
    """Bytes of files that this process holds open and that no folder has any more: the disk has them still."""
    files = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    held = [file for file in files if os.path.lexists(file) and os.readlink(file).endswith(".tar (deleted)")]
    return sum(file.stat().st_size for file in held)


def test_the_limit_holds_for_the_disk(url, tmp_path):
    """What was removed is closed: files that are there and files that are only open, together, after every batch."""
    run = run_on(url, tmp_path, limit_gb=(limit := 3.5 * 10_240) / 10**9)
    for _ in TrainStream(run, load_tokenizer("bytes"), rank=0, world=1):
        assert sum(map(size_of, tmp_path.glob("*.*"))) + open_and_removed() <= limit


def size_of(path: Path) -> int:
    """In bytes; nothing where it was removed, or got its name, since it was listed."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_a_store_that_is_smaller_than_what_is_shuffled_is_refused(folder, url, tmp_path):
    """Before anything is fetched, with a limit that is enough: then each shard is fetched once in an epoch."""
    words = r"limit_gb=1e-05 is less than the 2\.05e-05 GB of shards shuffled .*; set it to 2\.07e-05 or more"
    with pytest.raises(UserError, match=words):
        keys(run_on(url, tmp_path, limit_gb=1e-5))
    assert not list(tmp_path.iterdir())
    assert keys(run_on(url, tmp_path, limit_gb=2.07e-5)) == keys(run_on(str(folder), tmp_path))
    assert keys(run_on(str(folder), tmp_path, limit_gb=1e-5)), "shards of this machine need no store"


def test_a_folder_is_its_list(folder, url, tmp_path):
    shards = open_shards([url], RemoteCache(folder=str(tmp_path)))
    assert len(shards) == 40 and shards.held["text"] == 40 and shards.remote
    assert [shards[i].parts["txt"] for i in (0, 39)] == [b"text 0 0", b"text 9 3"]


def test_check_counts_what_is_remote(url, tmp_path):
    """`mmfm train --check` on a URL needs its list alone."""
    (found,) = check(run_on(url, tmp_path), open_source)
    assert (found.shards, found.samples) == (10, 40) and not list(tmp_path.iterdir())


def test_what_cannot_be_mixed_or_found(folder, url, tmp_path):
    store = RemoteCache(folder=str(tmp_path))
    with pytest.raises(UserError, match="some are URLs and some are not"):
        open_shards([url, str(folder)], store)
    with pytest.raises(UserError, match=r"text-77.tar is not in shards.json"):
        open_shards([f"{url}/text-77.tar"], store)
    with pytest.raises(UserError, match=r"pipe"):
        open_shards(["pipe:cat x.tar"], store)
    source = Source(shards=url, modalities=("text", "image"))
    with pytest.raises(UserError, match=r"00 has no image, which its source provides; neither have 39 others of 40"):
        open_source(source, replace(run_on(url, tmp_path).data, remote_cache=store))
