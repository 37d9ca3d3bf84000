"""Every suite that is shipped, on a small copy of its data set's layout, asked of a saved run; and by two ranks."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from mmfm import config
from mmfm.__main__ import main
from mmfm.config.serialization import to_json
from mmfm.evals.suite import Answer, read_suite
from mmfm.models.checkpoint import save
from mmfm.models.model import build
from mmfm.preprocessing.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]
MODEL = config.Model(
    image=config.Vit(height_px=8, width_px=8, patch_px=4, channels=3, width=16, depth=1, heads=2),
    audio=config.Conformer(
        mel=config.Mel(rate_hz=8_000, high_hz=3_800.0, bins=16), width=16, depth=1, heads=2, kernel=3
    ),
    text=config.TextTower(width=16, depth=1, heads=2),
    trunk=config.Trunk(width=16, depth=1, heads=2, kv_heads=1),
    embed_dim=8,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained run, as training leaves it."""
    write = tuple(config.Generative(task=task) for task in ("image>text", "audio>text"))
    out = str(tmp_path_factory.mktemp("runs"))
    made = config.Run(
        name="small", model=MODEL, generative=write, out=out, eval=config.Eval(bootstrap=20, max_tokens=4)
    )
    torch.manual_seed(0)
    tokenizer = load_tokenizer("bytes")
    core = build(made.model, tokenizer.size, made.contrastive)
    made.folder.mkdir(parents=True)
    (made.folder / "run.json").write_text(to_json(made))
    save(made.folder, 1, made, tokenizer, core.state_dict(), {})
    return made.folder


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 12, 3), np.uint8)).save(path)


def sound(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.3 * np.random.default_rng(seed).standard_normal(1_600).clip(-3, 3)
    soundfile.write(path, wave, 16_000)


def esc50(root: Path) -> None:
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for seed in range(50):
        name = f"{1 + seed % 2}-{seed}-A-{seed % 5}.wav"
        sound(root / "audio" / name, seed)
        lines.append(f"{name},{1 + seed % 2},{seed % 5},kind_{seed % 5},False,{seed},A")
    (root / "meta").mkdir()
    (root / "meta" / "esc50.csv").write_text("\n".join(lines))


def audioset(root: Path) -> None:
    for seed in range(6):
        sound(root / "audio" / f"clip{seed}.wav", seed)
    rows = [f'clip{n}, 0.000, 10.000, "/m/{n % 3},/m/{(n + 1) % 3}"' for n in range(8)]
    (root / "eval_segments.csv").write_text("\n".join(["# Segments csv created ...", "# num_ytids=8", *rows]))
    names = [f'{n},/m/{n},"Sound, number {n}"' for n in range(4)]
    (root / "class_labels_indices.csv").write_text("\n".join(["index,mid,display_name", *names]))


def coco(root: Path) -> None:
    images = [{"id": 7 + n, "file_name": f"{n:012}.jpg"} for n in range(6)]
    for seed, image in enumerate(images):
        picture(root / "val2017" / str(image["file_name"]), seed)
    texts = [{"image_id": 7 + n, "caption": f"A photo {k} of thing {n}."} for n in range(6) for k in range(5)]
    (root / "annotations").mkdir()
    tree = {"images": images, "annotations": texts}
    (root / "annotations" / "captions_val2017.json").write_text(json.dumps(tree))


def retrieval(root: Path) -> None:
    import io
    import tarfile

    with tarfile.open(root / "0.tar", "w") as tar:
        for seed in range(6):
            picture(root / "one.jpg", seed)
            texts = f"one {seed}\ntwo {seed}\n".encode()
            for name, data in (("jpg", (root / "one.jpg").read_bytes()), ("txt", texts)):
                member = tarfile.TarInfo(f"s{seed}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def clotho(root: Path) -> None:
    rows = ["file_name,caption_1,caption_2,caption_3,caption_4,caption_5"]
    for seed in range(5):
        sound(root / "evaluation" / f"Sound {seed}, far.wav", seed)
        rows.append(f'"Sound {seed}, far.wav",' + ",".join(f"Sound {seed} caption {k}." for k in range(5)))
    (root / "clotho_captions_evaluation.csv").write_text("\n".join(rows))


def audiocaps(root: Path) -> None:
    rows = ["audiocap_id,youtube_id,start_time,caption"]
    for seed, k in itertools.product(range(4), range(5)):
        sound(root / "audio" / f"-yt{seed}.wav", seed)
        rows.append(f"{seed}{k},-yt{seed},30,caption {k} of {seed}")
    (root / "test.csv").write_text("\n".join([*rows, "99,gone,0,nobody hears it"]))


def asr(root: Path) -> None:
    for part in ("test-clean", "test-other"):
        folder = root / part / "12" / "34"
        for seed in range(3):
            sound(folder / f"12-34-{seed:04}.flac", seed)
        (folder / "12-34.trans.txt").write_text("".join(f"12-34-{n:04} WORDS SAID {n}\n" for n in range(3)))


def probes(root: Path) -> None:
    for part, count in (("train", 12), ("test", 5)):
        for seed, name in itertools.product(range(count), ("cat", "dog")):
            picture(root / part / name / f"{seed}.png", seed)


def folders(root: Path) -> None:
    for seed, name in itertools.product(range(3), ("n1", "n2", "n3")):
        picture(root / name / f"{seed}.JPEG".replace("JPEG", "jpeg"), seed)
    (root / "classnames.txt").write_text("tabby cat\ngreat dane\nbarn owl\n")


LAYOUTS: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "esc50": (esc50, {"audio->text", "audio:knn", "audio:linear"}),
    "audioset": (audioset, {"audio->text"}),
    "coco_captions": (coco, {"image->text", "text->image"}),
    "captioning": (coco, {"image>text"}),
    "retrieval": (retrieval, {"image->text", "text->image"}),
    "clotho": (clotho, {"audio->text", "text->audio"}),
    "audiocaps": (audiocaps, {"audio->text", "text->audio"}),
    "asr": (asr, {"audio>text"}),
    "probes": (probes, {"image:knn", "image:linear"}),
    "folders": (folders, {"image->text"}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_shipped_suite_runs(name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On its data set's own layout, from the command line; every figure lies in its range, and has an interval."""
    make, tasks = LAYOUTS[name]
    make(tmp_path)
    assert main(["eval", str(run), str(ROOT / "configs" / "suites" / f"{name}.py"), "--root", str(tmp_path)]) == 0
    rows = json.loads((run / f"results.{name}.json").read_text())
    assert {row["task"] for row in rows} == tasks
    for row in rows:
        limit = {"median_rank": 30, "wer": 50, "cer": 50, "cider": 10, "cider_plain": 10}.get(row["metric"], 1)
        assert 0 <= row["value"] <= limit and row["low"] <= row["high"]
    assert "…" not in capsys.readouterr().out


def test_every_shipped_suite_is_tried() -> None:
    """All but ImageNet's thousand folders, whose layout is that of `folders`, and those of conversations, whose tasks
    tests/test_answering.py asks: these are read."""
    talks = {"answers", "code", "documents", "documents_meaning", "scenes", "scenes_spoken", "shots", "texts"}
    shipped = {path.stem for path in (ROOT / "configs" / "suites").glob("*.py")}
    assert shipped == {*LAYOUTS, "imagenet", *talks}
    for name in talks:
        tasks = read_suite(ROOT / "configs" / "suites" / f"{name}.py").tasks
        assert tasks and all(isinstance(task, Answer) for task in tasks)


def test_imagenet_has_a_thousand_classes(run: Path, tmp_path: Path) -> None:
    """Folders with the WordNet numbers take open_clip's names in their order; a missing folder is not passed over."""
    for number in range(999):
        picture(tmp_path / f"n{number:08}" / "0.png", 0)
    command = [sys.executable, "-m", "mmfm", "eval", str(run), "configs/suites/imagenet.py", "--root", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=alone())
    assert (
        done.returncode == 2 and "999 of 999 labels, such as 'n00000000', are none of the 1000 classes" in done.stderr
    )


def alone() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize("name", ["esc50", "captioning"])
def test_two_ranks_give_what_one_gives(name: str, run: Path, tmp_path: Path) -> None:
    """Figures, intervals and details are the same to the byte, whatever shares the work."""
    LAYOUTS[name][0](tmp_path)
    written = []
    for ranks in ("1", "2"):
        out = tmp_path / f"{ranks}.json"
        options = ["--root", str(tmp_path), "--out", str(out), "--ranks", ranks, "--batch-size", "3"]
        command = [sys.executable, "-m", "mmfm", "eval", str(run), f"configs/suites/{name}.py", *options]
        subprocess.run(command, cwd=ROOT, check=True, env=alone(), capture_output=True)
        written.append((out.read_bytes(), out.with_name(f"{ranks}.details.json").read_bytes()))
    assert written[0] == written[1]
