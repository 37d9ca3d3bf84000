"""The pages' lines for other tools, encoders, suites: every block, as it stands, by a user who has what they name.

So are the first uses. The folder that they are run in holds small runs, pictures and shards under the names of the
README, and no network.
"""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from exported import export, full_run
from PIL import Image
from shared_exports import classification, pictures, png, retrieval
from toy_wholes import clip_with_its_tokenizer

from mmfm.config import Data, Source

ROOT = Path(__file__).parent.parent.parent
PAGES = [f"mmfm/{name}/README.md" for name in ("export", "pretrained", "evals")]
TEXTS = ["seven of nine", "forty-two", "a longer text, with a comma"]


def fenced(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(heading: str) -> str:
    text = (ROOT / "README.md").read_text("utf-8")
    (found,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    return found


TEXTS_OF = {page: (ROOT / page).read_text("utf-8") for page in PAGES}
BLOCKS = [block for text in TEXTS_OF.values() for block in fenced(text)]


def lines(language: str, code: str) -> list[list[str]]:
    """The words of each process that a block starts."""
    if language == "python":
        return [["python", "-c", code]]
    return [words for line in code.replace("\\\n", " ").splitlines() if (words := shlex.split(line, comments=True))]


def perform(language: str, code: str, where: Path) -> str:
    """All that the block prints. AssertionError where a process of it fails."""
    bin, said = str(Path(sys.executable).parent), ""
    ours = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(where / "cache"), "OMP_NUM_THREADS": "1"}
    env = os.environ | ours | {"PATH": f"{bin}{os.pathsep}{os.environ['PATH']}"}
    for words in lines(language, code):
        if words[-2:-1] == [">"]:  # the one thing of the shell that a line uses
            (where / words[-1]).write_bytes(subprocess.check_output(words[:-2], cwd=where, env=env))
            continue
        done = subprocess.run(words, cwd=where, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-1_000:]}\n{done.stderr[-3_000:]}"
        said += done.stdout
    return said


@pytest.fixture(scope="module")
def here(tmp_path_factory, write_shard) -> Path:
    """Where a reader of the README stands, with the README's own files; its first block has been run."""
    where = tmp_path_factory.mktemp("reader")
    source = Source(shards="data/numbers/train", modalities=("image", "audio", "text"))
    data = Data(train=(source,), val="data/numbers/test")
    for seed, name in enumerate(("quickstart", "patches")):
        run = dataclasses.replace(full_run(), name=name, data=data)
        export(where / name, run, seed=seed)
        shutil.copytree(where / name / "run", where / "runs" / name)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)).save(where / "a.png")
    soundfile.write(where / "a.flac", 0.1 * np.random.default_rng(1).standard_normal(8_000), 16_000)
    classification(where / "data" / "classes", write_shard)
    retrieval(where / "data" / "pairs", write_shard)
    write_numbers(where / "data" / "numbers", where / "a.flac", write_shard)
    write_pets(where / "data" / "pets")
    write_tasks(where / "tasks")
    clip_with_its_tokenizer(where / "downloads" / "clip")
    for language, code in BLOCKS:
        if language == "python" and (name := re.match(r'"""(\w+\.py): ', code)):
            (where / name[1]).write_text(code)
    assert perform(*BLOCKS[0], where)
    return where


def write_numbers(root: Path, wave: Path, write_shard) -> None:
    """Under the names that `mmfm data numbers` gives; the first tar has all parts of its samples."""
    for split in ("train", "test", "test-unseen"):
        images, sounds = {}, {}
        for i, picture in enumerate(pictures(6)):
            words = {"flac": wave.read_bytes(), "txt": TEXTS[i % 3].encode()}
            images[f"{split}-image-{i:06d}"] = {"png": png(picture), **words}
            sounds[f"{split}-audio-{i:06d}"] = words
        write_shard(root / split / "image-000000.tar", images)
        if split != "train":
            write_shard(root / split / "audio-000000.tar", sounds)


def write_pets(root: Path) -> None:
    for i, picture in enumerate(pictures(48)):
        folder = root / ("train" if i % 3 else "test") / ("cat" if i % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{i}.png")


def write_tasks(where: Path) -> None:
    """lm-eval's, on rows of a file."""
    where.mkdir()
    rows = [{"text": text, "choices": TEXTS, "gold": i} for i, text in enumerate(TEXTS)]
    (where / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"data_files": {"test": str(where / "rows.jsonl")}}
    common = {"dataset_path": "json", "dataset_kwargs": files, "test_split": "test", "doc_to_text": "{{text}}"}
    texts = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    choices = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold"}
    stop = {"generation_kwargs": {"max_gen_toks": 4, "until": ["\n\n"]}}
    answers = {"output_type": "generate_until", "doc_to_target": "{{text}}"} | stop
    kinds = {"perplexity": (texts, "bits_per_byte"), "choices": (choices, "acc"), "answers": (answers, "exact_match")}
    for name, (kind, metric) in kinds.items():
        task = common | kind | {"task": f"my_{name}", "metric_list": [{"metric": metric}]}
        (where / f"my_{name}.yaml").write_text(json.dumps(task))


def test_no_block_is_left_out() -> None:
    """Whatever is fenced in these pages is a block that is run; each page has one at least."""
    assert all(text.count("```") > 0 for text in TEXTS_OF.values())
    assert sum(text.count("```") for text in TEXTS_OF.values()) == 2 * len(BLOCKS)
    assert BLOCKS[0][1].startswith("mmfm export ")


def test_a_wrong_line_fails(tmp_path: Path) -> None:
    """A command of a block that fails, and Python that fails, fail here, whatever follows."""
    for language, code in (("sh", "mmfm export nothing out --to hf  # no\nmmfm --version"), ("python", "1 / 0")):
        with pytest.raises(AssertionError, match=r"nothing|ZeroDivisionError"):
            perform(language, code, tmp_path)


USES = fenced(section("First uses"))


@pytest.mark.parametrize(("language", "code"), USES[:2], ids=["sh", "python"])
def test_the_first_uses_run(language: str, code: str, here: Path) -> None:
    """What a newcomer types after the quickstart, as it stands; the block after it trains for minutes."""
    assert perform(language, code, here)
    assert len(USES) == 3 and "mmfm train" in USES[2][1]


@pytest.mark.parametrize(("language", "code"), BLOCKS[1:], ids=[str(place) for place in range(1, len(BLOCKS))])
def test_the_block_runs(language: str, code: str, here: Path) -> None:
    """Every process ends with 0, and every print of Python's prints."""
    said = perform(language, code, here)
    assert len(said.splitlines()) >= code.count("print(")
    for place in re.findall(r"--out(?:put)? (\S+)", code):
        assert (here / place).stat().st_size > 0
    if "def config" in code:
        told = perform("python", f"{code}\nprint(config())", here)
        assert told.startswith("Run(name=")
