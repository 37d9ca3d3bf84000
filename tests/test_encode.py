"""`mmfm data encode`: codes beside what they stand for, whose they are, and what is refused."""

import gc
import io
import json
import tarfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from torch import Tensor
from toys import toy_config, toy_run

from mmfm.__main__ import main
from mmfm.config import AudioCodec, Augment, Data, Generative, ImageCodec, Mel, Source, UserError, serialization
from mmfm.data.codes import MANIFEST, codecs_said, packed, require_own, stored_codes
from mmfm.data.decode import Decode, padded
from mmfm.data.remote_servers import Absent
from mmfm.data.sample import Sample
from mmfm.data.shards import Shards
from mmfm.data.stream import TrainStream
from mmfm.data.vocabulary import CodeFormat
from mmfm.data.writer import Item, write_shard
from mmfm.datasets.encode import Coder, coders_of, decoded, encode
from mmfm.models import checkpoint
from mmfm.models.codecs import make_codec
from mmfm.models.codecs.fingerprint import fingerprint
from mmfm.models.model import build
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.tokenizer import load_tokenizer

PICTURES = ImageCodec(height_px=8, width_px=16, channels=1, patch_px=4, levels=(8, 5), width=8, depth=1)
SPEECH = AudioCodec(mel=Mel(bins=16), frame_stack=4, num_codebooks=2, levels=(4, 3), width=8, depth=1)
CONFIGS = {"image": PICTURES, "audio": SPEECH}
Files = tuple[Path, dict[str, Coder]]


def coders(seed: int = 0, **configs: ImageCodec | AudioCodec) -> dict[str, Coder]:
    torch.manual_seed(seed)
    made = configs or CONFIGS
    return coders_of({name: make_codec(cfg).eval() for name, cfg in made.items()}, made)


@pytest.fixture
def shards(tmp_path: Path, encode_image: Callable[..., bytes], encode_audio: Callable[..., bytes]) -> Path:
    """Two tars of five samples: pictures, sounds of other lengths, both, or a text alone."""
    draw = np.random.default_rng(0)
    folder = tmp_path / "in"
    folder.mkdir()
    for tar in range(2):
        items = []
        for row in range(5):
            parts = {"txt": f"text {tar} {row}".encode()}
            if row % 2 == 0:
                parts["png"] = encode_image(draw.integers(0, 256, (12, 20), dtype=np.uint8))
            if row in (1, 2):
                parts["wav"] = encode_audio(
                    draw.normal(0, 0.1, 1_600 + 700 * row + 10 * tar).astype(np.float32), 16_000
                )
            items.append(Item(f"{tar}-{row}", parts))
        write_shard(folder / f"part-{tar:06d}.tar", items)
    (folder / "classnames.txt").write_text("one\ntwo\n")
    return folder


def run(coders: dict[str, Coder], shards: Path, out: Path, batch: int = 2) -> None:
    encode(coders, str(shards), out, decode=Decode(), batch=batch, progress=False)


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_stored_codes_are_the_codecs(shards: Path, tmp_path: Path) -> None:
    """What is read of a written shard is what the codec makes of each item alone; all else is as it was."""
    made = coders()
    run(made, shards, tmp_path / "out")
    before, after = Shards(sorted(shards.glob("*.tar"))), Shards(sorted((tmp_path / "out").glob("*.tar")))
    assert len(before) == len(after) == 10
    assert after.held == before.held
    found = {"image": 0, "audio": 0}
    for number in range(10):
        old, new = before[number], after[number]
        assert old.key == new.key
        assert old.parts == {name: data for name, data in new.parts.items() if name in old.parts}
        for name, coder in made.items():
            item = decoded(old, name, coder.contract, Decode())
            codes = stored_codes(new, name, coder.codec.form)
            assert (item is None) == (codes is None)
            if item is not None and codes is not None:
                with torch.no_grad():
                    ids, keep = coder.codec.encode(*padded([item]))
                assert torch.equal(codes, ids[keep])
                found[name] += 1
    assert found == {"image": 6, "audio": 4}
    assert (tmp_path / "out" / "classnames.txt").read_text() == "one\ntwo\n"
    assert (tmp_path / "out" / "left_out.jsonl").read_text() == ""


def test_webdataset_and_numpy_read_them(shards: Path, tmp_path: Path) -> None:
    """The codes are a .npy to WebDataset's own decoder."""
    made = coders()
    run(made, shards, tmp_path / "out")
    url = str(tmp_path / "out" / "part-000000.tar")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves it to the garbage collector to close tars
        data = list(webdataset.WebDataset(url, shardshuffle=False).decode())
        gc.collect()
    assert len(data) == 5
    for number, sample in enumerate(data):
        ours = stored_codes(Shards([Path(url)])[number], "image", made["image"].codec.form)
        theirs = sample.get("imagecodes.npy")
        assert (ours is None) == (theirs is None)
        assert ours is None or ours.tolist() == theirs.tolist()


def test_a_stopped_one_goes_on(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a stop in the second tar the same command writes the same bytes as one that never stopped."""
    run(coders(), shards, tmp_path / "whole")
    made = coders()
    calls = []

    def stop(*args: Tensor) -> None:
        calls.append(args)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return own(*args)

    own = made["image"].codec.encode
    monkeypatch.setattr(made["image"].codec, "encode", stop)
    with pytest.raises(KeyboardInterrupt):
        run(made, shards, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("*.tar")] == ["part-000000.tar"]
    with pytest.raises(UserError, match=r"not complete: `mmfm data encode` was stopped; repeat its command"):
        codecs_said(str(tmp_path / "out"))
    monkeypatch.undo()
    first = (tmp_path / "out" / "part-000000.tar").stat().st_mtime_ns
    run(coders(), shards, tmp_path / "out")
    assert all_bytes(tmp_path / "out") == all_bytes(tmp_path / "whole")
    assert (tmp_path / "out" / "part-000000.tar").stat().st_mtime_ns == first


def test_a_complete_one_is_kept(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(coders(), shards, tmp_path / "out")
    assert "codes of 6 of image and 4 of audio" in capsys.readouterr().out
    before = all_bytes(tmp_path / "out")
    run(coders(), shards, tmp_path / "out")
    assert capsys.readouterr().out.rstrip().endswith("is complete already; nothing to do")
    assert all_bytes(tmp_path / "out") == before


def test_whose_codes(shards: Path, tmp_path: Path) -> None:
    """The codec's own fingerprint is let through; another's weights, or another's levels, are refused in one line."""
    made = coders()
    run(made, shards, tmp_path / "out")
    places = [str(path) for path in (tmp_path / "out").glob("*.tar")]
    assert require_own(places, "image", made["image"].print)
    assert not require_own([str(shards / "part-000000.tar")], "image", made["image"].print)
    other = coders(1)["image"].print
    with pytest.raises(
        UserError, match=rf"has image codes of another codec \({made['image'].print} in its codes\.json"
    ):
        require_own(places, "image", other)
    with pytest.raises(UserError, match="some have image codes and some have not; encode all or none"):
        require_own([*places, str(shards / "part-000000.tar")], "image", made["image"].print)


def test_a_fingerprint_is_of_weights_and_shape() -> None:
    """Where a codec came from and its precision on the way change nothing; a weight or a level does."""
    torch.manual_seed(0)
    codec = make_codec(PICTURES)
    mark = fingerprint(codec, PICTURES)
    elsewhere = replace(PICTURES, weights="runs/codec")
    assert fingerprint(codec, elsewhere) == fingerprint(codec.double(), PICTURES) == mark
    assert fingerprint(codec, replace(PICTURES, levels=(5, 8))) != mark
    with torch.no_grad():
        next(codec.parameters()).view(-1)[0] += 1e-3
    assert fingerprint(codec, PICTURES) != mark


def test_manifests_behind_urls() -> None:
    """Of a URL's folder, by what reads URLs; one that is not there means no codes."""
    text = json.dumps({"format": 1, "complete": True, "codecs": {"image": {"fingerprint": "ab"}}})
    asked = []

    def read(url: str) -> str:
        asked.append(url)
        if "none" in url:
            raise Absent(f"{url} is not there")
        return text

    assert require_own(["s3://bucket/a/x.tar", "s3://bucket/a/y.tar"], "image", "ab", read)
    assert asked == ["s3://bucket/a/codes.json"]
    assert not require_own(["https://host/none/x.tar"], "image", "ab", read)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "does not say whose codes these are"),
        ('{"format": 1, "complete": true, "codecs": {"image": {}}}', "does not say whose codes these are"),
        ('{"format": 2, "complete": true, "codecs": {}}', "is of another version"),
        ('{"format": 1, "complete": true, "codecs": {"smell": {"fingerprint": "a"}}}', "is of another version"),
    ],
)
def test_damaged_manifests(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(UserError, match=f"{words}; encode the shards again with: mmfm data encode RUN SHARDS OUT"):
        codecs_said(str(tmp_path))


def npy(values: object, kind: str = "<i2") -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(values, kind), allow_pickle=kind == "O")
    return file.getvalue()


HUGE = npy([1, 2]).replace(b"(2,)", b"(2000000000000,)")


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (b"", "codes_damaged", "holds no codes"),
        (npy([1, 2, 3])[:-1], "codes_damaged", r"3 codes of 2 bytes in 5"),
        (npy([1, 2, 3])[:40], "codes_damaged", "holds no codes"),
        (npy([1, 2]) + b"x", "codes_damaged", "2 codes of 2 bytes in 5"),
        (HUGE, "codes_damaged", "holds no codes"),
        (npy([1.0], "<f4"), "codes_damaged", "<f4 of shape"),
        (npy([[1, 2]]), "codes_damaged", r"shape \(1, 2\), no row"),
        (npy([1, 2], "O"), "codes_damaged", r"\|O of shape"),
        (npy([]), "codes_damaged", "holds 0 codes, and a multiple of 2 make one audio"),
        (npy([1, 5, 2]), "codes_damaged", "holds 3 codes, and a multiple of 2"),
        (npy([3, 4, 4, 4]), "codes_outside", r"has 4 at place 2, outside 0\.\.3"),
        (npy([3, 10], "<i4"), "codes_outside", r"has 10 at place 1, outside 4\.\.9"),
        (npy([-1, 4]), "codes_outside", r"has -1 at place 0"),
    ],
)
def test_codes_that_are_none(data: bytes, code: str, words: str) -> None:
    """What is cut, of another shape or kind, pickled, or outside its book is a bad sample, however huge."""
    sample = Sample("key", {"audiocodes.npy": data}, "a.tar: key")
    with pytest.raises(BadSample, match=words) as caught:
        stored_codes(sample, "audio", CodeFormat((4, 6)))
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("a.tar: key")


def test_codes_of_a_picture_are_so_many() -> None:
    sample = Sample("key", {"imagecodes.npy": packed(torch.tensor([1, 2, 3]))}, "a.tar: key")
    with pytest.raises(BadSample, match="holds 3 codes, and 4 make one image"):
        stored_codes(sample, "image", CodeFormat((8,), 4))
    assert stored_codes(sample, "audio", CodeFormat((8,))) is None


@pytest.mark.parametrize("most", [9, 40_000])
def test_packed_is_the_way_there(most: int) -> None:
    """16 bits where they suffice, 32 where not; the same ids come back."""
    ids = torch.tensor([0, most - 1, 5])
    data = packed(ids)
    assert np.load(io.BytesIO(data), allow_pickle=False).dtype.itemsize == (2 if most < 1 << 15 else 4)
    assert torch.equal(stored_codes(Sample("k", {"imagecodes.npy": data}, "k"), "image", CodeFormat((most,))), ids)


def test_what_cannot_be_decoded_is_told(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], encode_image: Callable[..., bytes]
) -> None:
    """A damaged picture is copied without codes and listed; parts that are never read are named."""
    whole = encode_image(np.zeros((8, 8), np.uint8))
    with tarfile.open(shards / "more.tar", "w") as tar:
        for name, data in (("a.png", whole[:30]), ("b.png", whole), ("b.xyz", b"?"), ("c/d.png", whole)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    made = coders(image=PICTURES)
    encode(made, str(shards / "more.tar"), tmp_path / "out", decode=Decode(), progress=False)
    told = capsys.readouterr().out
    assert "codes of 2 of image" in told
    assert "1 could not be decoded and have no codes (image_damaged 1; see" in told
    assert "not copied, as it is never read: .xyz (1)" in told
    (line,) = (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "a"
    after = Shards([tmp_path / "out" / "more.tar"])
    assert [after[number].key for number in range(3)] == ["a", "b", "c-d"]
    assert "imagecodes.npy" not in after[0].parts
    assert after[0].parts["png"] == whole[:30]


def test_codes_of_another_modality_stay(shards: Path, tmp_path: Path) -> None:
    """Pictures first, sounds later: both are there, each with its own fingerprint; a new codec's replace the old."""
    first, second = coders(image=PICTURES), coders(audio=SPEECH)
    run(first, shards, tmp_path / "a")
    run(second, tmp_path / "a", tmp_path / "b")
    assert codecs_said(str(tmp_path / "b")) == {"image": first["image"].print, "audio": second["audio"].print}
    both = Shards([tmp_path / "b" / "part-000000.tar"])[2]
    assert stored_codes(both, "image", first["image"].codec.form) is not None
    assert stored_codes(both, "audio", second["audio"].codec.form) is not None
    third = coders(5, image=PICTURES)
    run(third, tmp_path / "b", tmp_path / "c")
    assert codecs_said(str(tmp_path / "c"))["image"] == third["image"].print
    again = Shards([tmp_path / "c" / "part-000000.tar"])[2]
    assert again.parts["imagecodes.npy"] != both.parts["imagecodes.npy"]


def test_refusals(shards: Path, tmp_path: Path) -> None:
    """Nothing is written where the place, the codec or the shards are wrong."""
    made = coders()
    with pytest.raises(UserError, match="holds the shards that are read; choose another folder"):
        run(made, shards, shards)
    with pytest.raises(UserError, match="this run has no codec; give one whose Model has image_codec or audio_codec"):
        run({}, shards, tmp_path / "out")
    with pytest.raises(UserError, match=r"s3://bucket/x is a URL; copy it to a folder"):
        encode(made, "s3://bucket/x", tmp_path / "out", decode=Decode())
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="full exists and was not written by mmfm data encode"):
        run(made, shards, tmp_path / "full")
    run(made, shards, tmp_path / "out")
    with pytest.raises(UserError, match="was begun from another input or with other options"):
        run(coders(1), shards, tmp_path / "out")
    write_shard(tmp_path / "texts.tar", [Item("a", {"txt": b"a"})])
    with pytest.raises(UserError, match=r"nothing could be encoded in texts\.tar, as no sample has what its codecs"):
        run(made, tmp_path / "texts.tar", tmp_path / "none")


def test_the_command(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`mmfm data encode` of a saved run writes that run's codes; one of a run without codecs is a line and status 2."""
    model = toy_config(image_codec=PICTURES, audio_codec=SPEECH)
    for name, changes in (("coded", {"model": model}), ("plain", {})):
        saved = toy_run(out=str(tmp_path), name=name, **changes)
        torch.manual_seed(0)
        tokenizer = load_tokenizer("bytes")
        core = build(saved.model, tokenizer.size, saved.contrastive)
        checkpoint.save(Path(saved.folder), 1, saved, tokenizer, core.state_dict(), {})
        (Path(saved.folder) / "run.json").write_text(serialization.to_json(saved))
    assert main(["data", "encode", str(tmp_path / "coded"), str(shards), str(tmp_path / "out")]) == 0
    assert set(codecs_said(str(tmp_path / "out"))) == {"image", "audio"}
    capsys.readouterr()
    assert main(["data", "encode", str(tmp_path / "plain"), str(shards), str(tmp_path / "none")]) == 2
    assert "this run has no codec" in capsys.readouterr().err


def stream_of(folder: Path, codecs: dict[str, str], **changes: object) -> TrainStream:
    """Of the pictures alone, two a step."""
    run = toy_run(
        model=toy_config(image_codec=PICTURES),
        data=Data(
            train=(Source(shards=str(folder), modalities=("image", "text")),),
            batch_size=2,
            num_workers=0,
            max_bad_fraction=1.0,
        ),
        generative=(Generative(task="text>image"),),
    )
    run = replace(run, data=replace(run.data, **changes))
    return TrainStream(run, load_tokenizer("bytes"), rank=0, world=1, codecs=codecs)


def test_training_reads_what_is_stored(shards: Path, tmp_path: Path) -> None:
    """What the codec would make of the pictures; nothing where there is none to compare with, or none is stored."""
    made = coders()
    run(made, shards, tmp_path / "out")
    codec, mine = made["image"].codec, {"image": made["image"].print}
    batch = next(iter(stream_of(tmp_path / "out", mine)))
    items = batch.items["image"]
    assert items.written is not None
    with torch.no_grad():
        assert torch.equal(items.written.ids, codec.encode(items.x, items.keep).ids)
    assert items.written.keep.all()
    assert next(iter(stream_of(tmp_path / "out", {}))).items["image"].written is None
    assert next(iter(stream_of(shards, mine))).items["image"].written is None


def test_training_refuses_another_codecs_codes(shards: Path, tmp_path: Path) -> None:
    """And parts of pictures, which whole pictures' codes do not stand for."""
    run(coders(), shards, tmp_path / "out")
    with pytest.raises(UserError, match=r"has image codes of another codec \(.*; this run's is 0123\)"):
        stream_of(tmp_path / "out", {"image": "0123"})
    mine = {"image": coders()["image"].print}
    with pytest.raises(UserError, match="stored image codes are of whole items, and crop, mirror or crop_seconds take"):
        stream_of(tmp_path / "out", mine, augment=Augment(horizontal_flip=True))


def test_a_sample_without_its_codes_is_bad(shards: Path, tmp_path: Path) -> None:
    """Where the others have some: it is left out, and counted."""
    made = coders()
    run(made, shards, tmp_path / "out")
    (tmp_path / "bare").mkdir()
    for path in sorted((tmp_path / "out").glob("*.tar")):
        samples = [sample for sample in Shards([path]) if "png" in sample.parts]
        kept = [
            {k: v for k, v in sample.parts.items() if k != "imagecodes.npy" or at} for at, sample in enumerate(samples)
        ]
        write_shard(tmp_path / "bare" / path.name, [Item(s.key, p) for s, p in zip(samples, kept, strict=True)])
    (tmp_path / "bare" / MANIFEST).write_bytes((tmp_path / "out" / MANIFEST).read_bytes())
    stream = stream_of(tmp_path / "bare", {"image": made["image"].print})
    batches = [batch for _, batch in zip(range(4), stream, strict=False)]
    assert all(batch.items["image"].written is not None for batch in batches)
    skipped = [json.loads(line) for line in stream.health.skipped()]
    assert skipped and {line["code"] for line in skipped} == {"codes_missing"}


def test_the_pictures_of_a_document_have_codes_each(tmp_path: Path, encode_image: Callable[..., bytes]) -> None:
    """Beside each counted picture its own; training reads them as it would make them."""
    draw = np.random.default_rng(1)
    pictures = [encode_image(draw.integers(0, 256, (8, 16), dtype=np.uint8)) for _ in range(4)]
    parts = [
        {"0.png": a, "1.txt": b"like", "2.png": b, "3.txt": b"seven"}
        for a, b in zip(*[iter(pictures)] * 2, strict=True)
    ]
    (tmp_path / "in").mkdir()
    write_shard(tmp_path / "in" / "part-000000.tar", [Item(f"doc-{at}", held) for at, held in enumerate(parts)])
    made = coders(image=PICTURES)
    run(made, tmp_path / "in", tmp_path / "out")
    samples = list(Shards([tmp_path / "out" / "part-000000.tar"]))
    assert all({"0.imagecodes.npy", "2.imagecodes.npy"} <= set(sample.parts) for sample in samples)
    items = next(iter(stream_of(tmp_path / "out", {"image": made["image"].print}))).items["image"]
    assert items.written is not None and len(items.rows) == 4
    with torch.no_grad():
        assert torch.equal(items.written.ids, made["image"].codec.encode(items.x, items.keep).ids)
