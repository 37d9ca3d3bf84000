"""Shards with a URL, against servers that stall, cut, lie and fail: right bytes, or the right words."""

import errno
import http.client
import json
import os
import pickle
import random
import re
import subprocess
import sys
import threading
import zlib
from array import array
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fsspec
import pytest

from mmfm import config
from mmfm.config import UserError
from mmfm.data import index, remote_servers, shard_list
from mmfm.data.remote_cache import FetchError, ShardCache, expand_remote
from mmfm.data.shard_list import Entry
from mmfm.data.shards import Shards
from mmfm.data.splits import is_remote
from mmfm.data.urls import SCHEMES, check_scheme, shown

BODY = random.Random(0).randbytes(1 << 20) + b"end"
HALF = len(BODY) // 2


class Server(ThreadingHTTPServer):
    """Serves `files`, or what `upstream` has; `faults` happen to the next requests whose path ends with .tar."""

    daemon_threads = True

    def __init__(self, upstream: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"/a.tar": BODY}
        self.faults: list[str] = []
        self.asked: list[tuple[str, str]] = []  # path and range
        self.logins: list[str | None] = []
        self.upstream, self.tag = upstream, '"1"'
        self.half, self.released = threading.Event(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what is tested here."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        span = self.headers.get("Range", "")
        self.server.asked.append((path, span))
        self.server.logins.append(self.headers.get("Authorization"))
        shard = path.endswith(".tar")
        fault = self.server.faults.pop(0) if self.server.faults and shard else ""
        if fault.isdigit():
            return self.answer(int(fault), {"Retry-After": "7"}, b"")
        if fault.startswith("to "):
            return self.answer(302, {"Location": fault[3:]}, b"")
        status, headers, body = self.found(path, "" if fault == "no ranges" else span)
        self.close_connection = True
        if fault == "hang up":
            return
        if fault == "page":
            return self.answer(200, {}, b"<!DOCTYPE html><html><body>Log in</body></html>" * 20)
        if fault == "slow headers":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while not self.server.released.wait(0.02):
                self.wfile.write(b"X-Wait: 1\r\n")
            return
        if fault == "wrong":
            body = body[:HALF] + bytes([body[HALF] ^ 1]) + body[HALF + 1 :]
        if fault == "longer":
            body += b"more"
        if fault == "no length":
            return self.answer(status, headers, body, length="")
        if fault in ("cut", "stall"):
            self.answer(status, headers, body[: len(body) // 2], length=str(len(body)))
            self.server.half.set()
            if fault == "stall":
                self.server.released.wait()
            return
        self.answer(status, headers, body)

    def do_HEAD(self) -> None:
        status, headers, body = self.found(self.path, "", "HEAD")
        self.answer(status, headers, b"", length=headers.pop("Content-Length", str(len(body))))

    def found(self, path: str, span: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        if self.server.upstream:
            other = http.client.HTTPConnection(self.server.upstream)
            headers = {name: value for name, value in self.headers.items() if name != "Range" or span}
            other.request(method, self.path, headers=headers)
            reply = other.getresponse()
            body, status, kept = reply.read(), reply.status, dict(reply.getheaders())
            other.close()
            drop = ("connection", "transfer-encoding", "server", "date") + (
                ("content-length",) if method == "GET" else ()
            )
            return status, {name: value for name, value in kept.items() if name.lower() not in drop}, body
        if path not in self.server.files:
            return 404, {}, b""
        data, match = self.server.files[path], re.fullmatch(r"bytes=(\d+)-", span)
        if not match or self.headers.get("If-Range", self.server.tag) != self.server.tag:
            return 200, {"ETag": self.server.tag}, data
        start = int(match[1])
        return (
            206,
            {"ETag": self.server.tag, "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"},
            data[start:],
        )

    def answer(self, status: int, headers: dict[str, str], body: bytes, length: str | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length != "":
            self.send_header("Content-Length", str(len(body)) if length is None else length)
        self.end_headers()
        self.wfile.write(body)


def serving(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    yield from serving(Server())


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., ShardCache]:
    """make_store(limit_gb=..., tries=...): never sleeps; what it would have slept is in `store.slept`."""

    def make(**settings: Any) -> ShardCache:
        slept: list[float] = []
        given = {"folder": str(tmp_path / "cache"), "timeout_s": 0.2, "tries": 3, **settings}
        store = ShardCache(config.RemoteCache(**given), sleep=slept.append)
        store.slept = slept  # type: ignore[attr-defined]
        return store

    return make


def leftovers(store: ShardCache) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir() if path.suffix not in (".tar", ".lock"))


CRC = zlib.crc32(BODY)
FULL, REST = ("/a.tar", ""), ("/a.tar", f"bytes={HALF}-")


@pytest.mark.parametrize(
    ("faults", "asked"),
    [
        ([], [FULL]),
        (["500", "503"], [FULL] * 3),
        (["429"], [FULL] * 2),
        (["hang up"], [FULL] * 2),
        (["cut"], [FULL, REST]),
        (["stall"], [FULL, REST]),
        (["wrong"], [FULL] * 2),
        (["longer"], [FULL] * 2),
        (["cut", "no ranges"], [FULL, REST]),
        (["cut", "416", ""], [FULL, REST, REST]),
        (["no length"], [FULL]),
    ],
    ids=str,
)
def test_right_bytes_whatever_the_server_does(
    server: Server, make_store: Callable[..., ShardCache], faults: list[str], asked: list[tuple[str, str]]
) -> None:
    """A fault costs one more request, which goes on where the last one stopped if that can be; never a byte."""
    server.faults = list(faults)
    store = make_store()
    path = store.local(f"{server.url}/a.tar", size=len(BODY), crc32=CRC)
    assert path.read_bytes() == BODY
    assert server.asked == asked
    assert leftovers(store) == []
    assert store.local(f"{server.url}/a.tar", size=len(BODY), crc32=CRC) == path
    assert len(server.asked) == len(asked), "what is here is not fetched again"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("500", "3 times in a row: the server answered 500"),
        ("hang up", "RemoteDisconnected"),
        ("stall", "no byte came for 0.2 s"),
        ("slow headers", "no byte came for 0.2 s"),
        ("wrong", f"and the list of the shards says {CRC}"),
        ("longer", f"the server has {len(BODY) + 4} bytes, and the list of the shards says {len(BODY)}"),
    ],
)
def test_what_goes_on_failing_is_the_machines_fault(
    server: Server, make_store: Callable[..., ShardCache], fault: str, words: str
) -> None:
    """After the tries: an OSError of one line, with URL, reason and remedy; no sample is blamed, nothing is left."""
    server.faults = [fault] * 20
    store = make_store(timeout_s=0.2)
    with pytest.raises(FetchError, match=re.escape(words)) as caught:
        store.local(f"{server.url}/a.tar", size=len(BODY), crc32=CRC)
    assert "\n" not in str(caught.value) and f"{server.url}/a.tar" in str(caught.value)
    assert "--resume" in str(caught.value)
    assert sorted(store.folder.glob("*.tar")) == [] and leftovers(store) == []


def test_a_trickle_is_as_good_as_nothing() -> None:
    """Every byte in time, and yet the shard would never be there: 1,000 bytes a second are asked for, and no more."""
    now = [0.0]
    pace = remote_servers.Pace(30.0, lambda: now[0])
    for _ in range(90):
        now[0] += 1.0
        assert pace.took(bytes(remote_servers.LEAST)) == bytes(remote_servers.LEAST)
    with pytest.raises(remote_servers.Again, match="only 30 bytes came in 30 s"):
        for _ in range(90):
            now[0] += 1.0
            pace.took(b"x")
    late = remote_servers.Pace(30.0, lambda: now[0])
    now[0] += 99.0
    assert late.took(b"") == b"", "the end of all is no trickle"


@pytest.mark.parametrize("crc32", [CRC, None])
def test_a_page_is_no_shard(server: Server, make_store: Callable[..., ShardCache], crc32: int | None) -> None:
    """One to log in, answered as if all were well: told at once, for a shard and for a list, and nothing is kept."""
    server.faults = ["page"] * 2
    store = make_store()
    words = r"a\.tar is answered with a web page \(HTML\) and not with the file, such as one to log in; check the URL"
    with pytest.raises(UserError, match=words):
        store.local(f"{server.url}/a.tar", size=len(BODY) if crc32 else None, crc32=crc32)
    with pytest.raises(UserError, match="or give credentials by a URL that holds them"):
        store.text(f"{server.url}/a.tar")
    assert len(server.asked) == 2 and not list(store.folder.glob("*.tar"))


def test_a_shard_that_cannot_be_fetched_is_asked_for_as_often_as_was_said(
    server: Server, make_store: Callable[..., ShardCache]
) -> None:
    """Reading a sample adds no tries of its own, and no words about a reason that is not known."""
    server.faults = ["500"] * 99
    found = Shards([entry(f"{server.url}/a.tar")], make_store())
    found._live[0] = index.Index(
        shard="a.tar", bytes=len(BODY), crc32=CRC, keys=["k"], offset={"txt": array("q", [512])},
        size={"txt": array("q", [3])}, texts=1, seconds=array("f", [-1]), pixels=array("q", [-1]),
    )  # fmt: skip
    with pytest.raises(FetchError, match=r"a\.tar could not be fetched, 3 times in a row: the server answered 500"):
        found[0]
    assert len(server.asked) == 3


def test_nobody_there(make_store: Callable[..., ShardCache]) -> None:
    """A refused connection is tried as often as was said, with longer and longer waits, and then told."""
    store = make_store(tries=5)
    with pytest.raises(FetchError, match="5 times in a row: ConnectionRefusedError"):
        store.local("http://127.0.0.1:1/a.tar")
    waits = store.slept  # type: ignore[attr-defined]
    assert len(waits) == 4
    assert all(0.25 * 2**n <= wait <= 0.5 * 2**n for n, wait in enumerate(waits))


def test_a_server_may_say_when(server: Server, make_store: Callable[..., ShardCache]) -> None:
    """Retry-After is a lower bound of the wait."""
    server.faults = ["503"]
    store = make_store()
    store.local(f"{server.url}/a.tar")
    assert store.slept == [7.0]  # type: ignore[attr-defined]


def test_a_link_that_breaks_often_but_brings_much_is_borne(
    server: Server, make_store: Callable[..., ShardCache]
) -> None:
    """Failures are counted in a row: one that brought a mebibyte is the first again."""
    server.files["/big.tar"] = body = bytes(range(256)) * (1 << 17)  # 32 MiB, halved by each cut
    server.faults = ["cut"] * 4
    path = make_store(tries=2).local(f"{server.url}/big.tar", size=len(body), crc32=zlib.crc32(body))
    assert path.read_bytes() == body
    assert len(server.asked) == 5


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("404", "check the URL"),
        ("410", "check the URL"),
        ("403", "credentials"),
        ("401", "credentials"),
        ("400", "400"),
    ],
)
def test_a_wrong_url_is_told_at_once(
    server: Server, make_store: Callable[..., ShardCache], fault: str, words: str
) -> None:
    """Neither a missing file nor missing rights get better by waiting. No secret of the URL is in the words."""
    server.faults = [fault]
    store = make_store()
    url = server.url.replace("//", "//me:hunter2@") + "/a.tar?signature=hunter3"
    with pytest.raises(UserError, match=words) as caught:
        store.local(url)
    told = str(caught.value)
    assert "\n" not in told and f"{server.url}/a.tar" in told and "hunter" not in told
    assert len(server.asked) == 1 and store.slept == [] and leftovers(store) == []  # type: ignore[attr-defined]


def test_credentials_reach_their_host_and_no_other(server: Server, make_store: Callable[..., ShardCache]) -> None:
    """Of a URL with a password the server gets it; the host that it leads to does not, nor does a file name."""
    (other,) = [next(others := serving(Server()))]
    server.faults = [f"to {other.url}/a.tar"]
    store = make_store()
    path = store.local(server.url.replace("//", "//me:hunter2@") + "/a.tar")
    assert path.read_bytes() == BODY
    assert server.logins == ["Basic bWU6aHVudGVyMg=="] and other.logins == [None]
    assert "hunter2" not in str(path) and re.fullmatch(r"[0-9a-f]{32}\.tar", path.name)
    others.close()


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/a.tar", "file:///etc/passwd", "data:,x"])
def test_no_redirect_leaves_http(server: Server, make_store: Callable[..., ShardCache], target: str) -> None:
    """A server cannot send us to a local file."""
    server.faults = [f"to {target}"]
    with pytest.raises(UserError, match="not opened; give the final URL"):
        make_store().local(f"{server.url}/a.tar")


def test_without_a_list_the_server_says_the_size(server: Server, make_store: Callable[..., ShardCache]) -> None:
    """Content-Length catches a cut; where even that is missing, the end could be anywhere, and the shard is refused."""
    server.faults = ["cut", "", "no length"]
    assert make_store().local(f"{server.url}/a.tar").read_bytes() == BODY
    with pytest.raises(UserError, match="does not say how long it is"):
        make_store().local(f"{server.url}/a.tar?2")


def test_two_versions_are_never_joined(server: Server, make_store: Callable[..., ShardCache]) -> None:
    """A file that is replaced between two tries comes whole from the second: the server is asked by the first's tag."""
    store = make_store()
    server.faults = ["cut"]

    def replace_it(_: float) -> None:
        server.files["/a.tar"], server.tag = BODY[::-1], '"2"'

    store._sleep = replace_it
    assert store.local(f"{server.url}/a.tar").read_bytes() == BODY[::-1]
    server.tag, server.faults = "W/1", ["cut"]  # one that proves nothing
    store._sleep = lambda _: None
    assert store.local(f"{server.url}/a.tar?2").read_bytes() == BODY[::-1]
    assert server.asked[-1] == FULL, "from the start again"


# Several at once

FETCH = """
import sys
from mmfm import config
from mmfm.data.remote_cache import ShardCache
store = ShardCache(config.RemoteCache(folder=sys.argv[1], timeout_s=30.0, limit_gb=float(sys.argv[5])))
print("ready", flush=True)
print(store.local(sys.argv[2], size=int(sys.argv[3]), crc32=int(sys.argv[4])), flush=True)
"""


def fetching(store: ShardCache, url: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCH, str(store.folder), url, str(len(BODY)), str(CRC)]
    command.append(str(store.settings.limit_gb))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_two_processes_fetch_once(server: Server, make_store: Callable[..., ShardCache]) -> None:
    """While one fetches, the other waits, and gets the same file."""
    server.faults, store = ["stall"], make_store()
    first = fetching(store, f"{server.url}/a.tar")
    assert server.half.wait(30)
    second = fetching(store, f"{server.url}/a.tar")
    server.released.set()
    paths = {process.communicate()[0].strip() for process in (first, second)}
    assert len(paths) == 1 and Path(paths.pop()).read_bytes() == BODY
    assert server.asked == [FULL, REST], "the stall was the first process's; the second never asked"


def test_a_killed_fetch_leaves_nothing_that_counts(server: Server, make_store: Callable[..., ShardCache]) -> None:
    """A process killed half-way leaves a part which is never taken for whole, and goes when room is next made."""
    server.faults, store = ["stall"], make_store()
    process = fetching(store, f"{server.url}/a.tar")
    assert server.half.wait(30)
    process.kill()
    process.communicate()
    assert [Path(name).suffix for name in leftovers(store)] == [".part"] and not list(store.folder.glob("*.tar"))
    server.files["/b.tar"] = b"another"
    store.local(f"{server.url}/b.tar")
    assert leftovers(store) == []
    assert store.local(f"{server.url}/a.tar", size=len(BODY), crc32=CRC).read_bytes() == BODY


def test_a_part_that_is_being_written_is_left_alone(server: Server, make_store: Callable[..., ShardCache]) -> None:
    """Room is made without the file that another process is fetching, and that file counts."""
    server.faults, store = ["stall"], make_store(limit_gb=1.5 * len(BODY) / 1e9)
    process = fetching(store, f"{server.url}/a.tar")
    while not any(part.stat().st_size for part in store.folder.glob("*.part")):
        assert process.poll() is None
    server.files["/b.tar"] = BODY[:HALF]
    assert store.local(f"{server.url}/b.tar").is_file()
    server.files["/c.tar"] = BODY
    store._sleep = lambda _: server.released.set()  # only when the other has ended is there room
    assert store.local(f"{server.url}/c.tar").read_bytes() == BODY
    assert process.communicate()[0].strip() and process.returncode == 0
    assert [path.stat().st_size for path in store.folder.glob("*.tar")] == [len(BODY)]


# Room


def test_the_bound_holds_and_the_last_used_stay(server: Server, make_store: Callable[..., ShardCache]) -> None:
    """Of shards for which there is no room the least recently used goes; its open descriptor can still be read."""
    store = make_store(limit_gb=3.5 * len(BODY) / 1e9)
    paths = {}
    for name in "abc":
        server.files[f"/{name}.tar"] = BODY
        paths[name] = store.local(f"{server.url}/{name}.tar", size=len(BODY))
        os.utime(paths[name], ns=(len(paths), len(paths)))
    file = store.open(f"{server.url}/b.tar", size=len(BODY))
    store.local(f"{server.url}/a.tar", size=len(BODY))
    os.utime(paths["b"], ns=(1, 1))
    server.files["/d.tar"] = BODY
    paths["d"] = store.local(f"{server.url}/d.tar", size=len(BODY))
    assert [name for name, path in paths.items() if not path.exists()] == ["b"]
    assert os.pread(file, 3, len(BODY) - 3) == b"end"
    os.close(file)
    assert sum(path.stat().st_size for path in store.folder.iterdir()) <= store.limit


def test_a_shard_over_the_limit_is_refused(server: Server, make_store: Callable[..., ShardCache]) -> None:
    """By the size that the list says, before anything is asked; else by what the server says."""
    store = make_store(limit_gb=1e-6)
    for size, asked in ((len(BODY), 0), (None, 1)):
        with pytest.raises(UserError, match=r"0\.00105 GB, over data\.remote_cache\.limit_gb=1e-06; raise the limit"):
            store.local(f"{server.url}/a.tar", size=size)
        assert len(server.asked) == asked


def test_a_full_disk_is_said(
    server: Server, make_store: Callable[..., ShardCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, without another try, in words, and with nothing left behind."""
    real, store = os.pwrite, make_store()

    def full(file: int, data: Any, at: int) -> int:
        if at > 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data[:1000], at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(FetchError, match=r"cannot be written \(No space left on device\); make room"):
        store.local(f"{server.url}/a.tar")
    assert leftovers(store) == [] and not list(store.folder.glob("*.tar")) and len(server.asked) == 1


def test_a_folder_that_cannot_be(make_store: Callable[..., ShardCache], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FetchError, match="file/in cannot be written"):
        make_store(folder=str(tmp_path / "file" / "in")).local("http://127.0.0.1:1/a.tar")


def test_a_shard_that_was_cut_here_is_fetched_again(server: Server, make_store: Callable[..., ShardCache]) -> None:
    """A local copy of another size than the list says is none."""
    store = make_store()
    path = store.local(f"{server.url}/a.tar", size=len(BODY))
    os.truncate(path, 10)
    assert store.local(f"{server.url}/a.tar", size=len(BODY)).read_bytes() == BODY


# Ahead


def entry(url: str, crc32: int | None = CRC, size: int = len(BODY)) -> Entry:
    return Entry(place=url, bytes=size, samples=1, holds={}, crc32=crc32)


def test_ahead_fetches_in_order(server: Server, make_store: Callable[..., ShardCache]) -> None:
    """Wishes are fetched in the background; what fails there is quiet, until `local` asks for it and says why."""
    store = make_store(tries=1)
    store.prefetch([])
    server.files["/z.tar"] = BODY
    store.prefetch([entry(f"{server.url}/{name}.tar") for name in ("a", "missing", "z")])
    path = store.folder / next(iter([store.local(f"{server.url}/a.tar", size=len(BODY), crc32=CRC)])).name
    assert path.read_bytes() == BODY
    assert store.local(f"{server.url}/z.tar", size=len(BODY), crc32=CRC).read_bytes() == BODY
    with pytest.raises(UserError, match="there is no"):
        store.local(f"{server.url}/missing.tar", size=len(BODY), crc32=CRC)
    assert [path for path, _ in server.asked].count("/z.tar") == 1


def test_ahead_never_wishes_for_more_than_there_is_room(server: Server, make_store: Callable[..., ShardCache]) -> None:
    """Else a wish would push out the one before it."""
    store = make_store(limit_gb=2.5 * len(BODY) / 1e9)
    store.prefetch([entry(f"{server.url}/{name}.tar") for name in "abcd"])
    assert len(store._kept) == 2


def test_a_store_travels_to_another_process(make_store: Callable[..., ShardCache]) -> None:
    """A worker that is spawned gets no thread, and starts its own."""
    store = make_store()
    store.prefetch([])
    store._sleep = print
    copy = pickle.loads(pickle.dumps(store))
    assert copy.folder == store.folder and copy._ahead is None
    copy.prefetch([])
    assert copy._ahead.process == os.getpid()


# Text, lists and patterns


def test_text_is_bounded_and_tried_again(server: Server, make_store: Callable[..., ShardCache]) -> None:
    server.files |= {"/t.tar": "naïve".encode(), "/bad.tar": b"\xff\xfe"}
    server.faults = ["cut", "500"]
    store = make_store()
    assert store.text(f"{server.url}/t.tar", 6) == "naïve"
    with pytest.raises(UserError, match="has over 5 bytes"):
        store.text(f"{server.url}/t.tar", 5)
    with pytest.raises(UserError, match="not UTF-8 at byte 0"):
        store.text(f"{server.url}/bad.tar", 5)
    server.faults = ["cut"] * 9
    with pytest.raises(FetchError, match="the connection ended at byte 3 of 6"):
        store.text(f"{server.url}/t.tar", 100)


def listed(*names: str) -> bytes:
    shards = [{"name": name, "bytes": 5, "crc32": 1, "samples": 2, "holds": {"image": 2}} for name in names]
    return json.dumps({"format": 1, "shards": shards}).encode()


def test_a_folder_and_a_pattern_are_read_from_the_list(server: Server, make_store: Callable[..., ShardCache]) -> None:
    """Both give the same entries; the list is read once; names are joined to the URL as its letters allow."""
    server.files["/set/shards.json"] = listed("x-0.tar", "x-1.tar", "odd name.tar")
    folder = expand_remote(f"{server.url}/set/", make_store())
    assert [item.place for item in folder] == [f"{server.url}/set/{name}.tar" for name in ("x-0", "x-1", "odd%20name")]
    assert (folder[0].bytes, folder[0].crc32, folder[0].samples, folder[0].holds["image"]) == (5, 1, 2, 2)
    server.asked.clear()
    assert expand_remote(f"{server.url}/set/x-{{0..1}}.tar, {server.url}/set/odd%20name.tar", make_store()) == folder
    assert server.asked == [("/set/shards.json", "")]
    signed = expand_remote(f"{server.url}/set?key=1", make_store())
    assert signed[0].place == f"{server.url}/set/x-0.tar?key=1", "what opens the folder opens its files"


def test_a_url_that_holds_credentials_opens_a_set(
    server: Server, make_store: Callable[..., ShardCache], write_shard: Callable[..., Path], tmp_path: Path
) -> None:
    """What opens the folder opens its lists, indexes and shards, and no message has it; nor has the shard's name."""
    shard = write_shard(tmp_path / "set" / "odd name.tar", {"a\nb": {"txt": b" "}})
    index.write(shard)
    shard_list.write_list(shard.parent)
    server.files = {f"/set/{quote(path.name)}": path.read_bytes() for path in shard.parent.iterdir()}
    store = make_store()
    shards = Shards(expand_remote(server.url.replace("//", "//me:hunter2@") + "/set?key=hunter3", store), store)
    assert shards[0].parts == {"txt": b" "} and shards.name(0) == "odd name.tar"
    assert len(server.logins) == 3 and set(server.logins) == {"Basic bWU6aHVudGVyMg=="}
    assert "hunter" not in shards.where(0) and "hunter" not in shards[0].where
    server.files[f"/set/{quote('odd name')}.idx.json"] = b"[]"
    with pytest.raises(UserError, match=r"odd%20name\.idx\.json is no index") as caught:
        Shards(expand_remote(server.url.replace("//", "//me:hunter2@") + "/set?key=hunter3", store), store)[0]
    assert "hunter" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{}/none", r"run `mmfm data index FOLDER` where the shards are, and upload"),
        ("{}/set/y.tar", r"y\.tar is not in shards\.json of its folder"),
        ("{0}/set,{0}/set/x-0.tar", r"x-0\.tar is named twice"),
        ("{}/evil", "no list of shards"),
        ("{}/evil2", "no list of shards"),
        ("{}/set/x-0.tar, local.tar", r"'local\.tar' is no scheme"),
    ],
)
def test_what_no_list_says(server: Server, make_store: Callable[..., ShardCache], spec: str, words: str) -> None:
    """One line, and what to do."""
    server.files |= {"/set/shards.json": listed("x-0.tar"), "/evil/shards.json": listed("../../x.tar")}
    server.files["/evil2/shards.json"] = b"[" * 100_000
    with pytest.raises(UserError, match=words) as caught:
        expand_remote(spec.format(server.url), make_store())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["pipe:touch marker", "file:///etc/passwd", "ftp://h/a.tar", "data:,x", "S3:/x", "http:///a.tar", "s3://", "hf:x",
     "http://[::1/a.tar", "http://h:port/a.tar", "memory://a", "simplecache::http://h/a", "ht\ntp://h/a", "gopher://h/1"],
)  # fmt: skip
def test_what_is_no_url_of_ours_is_refused(make_store: Callable[..., ShardCache], url: str) -> None:
    """By its scheme alone, and in one line: nothing runs, and nothing is opened."""
    assert is_remote(url) or "\n" in url
    for refuse in (check_scheme, make_store().local, make_store().text, lambda spec: expand_remote(spec, make_store())):
        with pytest.raises(UserError) as caught:
            refuse(url)
        assert "\n" not in str(caught.value)


def test_what_is_local() -> None:
    for spec in ("data/train", "/data/x-{000..009}.tar", "a,b", "~/x.tar", "./pipe:x"):
        assert not is_remote(spec)
    assert is_remote("a.tar, s3://bucket/b.tar")
    assert [check_scheme(f"{scheme}://b/k") for scheme in SCHEMES] == list(SCHEMES)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://me:pw@h:1/a/b.tar?X-Amz-Signature=1#x", "https://h:1/a/b.tar"),
        ("https://h?key=1", "https://h"),
        ("hf://datasets/o/n@main/a.tar", "hf://datasets/o/n@main/a.tar"),
        ("http://h/a\nb", "http://h/a?b"),
    ],
)
def test_shown(url: str, told: str) -> None:
    """No credentials and no line break of a URL reach a message."""
    assert shown(url) == told


# Stores with a scheme of their own


def test_hugging_face(server: Server, make_store: Callable[..., ShardCache], monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set's file is asked for at its revision, with the token, which no redirect takes to another host."""
    (other,) = [next(others := serving(Server()))]
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "secret")
    server.files["/datasets/o/n/resolve/refs%2Fx/d/a.tar"] = BODY
    server.files["/datasets/o/n/resolve/main/shards.json"] = listed("a.tar")
    server.faults = ["", f"to {other.url}/a.tar"]
    store = make_store()
    for _ in range(2):
        assert store.local("hf://datasets/o/n@refs%2Fx/d/a.tar").read_bytes() == BODY
    assert store.local("hf://datasets/o/n/b.tar").read_bytes() == BODY
    assert server.logins == ["Bearer secret"] * 2 and other.logins == [None]
    assert [item.place for item in expand_remote("hf://datasets/o/n", store)] == ["hf://datasets/o/n/a.tar"]
    with pytest.raises(UserError, match="not of the form hf://datasets/OWNER"):
        store.local("hf://datasets/o")
    others.close()


def test_google(server: Server, make_store: Callable[..., ShardCache], monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket's file is asked for with the machine's token."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    monkeypatch.setattr(remote_servers, "_google_token", lambda: lambda: "secret")
    server.files["/bucket/k/a.tar"] = BODY
    server.faults = ["stall", "500"]
    assert make_store().local("gs://bucket/k/a.tar", size=len(BODY), crc32=CRC).read_bytes() == BODY
    assert server.asked[-1] == ("/bucket/k/a.tar", f"bytes={HALF}-") and set(server.logins) == {"Bearer secret"}


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """An S3-compatible server with one bucket, as host:port."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for path, body in {"": b"", "/set/a.tar": BODY, "/set/shards.json": listed("a.tar")}.items():
        connection = http.client.HTTPConnection(host, port)
        connection.request("PUT", f"/bucket{path}", body)
        assert connection.getresponse().status == 200
        connection.close()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The same, behind a server that has faults."""
    for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    for server in serving(Server(upstream=moto)):
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # they remember their server
        yield server


@pytest.mark.parametrize("faults", [[], ["500"], ["cut"], ["stall"], ["wrong"], ["hang up"], ["503", "cut"]], ids=str)
def test_s3(bucket: Server, make_store: Callable[..., ShardCache], faults: list[str]) -> None:
    """From an S3-compatible server: the right bytes, after as many requests as there were faults and one."""
    bucket.faults = list(faults)
    path = make_store().local("s3://bucket/set/a.tar", size=len(BODY), crc32=CRC)
    assert path.read_bytes() == BODY
    assert [path for path, _ in bucket.asked] == ["/bucket/set/a.tar"] * (len(faults) + 1)


def test_s3_without_a_size(bucket: Server, make_store: Callable[..., ShardCache]) -> None:
    """The bucket says how long a file is; a list there is read as any other."""
    store = make_store()
    assert store.local("s3://bucket/set/a.tar").read_bytes() == BODY
    assert [item.place for item in expand_remote("s3://bucket/set", store)] == ["s3://bucket/set/a.tar"]


@pytest.mark.parametrize(
    ("fault", "url", "error", "words"),
    [
        ("500", "s3://bucket/set/a.tar", FetchError, "3 times in a row"),
        ("stall", "s3://bucket/set/a.tar", FetchError, "3 times in a row"),
        ("403", "s3://bucket/set/a.tar", UserError, "AWS_ACCESS_KEY_ID"),
        ("", "s3://bucket/none.tar", UserError, "there is no s3://bucket/none.tar"),
        ("", "s3://other/none.tar", UserError, "there is no s3://other/none.tar"),
    ],
)
def test_s3_in_words(
    bucket: Server, make_store: Callable[..., ShardCache], fault: str, url: str, error: type[Exception], words: str
) -> None:
    """What goes on failing is said as for http; what a wrong name or right is, at once."""
    bucket.faults = [fault] * 9 if fault else []
    store = make_store()
    with pytest.raises(error, match=words) as caught:
        store.local(url, size=len(BODY), crc32=CRC)
    assert "\n" not in str(caught.value) and not list(store.folder.glob("*.tar")) and leftovers(store) == []


@pytest.mark.parametrize(("url", "package"), [("s3://b/a.tar", "s3fs"), ("gs://b/a.tar", "google.auth")])
def test_a_missing_package_is_named(
    make_store: Callable[..., ShardCache], monkeypatch: pytest.MonkeyPatch, url: str, package: str
) -> None:
    """pip's line, instead of a traceback."""
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    remote_servers._google_token.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'mmfm\[remote\]'"):
        make_store().local(url)
