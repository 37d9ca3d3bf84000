"""Training of the recogniser of number words. The same seed gives the same bytes on one kind of machine."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor

from mmfm.data.progress import ticker
from mmfm.datasets import espeak
from mmfm.datasets.numbers_plan import ACCENTS_TRAIN, VARIANTS_TEST, VARIANTS_VAL
from mmfm.datasets.speech import RATE_HZ
from mmfm.evals.judges.contract import NAMES, HeldOut
from mmfm.evals.judges.speech import CLASSES, Recogniser, Speech
from mmfm.evals.judges.speech_sounds import Lesson, Said, draw, lesson_of, say
from mmfm.evals.metrics import letters

STEPS, BATCH, RATE, WARM_UP, DECAY, CLIP = 1_000, 48, 2e-3, 60, 1e-2, 1.0
PLAIN = 0.1  # of the steps, the first ones: on disturbed sounds alone it is long before any word is heard


def train_speech_judge(folder: Path, seed: int, progress: bool = True) -> None:
    """Write speech.safetensors and speech.json into `folder`, which exists: minutes on one thread."""
    said = lesson_of(Lesson(), seed)
    with ticker("judges", STEPS, progress) as tick:
        network = trained(said, seed, STEPS, tick)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / "speech.safetensors")
    about = {
        "classes": list(CLASSES),
        "seed": seed,
        "clips": len(said.words),
        "steps": STEPS,
        "accents": list(ACCENTS_TRAIN),
        "variants": list(VARIANTS_TEST),
        "held_out": asdict(held_out(Speech(network), seed)),
        "espeak-ng": espeak.version(),
    }
    (folder / "speech.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8", newline="\n")


def held_out(judge: Speech, seed: int) -> HeldOut:
    """The hundred names by voices of variants that it has not learned from."""
    rows = [tuple(letters(own).split()) for own in NAMES]
    things = say(rows, Random(f"{seed} held out"), VARIANTS_VAL)
    right = sum(a == b for a, b in zip(judge.read(things, RATE_HZ), NAMES, strict=True))
    return HeldOut(
        on="the hundred names by variants of voices that only the val split of `numbers` has", right=right, of=len(rows)
    )


def trained(
    said: Said,
    seed: int,
    steps: int,
    tick: Callable[[str], None] = lambda what: None,
    batch: int = BATCH,
    plain: float = PLAIN,
) -> Recogniser:
    """A fresh recogniser after `steps` batches of what is said, disturbed anew each time after the first part."""
    generator = torch.Generator().manual_seed(seed)
    with alone(seed):
        network = Recogniser().train()
        optimiser = torch.optim.AdamW(network.parameters(), RATE, betas=(0.9, 0.98), weight_decay=DECAY)
        factor = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warm_cosine(step, steps))
        for step in range(steps):
            waves, lengths, words = draw(said, batch, generator, plain=step < plain * steps)
            loss = cost(network, waves, lengths, words)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP, error_if_nonfinite=True)
            optimiser.step()
            factor.step()
            tick(f"learning to hear, {loss.item():.2f} nats")
    return network.eval()


def cost(
    network: Recogniser, waves: Float[Tensor, "n samples"], lengths: Int[Tensor, " n"], words: Sequence[tuple[str, ...]]
) -> Float[Tensor, ""]:
    """Mean nats of a row's words under CTC (Graves et al. 2006, eq. 3); a row too short for them costs nothing."""
    scores, steps = network(waves, lengths)
    rows = [[CLASSES.index(word) for word in row] for row in words]
    targets = torch.tensor([kind for row in rows for kind in row], dtype=torch.long)
    sizes = torch.tensor([len(row) for row in rows])
    nats = F.ctc_loss(scores.transpose(0, 1), targets, steps, sizes, reduction="none", zero_infinity=True)
    return nats.mean()


def warm_cosine(step: int, total: int) -> float:
    """0 to 1 over WARM_UP steps, or a tenth of all, then half a cosine down to 0."""
    warm = min(WARM_UP, max(1, total // 10))
    if step < warm:
        return (step + 1) / warm
    return (1 + math.cos(math.pi * (step - warm) / max(1, total - warm))) / 2


@contextmanager
def alone(seed: int) -> Iterator[None]:
    """One thread, and torch's own generator at `seed`; both are as before afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
