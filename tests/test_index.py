"""An index says what a scan says, proves that it is of this tar, and cannot make a reader read elsewhere."""

import json
from array import array

import numpy as np
import pytest

from mmfm.config import Source, UserError
from mmfm.data import index, shard_list, shards
from mmfm.data.sample import text_of
from mmfm.data.shard_specs import expand
from mmfm.data.shards import Shards, check_holds


@pytest.fixture
def folder(tmp_path, write_shard, encode_image, encode_audio, sine):
    """Two tars: pictures with captions in .json, and clips with texts; some parts missing, some not ours."""
    picture = encode_image(np.zeros((8, 16), np.uint8))
    pictures = {f"i{n}": {"png": picture, "json": json.dumps({"caption": f"c{n}"}).encode()} for n in range(5)}
    pictures["i3"]["json"] = b'{"other": 1}'
    pictures["i4"]["pkl"] = b"x"
    clips = {f"a{n}": {"wav": encode_audio(sine(300.0, 0.5 + n)), "txt": b"t"} for n in range(3)}
    write_shard(tmp_path / "image.tar", pictures)
    write_shard(tmp_path / "audio.tar", clips)
    return tmp_path


def everything(found: Shards) -> list:
    return [(found.key(i), found.extensions(i), found[i].parts, sorted(found.modalities(i))) for i in range(len(found))]


def test_scanned_indexed_and_listed_are_the_same(folder):
    """Without an index, with one beside each tar, and with the folder's list: the same samples, bytes and counts."""
    scanned = Shards(expand(str(folder)))
    for tar in folder.glob("*.tar"):
        index.write(tar)
    indexed = Shards(expand(str(folder)))
    shard_list.write_list(folder)
    listed = Shards(expand(str(folder)))
    assert everything(scanned) == everything(indexed) == everything(listed)
    for one in (scanned, indexed, listed):
        assert one.counts() == [3, 5] and one.ignored == {"pkl": 1}
        assert one.held == {"image": 5, "audio": 3, "text": 3 + 4}
    assert not listed._live or len(listed._live) == 2


def test_the_list_is_enough_to_open_a_set(folder, monkeypatch):
    """With it no index is opened before a sample is asked for, and then only its tar's."""
    for tar in folder.glob("*.tar"):
        index.write(tar)
    shard_list.write_list(folder)
    loaded = []
    monkeypatch.setattr(index, "load", lambda path, size, load=index.load: loaded.append(path.name) or load(path, size))
    found = Shards(expand(str(folder)))
    assert loaded == [] and len(found) == 8
    assert found[7].key == "i4" and loaded == ["image.tar"]


def test_seconds_and_pixels_are_known(folder):
    """The index holds the length of each sound and the size of each picture; `length` is what balancing uses."""
    made = index.write(folder / "audio.tar")
    assert made.seconds == array("f", [0.5, 1.5, 2.5]) and list(made.pixels) == [-1, -1, -1]
    assert list(index.write(folder / "image.tar").pixels) == [128] * 5
    found, place = Shards([folder / "audio.tar"]).indexed(1)
    assert found.seconds.tolist() == [0.5, 1.5, 2.5] and place == 1


def test_few_indexes_are_kept(tmp_path, write_shard, monkeypatch):
    """However many tars: no more samples' indexes than LIVE_SAMPLES are held, and every sample can still be read."""
    monkeypatch.setattr(shards, "LIVE_SAMPLES", 6)
    for n in range(12):
        write_shard(tmp_path / f"{n:02d}.tar", {f"{n}-{i}": {"txt": f"{n} {i}".encode()} for i in range(2)})
        index.write(tmp_path / f"{n:02d}.tar")
    shard_list.write_list(tmp_path)
    found = Shards(expand(str(tmp_path)))
    for i in [*range(24), *range(23, -1, -5)]:
        assert text_of(found[i]) == f"{i // 2} {i % 2}" and len(found._live) <= 3


def test_a_tar_that_changed_is_refused(folder, write_shard):
    """Another size: named at once. The same size and other contents: named by the read that finds no such member."""
    for tar in folder.glob("*.tar"):
        index.write(tar)
    write_shard(folder / "audio.tar", {f"b{n}": {"wav": b"x" * 3_000, "txt": b"t"} for n in range(3)})
    with pytest.raises(
        UserError, match=r"audio.idx.json is the index of 'audio.tar' of \d+ bytes, but .*mmfm data index"
    ):
        Shards(expand(str(folder)))
    index.write(folder / "audio.tar")
    write_shard(folder / "audio.tar", {f"b{n}": {"wav": b"y" * 3_001, "txt": b"t"} for n in range(3)})
    with pytest.raises(
        UserError, match=r"audio.tar is not the tar that was indexed: byte 512 begins no wav; .*data index"
    ):
        Shards([folder / "audio.tar"])[0]
    index.write(folder / "audio.tar")
    shard_list.write_list(folder)
    write_shard(folder / "audio.tar", {"b": {"txt": b"t"}})
    with pytest.raises(
        UserError, match=r"audio.tar was changed after it was indexed: it has \d+ bytes, and shards.json"
    ):
        Shards(expand(str(folder)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t["parts"]["txt"]["offset"].__setitem__(0, 10**9), "a part that ends behind the tar"),
        (lambda t: t["parts"]["txt"]["offset"].__setitem__(0, -5), "a negative offset"),
        (lambda t: t["parts"]["txt"]["size"].__setitem__(0, -7), "a negative offset"),
        (lambda t: t["parts"]["txt"]["size"].__setitem__(0, 2**63), "OverflowError"),
        (lambda t: t["parts"]["txt"]["size"].__setitem__(0, "1"), "TypeError"),
        (lambda t: t["parts"]["txt"]["size"].pop(), "columns of other lengths"),
        (lambda t: t["parts"].update(pkl=t["parts"]["txt"]), "an extension that is not read"),
        (lambda t: t["keys"].__setitem__(0, t["keys"][1]), "keys must be different"),
        (lambda t: t["keys"].__setitem__(0, 7), "keys must be different"),
        (lambda t: t.update(keys=[]), "keys must be different|other lengths"),
        (lambda t: t.update(format=2), "format 2, not 1"),
        (lambda t: t.pop("seconds"), "KeyError"),
        (lambda t: t.update(shard="../x.tar"), r"the index of '../x.tar'"),
    ],
)
def test_no_value_of_an_index_is_trusted(folder, change, words):
    index.write(folder / "audio.tar")
    path = folder / "audio.idx.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=words) as error:
        Shards([folder / "audio.tar"])
    assert str(path) in str(error.value) and "mmfm data index" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["../audio.tar", "a/b.tar", "audio.txt", ".tar", 7, "a\0.tar"])
def test_a_list_names_plain_tars_only(folder, name):
    for tar in folder.glob("*.tar"):
        index.write(tar)
    path = shard_list.write_list(folder)
    tree = json.loads(path.read_text())
    tree["shards"][0]["name"] = name
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"shards.json is no list of shards .*mmfm data index"):
        Shards(expand(str(folder)))


def test_scattered_members_are_put_together_and_told(tmp_path, write_shard):
    """Members of a sample that do not lie side by side make one sample, as they should, and the index says so."""
    import io
    import tarfile

    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in ("a.txt", "b.txt", "a.json", "b.json"):
            info = tarfile.TarInfo(name)
            info.size = 2
            tar.addfile(info, io.BytesIO(b"{}"))
    assert index.write(tmp_path / "t.tar").scattered == 2
    found = Shards([tmp_path / "t.tar"])
    assert found.scattered == 2 and [sorted(found.extensions(i)) for i in range(2)] == [["json", "txt"]] * 2


def test_what_a_source_declares_is_counted_from_the_lists(folder):
    """A few samples without what is provided are allowed up to the budget, more are refused with the first one."""
    found = Shards(expand(str(folder / "image.tar")))
    check_holds(Source(shards="x", modalities=("image", "text")), found, 0.2)
    with pytest.raises(UserError, match=r"i3 has no text, which its source provides; neither have 0 others of 5"):
        check_holds(Source(shards="x", modalities=("image", "text")), found, 0.19)
