"""Conformers of torchaudio and transformers in our own: with and without padding, from frames and from waveforms."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchaudio
from peers import SPEECH, built, double, drawn, of_hf, ours, padded, shaken
from torch import Tensor, nn
from transformers import SeamlessM4TFeatureExtractor

from mmfm.config import AudioPreprocess, Conformer, Mel, UserError
from mmfm.data.batch import Tokens
from mmfm.models.conformer import AudioConformer
from mmfm.models.mappings import Foreign, convert
from mmfm.models.mel import KaldiMel

LENGTHS, TIME = [9, 5, 7], 9
SIZES = {"input_dim": 32, "num_heads": 4, "ffn_dim": 48, "num_layers": 2, "depthwise_conv_kernel_size": 5}


def same(found: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def torchaudios(**changes: object) -> tuple[nn.Module, Foreign]:
    theirs = shaken(torchaudio.models.Conformer(**(SIZES | changes)))
    return theirs, Foreign(library="torchaudio", architecture=SIZES | changes, modality="audio")


def w2v_bert(**changes: object) -> tuple[nn.Module, Foreign]:
    return of_hf("Wav2Vec2BertModel", "audio", **(SPEECH | changes))


def test_torchaudios_conformer_without_padding() -> None:
    """Statistics of the batch norm included; and the same gradient at the frames."""
    with double():
        theirs, source = torchaudios()
        _, tower = ours(source, theirs.state_dict())
        frames = [drawn(3, TIME, 32).requires_grad_() for _ in range(2)]
        expected, _ = theirs(frames[0], torch.tensor([TIME] * 3))
        found = tower(Tokens(frames[1], padded([TIME] * 3, TIME))).x
        same(found, expected)
        weight = drawn(*found.shape, seed=2)
        pairs = zip((expected, found), frames, strict=True)
        same(*(torch.autograd.grad((y * weight).sum(), x)[0] for y, x in pairs), atol=1e-11)


def test_torchaudios_conformer_sees_the_padding_and_ours_need_not() -> None:
    """With `mask_conv=False` ours has torchaudio's leak. As converted, a clip gives what torchaudio's gives alone."""
    with double():
        theirs, source = torchaudios()
        converted, tower = ours(source, theirs.state_dict())
        frames, keep = drawn(3, TIME, 32), padded(LENGTHS, TIME)
        expected, _ = theirs(frames, torch.tensor(LENGTHS))
        leaky = built(replace(converted.part, mask_conv=False))
        leaky.load_state_dict(converted.weights)
        same(leaky(Tokens(frames, keep)).x[keep], expected[keep])
        found = tower(Tokens(frames, keep)).x
        assert (found - expected)[keep].abs().max() > 1e-2
        for row, length in enumerate(LENGTHS):
            same(found[row, :length], theirs(frames[row : row + 1, :length], torch.tensor([length]))[0][0])


def test_w2v_bert() -> None:
    """The real frames' states, padded and alone, and the gradient at the frames."""
    with double():
        theirs, source = w2v_bert()
        _, tower = ours(source, theirs.state_dict())
        keep = padded(LENGTHS, TIME)
        frames = [drawn(3, 2 * TIME, 8).requires_grad_() for _ in range(2)]
        expected = theirs(frames[0].reshape(3, TIME, 16), attention_mask=keep.long()).last_hidden_state[keep]
        tokens = tower(Tokens(frames[1], keep.repeat_interleave(2, dim=1)))
        found = tokens.x[keep]
        assert torch.equal(tokens.keep, keep)
        same(found, expected)
        weight = drawn(*found.shape, seed=2)
        pairs = zip((expected, found), frames, strict=True)
        same(*(torch.autograd.grad((y * weight).sum(), x)[0] for y, x in pairs), atol=1e-11)
        alone = tower(Tokens(frames[1][1:2, :10], torch.ones(1, 10, dtype=torch.bool))).x
        same(alone[0], tokens.x[1, :5])


def clips() -> tuple[list[np.ndarray], Tensor, Tensor]:
    """Three sounds of different lengths, and the same as a batch padded with noise."""
    draw = np.random.default_rng(0)
    waves = [0.1 * draw.standard_normal(size).astype(np.float32) for size in (8_000, 5_000, 6_333)]
    batch = torch.randn(3, 8_000, generator=torch.Generator().manual_seed(0))
    for row, wave in enumerate(waves):
        batch[row, : len(wave)] = torch.from_numpy(wave)
    return waves, batch, padded([len(wave) for wave in waves], 8_000)


def test_frames_are_those_of_the_extractor() -> None:
    """Of a padded batch, each clip's frames are what transformers' extractor makes of the clip alone, and as many."""
    waves, batch, keep = clips()
    frames = KaldiMel(Mel(bins=80, high_hz=8_000.0, recipe="kaldi"))(batch, keep)
    extractor = SeamlessM4TFeatureExtractor(stride=1)
    for row, wave in enumerate(waves):
        theirs = extractor(wave, sampling_rate=16_000, pad_to_multiple_of=None, return_tensors="pt")["input_features"]
        assert int(frames.keep[row].sum()) == theirs.shape[1] and frames.keep[row, : theirs.shape[1]].all()
        torch.testing.assert_close(frames.x[row, : theirs.shape[1]], theirs[0], rtol=0, atol=2e-3)
        assert not frames.x[row, theirs.shape[1] :].any()


def test_from_the_waveform_to_the_tokens() -> None:
    """Extractor and model of transformers against `mel` and the tower: a padded batch, odd numbers of frames too."""
    waves, batch, keep = clips()
    theirs, source = w2v_bert(feature_projection_input_dim=160)
    _, tower = ours(source, theirs.state_dict())
    found = tower(tower.mel(batch, keep))
    assert tower.mel(batch, keep).keep.sum(1).remainder(2).any()
    inputs = SeamlessM4TFeatureExtractor()(waves, sampling_rate=16_000, return_tensors="pt")
    expected = theirs(**inputs).last_hidden_state
    real = inputs["attention_mask"].bool()
    assert torch.equal(found.keep, real)
    torch.testing.assert_close(found.x[real], expected[real], rtol=0, atol=5e-3)


def test_a_very_short_clip_is_one_frame() -> None:
    """Two samples among longer clips: one real token, finite, and the same alone."""
    part = Conformer(mel=Mel(recipe="kaldi"), stem="stack", width=32, depth=1, heads=4, position="relative", left=2)
    tower = shaken(AudioConformer(part))
    batch, keep = drawn(2, 3_000).float(), padded([3_000, 2], 3_000)
    tokens = tower(tower.mel(batch, keep))
    assert tokens.keep.sum(1).tolist() == [8, 1] and tokens.x[tokens.keep].isfinite().all()
    alone = tower(tower.mel(batch[1:, :2], keep[1:, :2]))
    torch.testing.assert_close(alone.x[0, :1], tokens.x[1, :1])


REFUSED = {
    "group norm": (lambda: torchaudios(use_group_norm=True), "a group norm over time"),
    "order": (lambda: torchaudios(convolution_first=True), "the convolution before the attention"),
    "rotary": (lambda: w2v_bert(position_embeddings_type="rotary"), "rotary positions"),
    "adapter": (lambda: w2v_bert(add_adapter=True), "an adapter"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_place_is_refused(name: str) -> None:
    make, said = REFUSED[name]
    theirs, source = make()
    with pytest.raises(UserError, match=said):
        convert(source, theirs.state_dict())


def test_frames_of_other_settings_are_refused() -> None:
    """An extractor that is not ours in one number would feed the tower something else without a word."""
    theirs, source = w2v_bert(feature_projection_input_dim=160)
    said = SeamlessM4TFeatureExtractor().to_json_string()
    contract = AudioPreprocess(rate_hz=16_000, extractor=said)
    assert convert(replace(source, contract=contract), theirs.state_dict()).part.mel.recipe == "kaldi"
    other = replace(contract, extractor=said.replace('"stride": 2', '"stride": 1'))
    with pytest.raises(UserError, match=r"frames made with \{'stride': 1\}"):
        convert(replace(source, contract=other), theirs.state_dict())


def test_tensors_that_are_too_many_or_too_few() -> None:
    theirs, source = torchaudios()
    weights = theirs.state_dict()
    lost = "conformer_layers.1.conv_module.sequential.3.running_var"
    with pytest.raises(UserError, match=r"no tensor for \['blocks.1.conv.norm.running_var'\] of Conformer"):
        convert(source, {name: tensor for name, tensor in weights.items() if name != lost})
    with pytest.raises(UserError, match=r"Conformer has no place for \['blocks.0.extra'\]"):
        convert(source, weights | {"conformer_layers.0.extra": torch.zeros(1)})


CHOSEN = {
    "torchaudio": Conformer(
        mel=Mel(bins=32), stem="none", width=32, depth=2, heads=4, kernel=5, conv_norm="fixed", position="none"
    ),
    "w2v-BERT": Conformer(
        mel=Mel(recipe="kaldi"), stem="stack", width=32, depth=2, heads=4, kernel=5, causal=True, conv_bias=False,
        position="relative", left=3, right=2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOSEN)
def test_a_row_alone_is_the_row_in_its_batch(name: str) -> None:
    """In training, at a dropout of a half, waveforms of several lengths: no neighbour, no padding, no statistics."""
    tower = shaken(AudioConformer(CHOSEN[name], dropout=0.5)).train()
    _, batch, keep = clips()
    seeds = torch.arange(3)
    before = {key: value.clone() for key, value in tower.named_buffers()}
    whole = tower(tower.mel(batch, keep), seeds)
    assert not torch.equal(whole.x, tower(tower.mel(batch, keep), seeds + 1).x)
    alone = tower(tower.mel(batch[1:2, :5_000], keep[1:2, :5_000]), seeds[1:2])
    length = int(alone.keep.sum())
    assert length == int(whole.keep[1].sum())
    torch.testing.assert_close(alone.x[0, :length], whole.x[1, :length], rtol=0, atol=2e-4)
    assert all(torch.equal(value, before[key]) for key, value in tower.named_buffers())


def test_a_causal_convolution_looks_back_only() -> None:
    """Without attention over time: what is heard later changes nothing earlier."""
    part = replace(CHOSEN["w2v-BERT"], stem="none", mel=Mel(bins=32))
    tower = shaken(AudioConformer(part))
    conv, keep = tower.blocks[0].conv, torch.ones(1, TIME, dtype=torch.bool)
    x = drawn(1, TIME, 32).float().requires_grad_()
    (gradient,) = torch.autograd.grad(conv(x, keep)[0, 4].sum(), x)
    assert gradient[0, :5].abs().sum(1).min() > 0 and not gradient[0, 5:].any()
