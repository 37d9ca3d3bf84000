"""A trained model as people and other tools use it: encode, write, score.

`encode_image`, `encode_text`, `logit_scale`, `tokenize` and `transform` follow open_clip's protocol, so that what
drives a CLIP model drives this one. Paths, pictures and strings are taken too.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor, nn

from mmfm import config
from mmfm.batch import Batch, Items
from mmfm.config import UserError, require
from mmfm.data.example import Example, collate, shape_of
from mmfm.generate import Decoding, write
from mmfm.grammar import Task, parse_writing
from mmfm.inputs.audio import load_audio
from mmfm.inputs.image import load_picture
from mmfm.inputs.text import Tokenizer
from mmfm.model import UnifiedModel
from mmfm.tasks import read

Picture = str | Path | Image.Image


class Interface(nn.Module):
    """`config`: the run it comes from. `tasks`: what it was trained to write. Every method works without gradient."""

    def __init__(self, core: UnifiedModel, run: config.Run, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.core, self.run, self.tokenizer = core, run, tokenizer
        self.config, self.embed_dim = run.model, core.embed_dim
        self.modalities = tuple(name for name in config.MODALITIES if name in core.towers)
        self.tasks = tuple(item.task for item in run.write)

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """The logarithm of the inverse temperature of images and texts, else of the first pair; open_clip's too."""
        require(len(self.run.contrast) > 0, "this model was trained without contrast: it has no logit_scale")
        first = min(self.run.contrast, key=lambda item: set(item.pair) != {"image", "text"})
        return self.core.log_scales[first.name]

    def transform(self, picture: Picture) -> Tensor:
        """A picture as uint8 [channels, height, width] of the model's size; the model itself normalises."""
        how = shape_of(self._tower("image").pixels)
        return load_picture(picture, **how, exact=self.run.data.exact_decode)

    def tokenize(self, texts: Sequence[str]) -> Int[Tensor, "n time"]:
        """Ids as the text tower reads them, padded with -1 to the longest."""
        return self.tokenizer(texts)

    @torch.no_grad()
    def encode_image(self, images: Tensor | Sequence[Picture], normalize: bool = False) -> Float[Tensor, "n d"]:
        """uint8 [n, channels, height, width] as `transform` gives them, or paths or pictures."""
        x = images if isinstance(images, Tensor) else torch.stack([self.transform(picture) for picture in images])
        return self._encode("image", x, torch.ones(len(x), 1, dtype=torch.bool), normalize)

    @torch.no_grad()
    def encode_audio(
        self,
        waves: Float[Tensor, "n samples"] | Sequence[str | Path],
        normalize: bool = False,
        keep: Bool[Tensor, "n samples"] | None = None,
    ) -> Float[Tensor, "n d"]:
        """Waveforms at the model's rate (`config.audio.sound.rate_hz`), `keep` True where real; or paths."""
        if isinstance(waves, Tensor):
            return self._encode(
                "audio", waves, torch.ones_like(waves, dtype=torch.bool) if keep is None else keep, normalize
            )
        clips = [self._load_audio(path) for path in waves]
        x = nn.utils.rnn.pad_sequence(clips, batch_first=True)
        lengths = torch.tensor([len(clip) for clip in clips])
        return self._encode("audio", x, torch.arange(x.shape[1]) < lengths[:, None], normalize)

    @torch.no_grad()
    def encode_text(
        self, texts: Int[Tensor, "n time"] | Sequence[str], normalize: bool = False
    ) -> Float[Tensor, "n d"]:
        """Strings, or ids as `tokenize` gives them."""
        ids = texts if isinstance(texts, Tensor) else self.tokenize(texts)
        return self._encode("text", ids.clamp(min=0), ids >= 0, normalize)

    @torch.no_grad()
    def generate(
        self,
        task: str,
        *,
        image: Picture | None = None,
        audio: str | Path | None = None,
        text: str | None = None,
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> str:
        """What the model writes for one sample. Temperature 0 takes the likeliest token at each step."""
        wanted = self._task(task)
        given = {name for name, value in (("image", image), ("audio", audio), ("text", text)) if value is not None}
        missing, spare = set(wanted.sources) - given, given - set(wanted.sources)
        flags = " ".join(f"--{name}" for name in sorted(missing))
        require(not missing, f"task {task} reads {' and '.join(sorted(missing))}, which was not given; add {flags}")
        require(not spare, f"task {task} does not read {' and '.join(sorted(spare))}; leave it out")
        example = Example(
            key="input",
            image=None if image is None else self.transform(image),
            audio=None if audio is None else self._load_audio(audio),
            text=text,
            meta={},
        )
        how = Decoding(max_tokens=max_tokens, temperature=temperature, top_k=top_k if temperature else 0, seed=seed)
        batch = collate([example], self.tokenizer).to(self.core.device)
        return self.tokenizer.decode(write(self.core, wanted, batch, how).ids[0])

    @torch.no_grad()
    def embed(self, batch: Batch) -> dict[str, Float[Tensor, "n d"]]:
        """Unit embeddings of every item whose modality has a tower."""
        batch = batch.to(self.core.device)
        readings = {
            name: read(self.core, Task((name,), None), batch) for name in batch.items if name in self.modalities
        }
        return {name: reading.embedding for name, reading in readings.items() if reading is not None}

    def write(self, task: str, batch: Batch, max_tokens: int) -> tuple[list[int], list[str]]:
        """The rows that have all sources of the task, and the text written greedily for each."""
        how = Decoding(max_tokens=max_tokens)
        written = write(self.core, self._task(task), batch.to(self.core.device), how)
        return written.rows, [self.tokenizer.decode(row) for row in written.ids]

    @torch.no_grad()
    def nats(self, task: str, batch: Batch) -> Float[Tensor, " size"]:
        """Negative log-likelihood of each sample's target and its end mark; nan without target or source."""
        out = torch.full((batch.size,), torch.nan)
        reading = read(self.core, self._task(task), batch.to(self.core.device))
        if reading is None or not len(reading.labels):
            return out
        each = F.cross_entropy(self.core.logits(reading.states).float(), reading.labels, reduction="none")
        owners = reading.owners.unique()
        totals = torch.zeros(batch.size, device=each.device).index_add(0, reading.owners, each)
        out[owners.cpu()] = totals[owners].cpu()
        return out

    def _task(self, text: str) -> Task:
        task = parse_writing(text)
        require(
            text in self.tasks,
            f"this model was not trained on {text!r}; it writes {', '.join(self.tasks) or 'nothing'}",
        )
        return task

    def _tower(self, modality: str):
        tower = getattr(self.config, modality)
        if tower is None:
            raise UserError(f"this model has no {modality} tower; it reads {', '.join(self.modalities)}")
        return tower

    def _load_audio(self, path: str | Path) -> Tensor:
        rate_hz, data = self._tower("audio").sound.rate_hz, self.run.data
        return load_audio(path, rate_hz=rate_hz, max_seconds=data.max_seconds, crop_seconds=data.crop_seconds)

    def _encode(self, modality: str, x: Tensor, keep: Tensor, normalize: bool) -> Float[Tensor, "n d"]:
        """Unit vectors: the heads always normalise, so `normalize` changes nothing and is there for the protocol."""
        self._tower(modality)
        rows = torch.arange(len(x))
        items = {modality: Items(x=x, keep=keep, rows=rows)}
        batch = Batch(size=len(x), items=items, same=rows).to(self.core.device)
        reading = read(self.core, Task((modality,), None), batch)
        return torch.zeros(0, self.embed_dim) if reading is None else reading.embedding
