"""Shards are found, proved whole and read part by part, as webdataset and tarfile read them."""

import io
import json
import os
import tarfile
from collections import Counter
from contextlib import ExitStack

import numpy as np
import pytest
import webdataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from mmfm.config import UserError
from mmfm.data.sample import Sample, meta_of, text_of
from mmfm.data.shard_specs import expand
from mmfm.data.shards import Shards
from mmfm.data.tar import members
from mmfm.preprocessing import BadSample

SMALL = {f"s{i:02d}": {"png": b"P" * (i * 100), "txt": f"text {i}".encode(), "json": b"{}"} for i in range(8)}


def refused(path, words):
    with pytest.raises(UserError, match=words) as error:
        Shards([path])
    assert str(path) in str(error.value) and "\n" not in str(error.value)


# Parity


def by_webdataset(paths):
    """Every sample, as webdataset's own reader groups it."""
    with ExitStack() as files:
        streams = [{"url": str(path), "stream": files.enter_context(path.open("rb"))} for path in paths]
        samples = list(group_by_keys(tar_file_expander(streams)))
    return [(sample["__key__"], {k: v for k, v in sample.items() if not k.startswith("__")}) for sample in samples]


def test_same_samples_as_webdataset(tmp_path):
    """Written by webdataset, read by both: equal keys, parts and order, over two shards, folders in keys included."""
    random = np.random.default_rng(0)
    for shard in range(2):
        with (tmp_path / f"{shard}.tar").open("wb") as file, webdataset.TarWriter(file) as tar:
            for i in range(30):
                data = {name: random.bytes(random.integers(0, 2_000)) for name in ("png", "flac", "json")[: i % 3 + 1]}
                tar.write({"__key__": f"a.b/c/{shard}-{i:03d}", **data, "txt": f"number {i}".encode()})
    shards = Shards(expand(str(tmp_path)))
    assert [(sample.key, sample.parts) for sample in shards] == by_webdataset(expand(str(tmp_path)))
    assert len(shards) == 60 and shards.counts() == [30, 30] and not shards.ignored


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_same_members_as_tarfile(tmp_path, layout):
    """Names over 100 bytes, accents, empty files, links, folders and fractional times, in all three formats."""
    names = ["a.txt", "x" * 90 + "/" + "y" * 80 + ".png", "empty.txt", "dir/b.wav"]
    names += [] if layout == tarfile.USTAR_FORMAT else ["ü" * 90 + ".txt", "z" * 300 + ".json"]
    with tarfile.open(tmp_path / "t.tar", "w", format=layout) as tar:
        folder = tarfile.TarInfo("dir")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for i, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 0 if "empty" in name else 500 * i + 12, 0.5 * (layout == tarfile.PAX_FORMAT)
            tar.addfile(info, io.BytesIO(b"d" * info.size))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("link.txt")
            link.type, link.linkname = kind, "l" * 150 if layout != tarfile.USTAR_FORMAT else "a.txt"
            tar.addfile(link)
    with tarfile.open(tmp_path / "t.tar") as tar:
        theirs = [(m.name, m.offset_data, m.size, m.isreg()) for m in tar.getmembers() if not m.isdir()]
    ours = list(members(tmp_path / "t.tar"))
    assert ours == theirs


def test_size_over_octal_digits(tmp_path, write_shard):
    """GNU's binary size field is read: 8 GB and more do not fit into octal digits. (The file is a hole on disk.)"""
    size = 9 << 30
    info = tarfile.TarInfo("big.txt")
    info.size = size
    path = tmp_path / "big.tar"
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + size + 1024)
    assert list(members(path)) == [("big.txt", 512, size, True)]


def test_a_sample_is_its_members_wherever_they_are(tmp_path):
    """Members of one key that are not adjacent make one sample; webdataset would deliver several partial ones."""
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in ("a.png", "b.png", "a.txt", "b.txt"):
            info = tarfile.TarInfo(name)
            info.size = 6
            tar.addfile(info, io.BytesIO(name.encode() + b"!"))
    assert [(s.key, s.parts) for s in Shards([tmp_path / "t.tar"])] == [
        ("a", {"png": b"a.png!", "txt": b"a.txt!"}),
        ("b", {"png": b"b.png!", "txt": b"b.txt!"}),
    ]


# Damage


def test_cut_at_any_block_is_refused(tmp_path, write_shard):
    """An archive that ends early is never a shorter archive, wherever it ends: in a body, in a header or between."""
    data = write_shard(tmp_path / "whole.tar", SMALL).read_bytes()
    end = max(member.offset + -(-member.size // 512) * 512 for member in members(tmp_path / "whole.tar"))
    cut = tmp_path / "cut.tar"
    for length in [*range(0, end + 1024, 256), end + 1023]:
        cut.write_bytes(data[:length])
        refused(cut, "cut at byte|damaged at byte")
    cut.write_bytes(data[: end + 1024])
    assert len(Shards([cut])) == len(SMALL)


def test_any_flipped_header_byte_is_refused(tmp_path, write_shard):
    """Every byte of a header that carries meaning is covered by its checksum; the message names the header's byte."""
    whole = write_shard(tmp_path / "whole.tar", SMALL)
    data, flipped = whole.read_bytes(), tmp_path / "flipped.tar"
    at = [member.offset - 512 for member in members(whole)][4]
    for place in range(0, 500, 7):
        flipped.write_bytes(data[: at + place] + bytes([data[at + place] ^ 0x15]) + data[at + place + 1 :])
        refused(flipped, f"damaged at byte {at}")


def test_bytes_after_the_end_are_refused(tmp_path, write_shard):
    """Two archives in one file, as `cat` makes them: the second would be invisible."""
    data = write_shard(tmp_path / "one.tar", SMALL).read_bytes()
    (tmp_path / "two.tar").write_bytes(data + data)
    refused(tmp_path / "two.tar", f"members end at byte .*, but byte {len(data)} is not zero")


def test_what_is_no_tar_is_refused(tmp_path, write_shard):
    """Text, nothing, and a compressed archive under the name of a plain one."""
    (tmp_path / "text.tar").write_bytes(b"hello" * 300)
    refused(tmp_path / "text.tar", "damaged at byte 0: that is no header of a .tar")
    (tmp_path / "empty.tar").write_bytes(b"")
    refused(tmp_path / "empty.tar", "cut at byte 0")
    with tarfile.open(tmp_path / "zip.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    refused(tmp_path / "zip.tar", "must be unpacked")


def test_sparse_member_is_refused(tmp_path):
    """10 KB on disk can claim 300 MB in memory."""
    info = tarfile.TarInfo("a.txt")
    info.type = tarfile.GNUTYPE_SPARSE
    (tmp_path / "s.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    refused(tmp_path / "s.tar", "sparse")


def test_duplicates_and_rivals_are_refused(tmp_path, write_shard):
    """The same part twice, or two pictures of one sample: which one counts must not be a matter of order."""
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("dir/a.txt"))
    refused(tmp_path / "t.tar", "dir/a has .txt twice")
    refused(
        write_shard(tmp_path / "u.tar", {"a": {"png": b"", "jpg": b""}}),
        "a has both .png and .jpg, of which one is read; say which",
    )


def test_shard_that_shrinks_while_in_use(tmp_path, write_shard):
    """A body that is no longer there is an error, not a short body."""
    shards = Shards([write_shard(tmp_path / "t.tar", SMALL)])
    os.truncate(tmp_path / "t.tar", 2_000)
    with pytest.raises(UserError, match="became shorter"):
        shards[7]


# What is in them


def test_other_extensions_are_counted_and_never_read(tmp_path, write_shard):
    """A pickle in a shard is counted, not opened; extensions are case-blind and end at the first dot."""
    parts = {"PNG": b"1", "pkl": b"2", "seg.png": b"3", "txt": b"4"}
    shards = Shards(
        [write_shard(tmp_path / "t.tar", {"a": parts, "b": {"JPEG": b"5", "pkl": b"6"}, "c": {"npy": b""}})]
    )
    assert shards.ignored == Counter({"pkl": 2, "seg.png": 1, "npy": 1})
    assert [sample.parts for sample in shards] == [{"png": b"1", "txt": b"4"}, {"jpeg": b"5"}]
    refused(write_shard(tmp_path / "u.tar", {"a": {"pkl": b""}}), "no sample with a part that is read")


def test_presence_counts_modalities_with_text_in_json(tmp_path, write_shard):
    """A caption may stand in .txt or .json; a .json without one is no text; .cls is none."""
    samples = {
        "a": {"png": b"", "json": b'{"caption": "x"}'},
        "b": {"flac": b"", "json": b'{"speaker": 3}'},
        "c": {"jpg": b"", "wav": b"", "txt": b"x", "cls": b"3"},
        "d": {"ogg": b"", "json": json.dumps({"text": "y"}).encode()},
    }
    shards = Shards([write_shard(tmp_path / "t.tar", samples)])
    kinds = [shards.modalities(i) for i in range(4)]
    assert kinds == [{"image", "text"}, {"audio"}, {"image", "audio", "text"}, {"audio", "text"}]
    assert shards.extensions(2) == ("jpg", "wav", "txt", "cls")


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"txt": b"forty-two\n"}, "forty-two"),
        ({"txt": b"\xef\xbb\xbfmark"}, "mark"),
        ({"txt": b"file", "json": b'{"caption": "tree"}'}, "file"),
        ({"json": b'{"caption": " tree ", "text": "other"}'}, "tree"),
        ({"json": b'{"caption": 3, "text": "other"}'}, "other"),
        ({"json": b'{"label": "x"}'}, None),
        ({"png": b""}, None),
    ],
)
def test_where_the_text_is(parts, text):
    """The .txt first, then "caption", then "text"; without white space around it and without a byte order mark."""
    assert text_of(Sample("k", parts, "t.tar: k")) == text


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"txt": b"caf\xe9"}, "not UTF-8 \\(byte 3\\)"),
        ({"txt": b" \n"}, "empty"),
        ({"txt": b"a" * (1 << 20) + b"b"}, "1048577 characters"),
        ({"json": b"{"}, "no JSON"),
        ({"json": b"[" * 100_000}, "no JSON"),
        ({"json": b"[1]"}, "no object"),
    ],
)
def test_unusable_text_names_shard_and_key(parts, words):
    """One line each."""
    with pytest.raises(BadSample, match=f"^t.tar: k: .*{words}"):
        text_of(Sample("k", parts, "t.tar: k"))
    assert meta_of(Sample("k", {}, "t.tar: k")) == {}


def test_indices_and_fork(tmp_path, write_shard):
    """Past the end is an IndexError, so that `for` ends; a child process reads through the same descriptors."""
    shards = Shards([write_shard(tmp_path / f"{i}.tar", SMALL) for i in range(3)])
    with pytest.raises(IndexError, match="sample 24 of 24"):
        shards[24]
    before = [sample.parts for sample in shards]
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b"y" if [sample.parts for sample in shards] == before else b"n")
        os._exit(0)
    same = [sample.parts for sample in shards] == before
    os.waitpid(child, 0)
    assert same and os.read(read, 1) == b"y"


# Names


def test_specifications(tmp_path, write_shard):
    """A folder, a tar, a glob, braces of numbers and of words, and lists of these, in the order that is stated."""
    for name in ("b-000.tar", "a-000.tar", "a-001.tar", "a-002.tar"):
        write_shard(tmp_path / name, SMALL)
    (tmp_path / "note.txt").write_text("no shard")
    spell = lambda spec: [path.name for path in expand(spec.replace("@", str(tmp_path)))]  # noqa: E731
    assert spell("@") == ["a-000.tar", "a-001.tar", "a-002.tar", "b-000.tar"]
    assert spell("@/b-000.tar") == ["b-000.tar"]
    assert spell("@/a-*.tar") == ["a-000.tar", "a-001.tar", "a-002.tar"]
    assert spell("@/a-{001..002}.tar") == ["a-001.tar", "a-002.tar"]
    assert spell("@/{b,a}-000.tar, @/a-00[12].tar") == ["b-000.tar", "a-000.tar", "a-001.tar", "a-002.tar"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("@/none", "there is no '.*none'; give a folder"),
        ("@/data/numbers/train", "make it with: mmfm data numbers .*/data/numbers$"),
        ("@/empty", "holds no .tar"),
        ("@/a-{000..003}.tar", "there is no '.*a-001.tar'"),
        ("@/x*.tar", "there is no"),
        ("@/a-000.tar,@/a-000.tar", "a-000.tar twice"),
        ("", "there is no ''"),
    ],
)
def test_what_is_not_there(tmp_path, write_shard, spec, words):
    """Each mistake in one line, with what to do."""
    write_shard(tmp_path / "a-000.tar", SMALL)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=words) as error:
        expand(spec.replace("@", str(tmp_path)))
    assert "\n" not in str(error.value)


def test_checking_data_needs_no_torch():
    """`mmfm train --check` reads shards within a second: their module pulls in the standard library alone."""
    import subprocess
    import sys

    code = "import sys, mmfm.data.shards; print(sorted({'torch', 'numpy', 'webdataset', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "[]\n"
