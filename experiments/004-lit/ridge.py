"""Two rivals between the same frozen towers, scored as a run is: ridge regression, and a small contrastive head.

    python experiments/004-lit/ridge.py runs/lit-ridge runs/lit-head

Both map a picture's mean feature into the space of the sentences. Ridge: the penalty with the best R@1 on five folds of
the training captions. Head: one linear map, dropout, cross-entropy over all training captions, 300 full steps of AdamW.
Each folder gets results.json, with the samples that `mmfm compare` pairs.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from rich.console import Console
from torch import Tensor, nn

from mmfm.config import Run
from mmfm.config.load import read_run
from mmfm.config.serialization import to_json
from mmfm.data.batch import Batch
from mmfm.data.decode import collate, decode_of, read_example
from mmfm.data.shards import Shards
from mmfm.data.sources import open_shards
from mmfm.evals.config import config_of
from mmfm.evals.results import finish
from mmfm.evals.run import evaluate
from mmfm.evals.suite import default_suite
from mmfm.models.model import build
from mmfm.runtime.files import replace_file
from mmfm.training.initialize import begin, prepare

CONFIG = Path(__file__).parents[2] / "configs" / "lit.py"
TEST = "data/stamps/test/image-*.tar"
FOLDS, PENALTIES = 5, (0.01, 0.03, 0.1, 0.3, 1.0)
Map = Callable[[Float[Tensor, "n features"]], Float[Tensor, "n d"]]
Fit = Callable[[Float[Tensor, "n features"], Float[Tensor, "n d"], list[str]], Map]


class Rival(nn.Module):
    """The face that evaluation asks for, over the run's own towers; `maps` stand for all that the run trains."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        prepared = prepare(run)
        self.run, self.config, self.tokenizer = prepared.run, prepared.run.model, prepared.tokenizer
        self.core = build(self.config, self.tokenizer.size)
        begin(self.core, prepared)
        self.core.lock([name for name, _ in self.core.named_parameters()])
        self.modalities, self.tasks, self.embed_dim = ("image", "text"), (), self.core.towers["text"].width
        self.maps: dict[str, Map] = {"image": lambda x: x, "text": lambda x: x}

    def features(self, batch: Batch) -> dict[str, Tensor]:
        return {
            name: self.core.tokens(name, batch.items[name]).x[:, 0] for name in self.modalities if name in batch.items
        }

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        found = self.features(batch)
        return {name: F.normalize(self.maps[name](x), dim=1) for name, x in found.items()}

    def encode_text(self, texts: list[str], normalize: bool = True) -> Tensor:
        ids = self.tokenizer(texts)
        return F.normalize(self.core.towers["text"](ids.clamp(min=0), ids >= 0).x[:, 0], dim=1)

    def write(self, task: str, batch: Batch, max_tokens: int) -> tuple[list[int], list[str]]:
        return [], []

    def nats(self, task: str, batch: Batch) -> Tensor:
        return torch.full((batch.size,), torch.nan)


def training(model: Rival) -> tuple[Tensor, Tensor, list[str]]:
    """Features of the training pictures, unit vectors of their captions, and these."""
    source = model.run.data.train[0]
    shards: Shards = open_shards([source.shards], model.run.data.remote_cache)
    samples = (shards.read(number, frozenset({"png", "txt", "json"})) for number in range(len(shards)))
    examples = [read_example(sample, model.config, decode_of(model.run.data)) for sample in samples]
    parts = [model.features(collate(examples[i : i + 64], model.tokenizer)) for i in range(0, len(examples), 64)]
    image, text = (torch.cat([part[name] for part in parts]) for name in ("image", "text"))
    return image, F.normalize(text, dim=1), [str(example.text) for example in examples]


def ridge(penalty: float) -> Fit:
    def fit(x: Tensor, y: Tensor, _: list[str]) -> Map:
        scale = x.norm(dim=1).mean()
        centre, middle = x.mean(0) / scale, y.mean(0)
        inner = x / scale - centre
        dual = torch.linalg.solve(inner @ inner.T + penalty * torch.eye(len(x)), y - middle)
        return lambda z: (z / scale - centre) @ inner.T @ dual + middle

    return fit


def head(x: Tensor, y: Tensor, captions: list[str]) -> Map:
    """Seeded; texts stay where the text tower puts them."""
    torch.manual_seed(0)
    names = sorted(set(captions))
    gold = torch.tensor([names.index(caption) for caption in captions])
    table = y[[captions.index(name) for name in names]]
    scale = x.shape[1] ** 0.5 / x.norm(dim=1).mean()
    layers = nn.Sequential(nn.Dropout(0.8), nn.Linear(x.shape[1], y.shape[1]))
    warmth = nn.Parameter(torch.tensor(20.0).log())
    groups = [{"params": layers.parameters(), "weight_decay": 1.0}, {"params": [warmth], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        scores = F.normalize(layers(x * scale), dim=1) @ table.T * warmth.exp().clamp(max=100)
        owners = F.one_hot(gold, len(names)).T.float()
        back = -(owners * scores.T.log_softmax(1)).sum(1).div(owners.sum(1)).mean()
        optimizer.zero_grad()
        ((F.cross_entropy(scores, gold) + back) / 2).backward()
        optimizer.step()
        rate.step()
    layers.eval()
    return lambda z: layers(z * scale)


def chosen_penalty(x: Tensor, y: Tensor, captions: list[str]) -> float:
    names = sorted(set(captions))
    fold = torch.tensor([names.index(caption) % FOLDS for caption in captions])

    def right(penalty: float) -> float:
        total = 0
        for held in range(FOLDS):
            inside, outside = (fold != held).nonzero()[:, 0], (fold == held).nonzero()[:, 0]
            of = {captions[i]: y[i] for i in outside.tolist()}
            found = ridge(penalty)(x[inside], y[inside], captions)(x[outside]) @ torch.stack(list(of.values())).T
            total += sum(
                list(of)[best] == captions[i]
                for best, i in zip(found.argmax(1).tolist(), outside.tolist(), strict=True)
            )
        return total / len(captions)

    return max(PENALTIES, key=right)


def main(ridge_folder: Path, head_folder: Path) -> None:
    model = Rival(read_run(CONFIG)).eval()
    with torch.no_grad():
        data = training(model)
    penalty = chosen_penalty(*data)
    print(f"penalty {penalty}")
    for folder, fit in ((ridge_folder, ridge(penalty)), (head_folder, head)):
        model.maps["image"] = fit(*data)
        run = replace(model.run, name=folder.name, out=str(folder.parent))
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "run.json", to_json(run).encode())
        scores = evaluate(model, default_suite({"stamps": TEST}), config_of(run))
        finish(scores, folder / "results.json", Console())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
