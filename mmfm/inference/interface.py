"""A trained model as people and other tools use it: encode, make, score.

`encode_image`, `encode_text`, `logit_scale`, `tokenize` and `transform` follow open_clip's protocol, so that what
drives a CLIP model drives this one. Paths, pictures and strings are taken too.
"""

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmfm import config
from mmfm.config import UserError, require
from mmfm.config.task import Task, parse_writing
from mmfm.data.batch import Batch, Items
from mmfm.data.decode import Example, collate
from mmfm.generation import Finish, GenerationConfig, write
from mmfm.inference.chat import Chatting, Messages, answering
from mmfm.inference.infill import MaskSpec
from mmfm.inference.known_tasks import links_of, trained
from mmfm.inference.likelihood import in_parts, nats_of
from mmfm.inference.modality_options import check_names, check_streamed
from mmfm.inference.pipeline import GeneratedCodes, Pipeline, Tick
from mmfm.inference.processing import Clip, Made, Picture, Sound, Text, able_to_write, kind_of, thing_of
from mmfm.inference.processor import Processor
from mmfm.inference.validation import check_hiding, each_of, given_of, has_own
from mmfm.models.model import UnifiedModel
from mmfm.objectives.task_pass import forward_task
from mmfm.preprocessing.tokenizer import Tokenizer

__all__ = ["GeneratedCodes", "Interface", "Made", "Picture", "Sound"]


class Interface(nn.Module):
    """`config`: the run it comes from. `tasks`: what it was trained to write. Every method works without gradient."""

    def __init__(self, core: UnifiedModel, run: config.Run, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.core, self.run, self.tokenizer = core, run, tokenizer.limited(run)
        self.config, self.embed_dim = run.model, core.embed_dim
        self.processor = Processor(run, self.tokenizer)
        self.modalities = tuple(name for name in config.modality_names() if name in core.towers)
        self.tasks = tuple(item.task for item in run.generative)
        self.checkpoint: Path | None = None  # the folder that its weights were read from

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """The logarithm of the inverse temperature of images and texts, else of the first pair; open_clip's too."""
        name = self._first_pair().name
        return self.core.log_scales[name].reshape(()).clamp(*self.core.log_scale_bounds[name])

    @property
    def logit_bias(self) -> Float[Tensor, ""] | None:
        """What that pair adds to each score, if its loss is a sigmoid; open_clip's too."""
        pair = self._first_pair()
        return self.core.biases[pair.name].reshape(()) if pair.loss == "sigmoid" else None

    def _first_pair(self) -> config.Contrastive:
        require(len(self.run.contrastive) > 0, "this model was trained without contrast: it has no logit_scale")
        return min(self.run.contrastive, key=lambda item: set(item.pair) != {"image", "text"})

    def transform(self, picture: Any) -> Tensor:
        """A picture as uint8 [channels, height, width] of the model's size; the model itself normalizes."""
        return self.processor.transform(picture)

    def tokenize(self, texts: Any) -> Int[Tensor, "n time"]:
        """Ids as the text tower reads them, padded with -1 to the longest; a text that is too long is cut, aloud."""
        return self.processor.tokenize(texts)

    @torch.no_grad()
    def encode_image(self, images: Any, normalize: bool = False, *, batch_size: int = 0) -> Float[Tensor, "n d"]:
        """uint8 [n, channels, height, width] as `transform` gives them; or paths, pictures of Pillow, and arrays uint8
        [height, width, channels]. batch: how many at a time, 0: all at once. Of none the result has no rows."""
        if parts := _parts(images, batch_size, 4):
            return torch.cat([self.encode_image(part, normalize) for part in parts])
        return self._encode("image", self.processor.items("image", images))

    @torch.no_grad()
    def encode_audio(
        self,
        waves: Any,
        normalize: bool = False,
        keep: Bool[Tensor, "n samples"] | None = None,
        *,
        batch_size: int = 0,
    ) -> Float[Tensor, "n d"]:
        """Waveforms at the model's rate (`config.audio.sound.rate_hz`), `keep` True where real; or paths, `Sound`s
        and arrays [samples] at that rate. batch_size: as of `encode_image`."""
        if keep is None and (parts := _parts(waves, batch_size, 2)):
            return torch.cat([self.encode_audio(part, normalize) for part in parts])
        return self._encode("audio", self.processor.items("audio", waves, keep))

    @torch.no_grad()
    def encode_text(self, texts: Any, normalize: bool = False, *, batch_size: int = 0) -> Float[Tensor, "n d"]:
        """Strings, or ids as `tokenize` gives them; one string is one text. batch_size: as of `encode_image`."""
        if parts := _parts(texts, batch_size, 2):
            return torch.cat([self.encode_text(part, normalize) for part in parts])
        items = self.processor.items("text", texts)
        out = torch.zeros(len(items.rows), self.embed_dim, dtype=self.core.dtype, device=self.core.device)
        for part, longest in in_parts(items.keep.sum(1).tolist()):
            rows = torch.arange(len(part), device=items.rows.device)
            some = Items(x=items.x[part, :longest], keep=items.keep[part, :longest], rows=rows)
            out[part] = self._encode("text", some).to(out.dtype)
        return out

    @torch.no_grad()
    def encode_own(self, modality: str, files: Sequence[str | Path | bytes]) -> Float[Tensor, "n d"]:
        """Unit embeddings of files, or their bytes, of a modality of one's own (mmfm/config/modalities.py)."""
        part = self.config.own.get(modality)
        if part is None:
            raise UserError(
                f"this model has no modality {modality!r} of one's own; {', '.join(self.config.own) or 'none'}"
            )
        read = [part.decode(one if isinstance(one, bytes) else Path(one).read_bytes()) for one in files]
        batch = collate([Example(key="given", own={modality: x}) for x in read], self.tokenizer)
        return self.embed(batch)[modality]

    def generate(
        self,
        task: str,
        *,
        image: Picture | Sequence[Picture] | None = None,
        audio: Clip | Sequence[Clip] | None = None,
        text: str | Sequence[str] | None = None,
        mask: MaskSpec = None,
        seed: int = 0,
        **options: Any,
    ) -> Made:
        """What the model makes for one sample: a string, a picture, or a `Sound`.

        A chain, such as "image>text>audio", makes one thing of another. A source that the task names several times is a
        list, in order of mention. "image~" and the like are given the whole item too, and `mask` says what of it is
        made anew (`mmfm.inference.infill`): a fraction, half of a picture, seconds of a sound, or _ in a text; of a
        picture that is not given that is everything. "audio>audio" gives the sound with its continuation, "text>text"
        the continuation alone.

        options: max_tokens, temperature, top_k, top_p, min_p, num_beams, length_penalty, guidance, guide, stop,
        num_steps, as `mmfm.generation.GenerationConfig` has them, and best_of, its draws. By default texts are
        greedy, and what is drawn or said has temperature 1. In a chain they are for the last link. What is made, a
        `Sound` or a string, has `finish`: "length" where it was cut at max_tokens, else "stop". UserError:
        what cannot be made, and why.
        """
        given = {"image": image, "audio": audio, "text": text}
        return self.generate_many(task, mask=mask, seed=seed, **given, **options)[0]

    def generate_many(
        self,
        task: str,
        *,
        n: int = 1,
        batch_size: int = 0,
        image: Picture | Sequence[Picture] | None = None,
        audio: Clip | Sequence[Clip] | None = None,
        text: str | Sequence[str] | None = None,
        mask: MaskSpec = None,
        seed: int = 0,
        tick: Tick | None = None,
        **options: Any,
    ) -> list[Made]:
        """n things for one sample: those that `generate` makes with the seeds `seed`, `seed` + 1, ..

        batch_size: how many are made at a time, 0: all at once, which takes as much more memory. The things are the
        same. tick: called with how many codes of a picture or sound are made, and of how many at the most.
        """
        check_names(options)
        require(n > 0, f"n={n} must be above 0")
        links = self._links(task)
        given = given_of(links[0], {"image": image, "audio": audio, "text": text})
        check_hiding(links[0], mask, has_own(links[0], given))
        seeds, maker = torch.arange(seed, seed + n), replace(self.maker, tick=tick)
        return maker.chain(links, [given] * n, seeds, mask, options, batch_size)

    def generate_each(
        self,
        task: str,
        samples: Sequence[Mapping[str, Any]],
        *,
        batch_size: int = 0,
        mask: MaskSpec = None,
        seed: int = 0,
        **options: Any,
    ) -> list[Made]:
        """What `generate` makes of each sample, [{"image": "a.png"}, {"image": "b.png"}]: the same as one by one, each
        with this seed, so that none depends on the others.

        batch_size: how many are made at a time, 0: all at once. Texts and sounds that are filled in go one by one.
        """
        check_names(options)
        links = self._links(task)
        given = each_of(links[0], samples, mask)
        alone = any(link.fill and link.target != "image" for link in links)
        seeds, size = torch.full((len(given),), seed), 1 if alone and batch_size >= 0 else batch_size
        return self.maker.chain(links, given, seeds, mask, options, size)

    def stream(self, task: str, *, seed: int = 0, **given: Any) -> Generator[str, None, Finish]:
        """A text as it is written, piece by piece; takes what `generate` takes, but for `mask`. What the generator
        returns is "length" where the text was cut at `max_tokens`, else "stop"."""
        check_names({name: value for name, value in given.items() if name not in (*config.MODALITIES, "mask")})
        *before, last = self._links(task)
        require(last.target == "text" and not last.fill, f"{task} writes no text from left to right; use generate")
        require(given.get("mask") is None, f"{task} fills nothing in; leave mask out")
        sources = {name: given.pop(name, None) for name in config.MODALITIES}
        if before:
            way = ">".join([str(before[0]), *(str(link.target) for link in before[1:])])
            held = {last.sources[0]: [self.generate(way, seed=seed, **sources)]}
        else:
            held = given_of(last, sources)
        return (yield from self.maker.stream(last, held, seed, given))

    def chat(self, messages: Messages, *, seed: int = 0, **options: Any) -> Text:
        """The answer to a conversation, a `Text`: [{"role": "user", "content": "What is this?"}]; a content may be
        a list of {"type": "text", "text": ...}, {"type": "image", "image": ...} and {"type": "audio", "audio": ...},
        each a path, a file's bytes, a picture of Pillow, an array of pixels, or `mmfm.Sound(wave, rate_hz)`. The parts
        "image_url", of a data: URL or a path, and "input_audio" of OpenAI's API are taken too. Nothing is fetched.

        options: max_tokens, temperature, top_k, top_p, min_p, num_beams, length_penalty, repetition_penalty,
        min_tokens, stop, logprobs. By default the likeliest tokens, up to 256.
        """
        return self.chat_many([messages], seed=seed, **options)[0]

    def chat_many(self, chats: Sequence[Messages], *, seed: int = 0, batch_size: int = 0, **options: Any) -> list[Text]:
        """`chat` of several conversations, so many at a time; 0: all at once. None depends on the others."""
        how, asked = answering(options, seed), [self.chatting.asked(messages) for messages in chats]
        return self.chatting.write(asked, how, batch_size)

    def stream_chat(self, messages: Messages, *, seed: int = 0, **options: Any) -> Generator[str, None, Finish]:
        """`chat`, piece by piece. What the generator returns is "length" where the answer was cut at max_tokens."""
        check_streamed(options)
        return (yield from self.chatting.stream(self.chatting.asked(messages), answering(options, seed)))

    def complete(self, text: str | Sequence[str], *, seed: int = 0, batch_size: int = 0, **options: Any) -> list[Text]:
        """How a text goes on, or each of several, as a language model has it; options: those of `chat`."""
        asked = [self.chatting.continued(one) for one in ([text] if isinstance(text, str) else text)]
        return self.chatting.write(asked, answering(options, seed), batch_size)

    @property
    def chatting(self) -> Chatting:
        return Chatting(self.core, self.run, self.tokenizer)

    @torch.no_grad()
    def make(
        self, task: str, batch: Batch, *, seeds: Int[Tensor, " size"], mask: MaskSpec = None, **options: Any
    ) -> list[GeneratedCodes]:
        """What the model makes for each sample that has the sources, as codes, which `decode` shows.

        A sound that is to be continued is cut in its middle first; what is to be filled in is the sample's own.
        """
        first, *links = self._links(task)
        found = self.maker.batch(first, batch.to(self.core.device), seeds, mask, {} if links else options)
        made = first
        for link in links:
            held = [{link.sources[0]: [self.maker.thing(made, item)]} for item in found]
            some, rows = seeds[[item.row for item in found]], [item.row for item in found]
            coded = self.maker.coded(link, held, some, None, options if link is links[-1] else {}) if held else []
            found, made = [item._replace(row=rows[item.row]) for item in coded], link
        return found

    def encode(self, modality: str, thing: Picture | Clip) -> list[int]:
        """The codes of a picture or a sound, or the ids of a text as they are written."""
        able_to_write(self.core, modality)
        kind_of(modality, thing)
        batch = self.processor.batch([{modality: [thing]}]).to(self.core.device)
        ids, keep = self.core.written(modality, batch.items[modality])
        return ids[0][keep[0]].tolist()

    def decode(self, modality: str, ids: Sequence[int], start: int = 0) -> Made:
        """What these codes show, sound like or say; start: how many of a sound's repeat what was given."""
        return thing_of(self.core, self.run, self.tokenizer, modality, ids, start)

    @torch.no_grad()
    def encoded(self, batch: Batch, modalities: Collection[str]) -> Batch:
        """The batch with the towers' tokens of these modalities, so that all that is asked of it shares them."""
        batch = batch.to(self.core.device)
        known = {
            name: replace(items, tokens=self.core.tokens(name, items))
            for name, items in batch.items.items()
            if name in modalities and name in self.modalities
        }
        return replace(batch, items={**batch.items, **known})

    @torch.no_grad()
    def embed(self, batch: Batch) -> dict[str, Float[Tensor, "n d"]]:
        """Unit embeddings of every item whose modality has a tower."""
        batch = batch.to(self.core.device)
        readings = {
            name: forward_task(self.core, Task((name,), None), batch) for name in batch.items if name in self.modalities
        }
        return {name: reading.embedding for name, reading in readings.items() if reading is not None}

    def write(self, task: str, batch: Batch, max_tokens: int) -> tuple[list[int], list[str]]:
        """The rows that have all sources of the task, and the `Text` written greedily for each."""
        how = GenerationConfig(max_tokens=max_tokens)
        written = write(self.core, self._task(task), batch.to(self.core.device), how)
        both = zip(written.ids, written.finish, strict=True)
        return written.rows, [Text(self.tokenizer.decode(row), finish) for row, finish in both]

    @torch.no_grad()
    def nats(self, task: str, batch: Batch) -> Float[Tensor, " size"]:
        """Negative log-likelihood of each sample's target and its end mark; nan without target or source, and where
        only the beginning of the target is held."""
        return nats_of(self.core, self._task(task), batch)

    @property
    def maker(self) -> Pipeline:
        return Pipeline(self.core, self.run, self.tokenizer)

    def _task(self, text: str) -> Task:
        return trained(parse_writing(text), self.run.generative)

    def _links(self, text: str) -> list[Task]:
        """The tasks of a chain, each of which the model was trained on."""
        return links_of(text, self.run.generative)

    def _encode(self, modality: str, items: Items) -> Float[Tensor, "n d"]:
        """Unit vectors: the heads always normalize, so that the protocol's `normalize` changes nothing."""
        batch = Batch(size=len(items.rows), items={modality: items}, positive_ids=items.rows).to(self.core.device)
        output = forward_task(self.core, Task((modality,), None), batch)
        if output is None:
            return torch.zeros(0, self.embed_dim, dtype=self.core.dtype, device=self.core.device)
        return output.embedding.to(self.core.dtype)


def _parts(given: Any, batch: int, axes: int) -> list[Any]:
    """Several inputs in parts of so many; empty where they are one part, or no batch of so many axes."""
    require(batch >= 0, f"batch_size={batch} must not be negative; 0: all at once")
    several = isinstance(given, list | tuple) and not isinstance(given, Sound)
    several = several or (isinstance(given, Tensor) and given.ndim == axes)
    if not batch or not several or len(given) <= batch:
        return []
    return [given[start : start + batch] for start in range(0, len(given), batch)]
