"""`mmfm embed`: the unit embeddings of all that shards hold, with the key of the sample of each, as one .npz file.

It is read by `numpy.load`, without pickles: "image" and "image.keys", and so on; "text.texts" are the texts themselves,
all that a sample has.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mmfm.config import require
from mmfm.data.sources import open_shards
from mmfm.evals.config import config_of, default_workers
from mmfm.evals.heads import read_split
from mmfm.evals.provenance import run_of
from mmfm.evals.results import check_place
from mmfm.evals.run import load_shared
from mmfm.evals.split import ALONE, Evaluable, Split, at_rest, encode_texts
from mmfm.runtime.files import replace_file
from mmfm.runtime.machine import cores

Arrays = dict[str, np.ndarray]


def embed_shards(
    folder: str | Path,
    shards: Sequence[str],
    out: str | Path,
    *,
    batch_size: int = 0,
    limit: int = 0,
    step: int | None = None,
    device: str = "auto",
    num_workers: int | None = None,
) -> dict[str, tuple[int, ...]]:
    """Writes `out` and returns the shape of each modality's embeddings. limit: so many samples, evenly spread; 0: all.

    UserError: a folder that is no model, shards that cannot be read, samples that cannot be used, or no place to write.
    """
    require(Path(out).suffix == ".npz", f"--out {out} should end in .npz, as numpy reads it")
    place, run = check_place(Path(out)), run_of(Path(folder))
    workers = default_workers(1) if num_workers is None else num_workers
    config = config_of(run, batch_size=batch_size, limit=limit, num_workers=workers, quick=True)
    samples = open_shards(shards, config.store)
    torch.set_num_threads(min(run.threads, cores()))
    model = load_shared(Path(folder), step, device, run.accelerator, ALONE)
    with at_rest(model):
        name = " ".join(shards)
        split = read_split(model, samples, name=name, source=name, config=config, writing=())
        bad = next(iter(split.bad.items()), None)
        told = f"{name}: {len(split.bad)} of {len(split)} samples cannot be used"
        require(bad is None, f"{told}, such as {bad and split.infos[bad[0]].key} ({bad and bad[1]}); take them out")
        arrays = arrays_of(split, model)
    data = io.BytesIO()
    np.savez(data, **arrays)  # pyright: ignore[reportArgumentType]
    replace_file(place, data.getvalue())
    return {name: array.shape for name, array in arrays.items() if "." not in name}


def arrays_of(split: Split, model: Evaluable) -> Arrays:
    """Of each modality that the model embeds its vectors, and whose they are."""
    keys = np.array([info.key for info in split.infos])
    found: Arrays = {}
    for name, vectors in split.vectors.items():
        found |= {name: vectors.x.numpy(), f"{name}.keys": keys[vectors.rows]}
    rows = [(row, text) for row, info in enumerate(split.infos) for text in info.texts]
    if rows and "text" in model.modalities:
        texts = list(dict.fromkeys(text for _, text in rows))
        places = {text: place for place, text in enumerate(texts)}
        x = encode_texts(model, texts)[[places[text] for _, text in rows]]
        found |= {"text": x.numpy(), "text.keys": keys[[row for row, _ in rows]]}
        found["text.texts"] = np.array([text for _, text in rows])
    return found
