"""Known codecs, the vocoder, losses: parity with transformers and torchaudio, and what padding may not change."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchaudio.functional as AF
import transformers as hf
from torch import Tensor, nn

from mmfm.config import KnownCodec, Mel, UserError
from mmfm.models.codecs import known
from mmfm.models.codecs.discriminator import Patches
from mmfm.models.codecs.fingerprint import fingerprint
from mmfm.models.codecs.losses import (
    Judged,
    judged_apart,
    judged_real,
    spectra,
    spectral_distance,
)
from mmfm.models.codecs.vocoder import GriffinLim

CONVS = {"num_filters": 4, "upsampling_ratios": [5, 2], "codebook_size": 16}
PICTURE = {"embed_dim": 4, "latent_channels": 4, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}
TOYS = {
    "dac": hf.DacConfig(
        encoder_hidden_size=4, decoder_hidden_size=16, downsampling_ratios=(2, 5), n_codebooks=3, codebook_size=16
    ),
    "encodec": hf.EncodecConfig(hidden_size=8, num_lstm_layers=1, target_bandwidths=[19.2, 38.4], **CONVS),
    "mimi": hf.MimiConfig(
        hidden_size=16, codebook_dim=8, vector_quantization_hidden_dimension=8, num_quantizers=4, upsample_groups=16,
        num_hidden_layers=1, intermediate_size=16, num_attention_heads=2, num_key_value_heads=2, sliding_window=8,
        **CONVS,
    ),
    "janus": hf.JanusVQVAEConfig(num_embeddings=16, num_patches=4, **PICTURE),
    "emu3": hf.Emu3VQVAEConfig(
        codebook_size=16, attn_resolutions=[1], hidden_size=32, temporal_downsample_factor=2, **PICTURE
    ),
}  # fmt: skip
MODELS = {
    "dac": hf.DacModel,
    "encodec": hf.EncodecModel,
    "mimi": hf.MimiModel,
    "janus": hf.JanusVQVAE,
    "emu3": hf.Emu3VQVAE,
}
SOUNDS, IMAGES = ("dac", "encodec", "mimi"), ("janus", "emu3")
SIZE = {"janus": {}, "emu3": {"height_px": 8, "width_px": 12}}


def moved(name: str) -> nn.Module:
    """transformers' own, away from its start: with weights as small as that, all codes are one."""
    torch.manual_seed(0)
    model = MODELS[name](TOYS[name]).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            fresh = torch.randn(parameter.shape, generator=draw)
            if parameter.ndim <= 1:
                parameter += 0.1 * fresh
            else:
                parameter.copy_(fresh / math.sqrt(parameter[0].numel()))
        for key, table in model.state_dict().items():
            if key.endswith(("embed", "embed_sum", "codebook.weight", "embedding.weight")):
                table.copy_(0.3 * torch.randn(table.shape, generator=draw))
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("codecs")

    def folder(name: str) -> Path:
        if not (root / name).is_dir():
            moved(name).save_pretrained(root / name)
        return root / name

    return folder


def modality_of(name: str) -> str:
    return "audio" if name in SOUNDS else "image"


def opened(folder: Path, name: str, **changes: object) -> known.Known:
    found = known.resolve(KnownCodec(source=str(folder), **{**SIZE.get(name, {}), **changes}), modality_of(name))
    codec = known.build(found.codec)
    if found.weights is not None:
        codec.load_state_dict(found.weights)
    return codec


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def real(lengths: list[int]) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def library_codes(model: nn.Module, name: str, waves: Tensor, books: int) -> Tensor:
    """[n, books, frames], by the calls of the library's own examples."""
    with torch.no_grad():
        if name == "encodec":
            bandwidth = {2: 19.2, 4: 38.4}[books]
            return model.encode(waves[:, None], torch.ones_like(waves[:, None]).bool(), bandwidth).audio_codes[0]
        if name == "dac":
            return model.encode(waves[:, None], n_quantizers=books).audio_codes
        return model.encode(waves[:, None], num_quantizers=books).audio_codes


def library_waves(model: nn.Module, name: str, codes: Tensor) -> Tensor:
    with torch.no_grad():
        if name == "dac":
            return model.decode(audio_codes=codes).audio_values
        if name == "encodec":
            return model.decode(codes[None], [None]).audio_values[:, 0]
        return model.decode(codes).audio_values[:, 0]


@pytest.mark.parametrize("name", SOUNDS)
@pytest.mark.parametrize("fewer", [False, True])
def test_sounds_are_the_librarys(folders: Callable[[str], Path], name: str, fewer: bool) -> None:
    """Ids are the library's codes book by book and step by step, and the decoded sound is the library's."""
    model = moved(name)
    codec = opened(folders(name), name, num_codebooks=2 if fewer else 0)
    books = 2 if fewer else len(codec.form.sizes)
    waves = noise(2, 12 * codec.hop)
    codes = library_codes(model, name, waves, books)
    ids, keep = codec.encode(waves, torch.ones_like(waves, dtype=torch.bool))
    assert torch.equal(ids, (codes + 16 * torch.arange(books)[:, None]).transpose(1, 2).flatten(1))
    assert codes.unique().numel() > 4
    assert keep.all()
    assert codec.form.sizes == (16,) * books
    wanted = library_waves(model, name, codes)[:, : waves.shape[1]]
    found, whole = codec.decode(ids, keep)
    assert whole.all()
    assert found.shape == waves.shape
    torch.testing.assert_close(found[:, : wanted.shape[1]], wanted.clamp(-1, 1))
    assert not found[:, wanted.shape[1] :].any()


def test_dac_fills_what_its_strides_leave_out(folders: Callable[[str], Path]) -> None:
    """An odd stride makes the library's sound shorter than its frames; ours ends in zeros there."""
    codec = opened(folders("dac"), "dac")
    short = library_waves(moved("dac"), "dac", torch.zeros(1, 3, 6, dtype=torch.int64)).shape[1]
    ids = (16 * torch.arange(3)).repeat(6)[None]
    found, _ = codec.decode(ids, torch.ones_like(ids, dtype=torch.bool))
    assert short < 6 * codec.hop == found.shape[1]
    assert found[0, :short].any()
    assert not found[0, short:].any()


@pytest.mark.parametrize("name", SOUNDS)
def test_padding_changes_nothing(folders: Callable[[str], Path], name: str) -> None:
    """A sound in a padded batch, whatever its padding holds, has the codes and the sound that it has alone."""
    codec = opened(folders(name), name)
    lengths = [205, 120, 7, 118]
    waves, keep = noise(4, 205), real(lengths)
    ids, written = codec.encode(waves.masked_fill(~keep, 9.0), keep)
    sounds, whole = codec.decode(ids, written)
    for row, length in enumerate(lengths):
        alone = codec.encode(waves[row : row + 1, :length], torch.ones(1, length, dtype=torch.bool))
        count = alone.ids.shape[1]
        assert count == -(-length // codec.hop) * codec.books
        assert torch.equal(ids[row, :count], alone.ids[0])
        assert torch.equal(written[row], torch.arange(ids.shape[1]) < count)
        sound, _ = codec.decode(*alone)
        torch.testing.assert_close(sounds[row][whole[row]], sound[0])


@pytest.mark.parametrize("name", IMAGES)
def test_pictures_are_the_librarys(folders: Callable[[str], Path], name: str) -> None:
    """Ids are the library's tokens row by row, and the picture the library's, from pixels in -1..1 to 0..255."""
    model, codec = moved(name), opened(folders(name), name)
    how = codec.pixels
    assert (how.height_px, how.width_px) == {"janus": (8, 8), "emu3": (8, 12)}[name]
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (3, 3, how.height_px, how.width_px), generator=draw, dtype=torch.uint8)
    pixels = x / 127.5 - 1
    with torch.no_grad():
        if name == "janus":
            tokens = model.encode(pixels).image_tokens.view(3, -1)
            wanted = model.decode(tokens)
        else:
            tokens = torch.stack(model.encode(pixels, torch.tensor([[8, 12]] * 3)).image_tokens)
            wanted = model.decode(tokens)
    ids, keep = codec.encode(x, torch.tensor([[True], [False], [True]]))
    assert torch.equal(ids[[0, 2]], tokens.flatten(1)[[0, 2]])
    assert ids[[0, 2]].unique().numel() > 1
    assert keep.all(1).tolist() == [True, False, True]
    assert ids.shape[1] == codec.form.length
    found, there = codec.decode(ids, keep)
    assert there.flatten().tolist() == [True, False, True]
    assert torch.equal(found[[0, 2]], ((wanted + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)[[0, 2]])
    assert not found[1].any()


@pytest.mark.parametrize("name", SOUNDS + IMAGES)
def test_offline_twin(folders: Callable[[str], Path], name: str) -> None:
    """Built again from run.json's architecture and its weights alone, it is the same codec, frozen and at rest."""
    found = known.resolve(KnownCodec(source=str(folders(name)), **SIZE.get(name, {})), modality_of(name))
    first = known.build(found.codec)
    first.load_state_dict(found.weights)
    second = known.build(KnownCodec(**json.loads(json.dumps(vars(found.codec), default=vars)) | contract(found.codec)))
    second.load_state_dict(first.state_dict())
    assert fingerprint(first, found.codec) == fingerprint(second, found.codec)
    assert found.codec.sizes == first.form.sizes
    assert found.codec.length == first.form.length
    second.train()
    assert not any(part.training for part in second.modules())
    assert not any(value.requires_grad for value in second.parameters())
    with torch.no_grad():
        next(second.parameters()).view(-1)[0] += 1e-3
    assert fingerprint(first, found.codec) != fingerprint(second, found.codec)


def contract(codec: KnownCodec) -> dict[str, object]:
    return {"sizes": codec.sizes, "pixels": codec.pixels, "sound": codec.sound}


def test_a_codec_inside_a_larger_model(tmp_path: Path, folders: Callable[[str], Path]) -> None:
    """Of Janus as a whole, the weights of its codec alone are read."""
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = hf.JanusConfig(
        text_config=hf.LlamaConfig(vocab_size=32, num_key_value_heads=2, **small),
        vision_config=hf.JanusVisionConfig(image_size=16, patch_size=8, projection_dim=16, **small),
        vq_config=TOYS["janus"],
    )
    torch.manual_seed(0)
    whole = hf.JanusForConditionalGeneration(config)
    whole.model.vqmodel.load_state_dict(moved("janus").state_dict())
    whole.save_pretrained(tmp_path)
    codec, alone = opened(tmp_path, "janus"), opened(folders("janus"), "janus")
    assert codec.state_dict().keys() == alone.state_dict().keys()
    for name, value in alone.state_dict().items():
        assert torch.equal(codec.state_dict()[name], value), name


def test_random_weights_need_no_file(tmp_path: Path) -> None:
    """The architecture alone; codebooks that the library starts at zero are scattered, so that codes differ."""
    TOYS["encodec"].save_pretrained(tmp_path)
    found = known.resolve(KnownCodec(source=str(tmp_path), weights="random"), "audio")
    assert found.weights is None
    torch.manual_seed(0)
    codec = known.build(found.codec)
    assert codec.encode(5 * noise(1, 400), torch.ones(1, 400, dtype=torch.bool)).ids.unique().numel() > 4


@pytest.mark.parametrize(
    ("config", "changes", "modality", "words"),
    [
        (hf.BertConfig(), {}, "audio", r"is a bert, which is no codec; give DAC, Mimi or EnCodec for audio"),
        (hf.ChameleonVQVAEConfig(), {}, "image", r"is a chameleon_vqgan: transformers has no decoder for its codes"),
        (TOYS["dac"], {}, "image", r"is a dac, no codec for image; give one of janus_vqgan, emu3_vqgan"),
        (TOYS["janus"], {}, "audio", r"is a janus_vqgan, no codec for audio; give one of dac, mimi, encodec"),
        (TOYS["dac"], {"num_codebooks": 4}, "audio", r"num_codebooks=4: \S+ has 3; give at most that"),
        (TOYS["dac"], {"height_px": 8}, "audio", r"height_px and width_px are of pictures"),
        (TOYS["janus"], {"num_codebooks": 1}, "image", r"num_codebooks=1: the codes of janus_vqgan are of one book"),
        (TOYS["janus"], {"width_px": 7}, "image", r"a side of 7 px is no multiple of the 2 px of a code"),
        (TOYS["emu3"], {}, "image", r"codes pictures of any size; say KnownCodec\.height_px and width_px"),
        (
            hf.EncodecConfig(audio_channels=2, normalize=True, chunk_length_s=1.0, overlap=0.01),
            {},
            "audio",
            r"codes stereo or a loudness beside its codes",
        ),
    ],
)
def test_no_such_codec(
    tmp_path: Path, config: hf.PreTrainedConfig, changes: dict[str, int], modality: str, words: str
) -> None:
    """What is no codec, or none for this modality, is told in one line, before any weights are looked for."""
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        known.resolve(KnownCodec(source=str(tmp_path), **changes), modality)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_there(tmp_path: Path, folders: Callable[[str], Path]) -> None:
    """No file of weights, and one that lacks some of them."""
    TOYS["dac"].save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has no \*\.safetensors"):
        known.resolve(KnownCodec(source=str(tmp_path)), "audio")
    from safetensors.torch import load_file, save_file

    weights = load_file(folders("dac") / "model.safetensors")
    weights.pop("decoder.conv2.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    told = (
        r"its weights lack decoder\.conv2\.weight \(1 in all\), which its config\.json asks for; .* a source that holds"
    )
    with pytest.raises(UserError, match=told):
        known.resolve(KnownCodec(source=str(tmp_path)), "audio")
    with pytest.raises(UserError, match="is not resolved"):
        known.build(KnownCodec(source=str(tmp_path)))


def test_codes_that_cannot_be(folders: Callable[[str], Path]) -> None:
    """A code of another book or outside all, steps cut in two, and too few places of a picture."""
    sounds, images = opened(folders("dac"), "dac"), opened(folders("janus"), "janus")
    ids = torch.tensor([[0, 16, 32, 0, 16, 48]])
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    with pytest.raises(UserError, match=r"a code of 16 is outside 0\.\.15, the range of this dac"):
        sounds.decode(ids, everywhere)
    with pytest.raises(UserError, match=r"a code of -16 is outside"):
        sounds.decode(torch.tensor([[0, 0, 32]]), everywhere[:, :3])
    with pytest.raises(UserError, match=r"5 codes are no whole steps of 3 codebooks; cut the last 2"):
        sounds.decode(ids, everywhere & (torch.arange(6) < 5))
    with pytest.raises(UserError, match=r"6 codes are no picture of this codec: it has 4 x 4"):
        images.decode(ids, everywhere)
    with pytest.raises(UserError, match=r"a code of 16 is outside 0\.\.15"):
        images.decode(torch.full((1, 16), 16), torch.ones(1, 16, dtype=torch.bool))


# The vocoder


def test_griffin_lim_is_torchaudios() -> None:
    """From the same magnitudes and phases, the steps of torchaudio's own give the same sound, away from its edges."""
    vocoder = GriffinLim(Mel(window_ms=32.0, hop_ms=8.0), iterations=6)
    size, hop = vocoder.mel.fft_size, vocoder.mel.hop_samples
    assert size == len(vocoder.mel.window)
    wanted = vocoder.frames(noise(1, 60 * hop)).abs()
    vocoder.magnitude = lambda mel: wanted
    ours, _ = vocoder(torch.zeros(1, 60, 80), torch.ones(1, 60, dtype=torch.bool))
    shifted = wanted.mT.contiguous()
    theirs = griffin_lim_from_zero(shifted, vocoder.mel.window, size, hop)
    again = [spectra_of(x, vocoder) for x in (ours, theirs)]
    gaps = [((part - wanted).norm() / wanted.norm()).item() for part in again]
    assert abs(gaps[0] - gaps[1]) < 0.05, gaps
    assert gaps[0] < 0.4


def griffin_lim_from_zero(wanted: Tensor, window: Tensor, size: int, hop: int) -> Tensor:
    return AF.griffinlim(wanted, window, size, hop, size, 1.0, 6, 0.99, None, False)


def spectra_of(x: Tensor, vocoder: GriffinLim) -> Tensor:
    hop = vocoder.mel.hop_samples
    return vocoder.frames(nn.functional.pad(x, (0, 60 * hop - x.shape[1]))).abs()


def test_a_vocoded_chirp_keeps_its_pitch_and_level() -> None:
    """A rising tone comes back with its loudest bin in place in nearly all frames, and its power within a tenth."""
    at = torch.arange(16_000) / 16_000
    wave = 0.5 * torch.sin(2 * math.pi * (300 * at + 700 * at.square()))[None]
    keep = torch.ones_like(wave, dtype=torch.bool)
    vocoder = GriffinLim(Mel(window_ms=32.0))
    frames, real = vocoder.mel.absolute(wave, keep)
    found, _ = vocoder(frames, real)
    again, _ = vocoder.mel.absolute(found, keep)
    same = (again.argmax(2) == frames.argmax(2)).float().mean()
    assert same > 0.9, same
    assert 0.9 < (found.square().mean() / wave.square().mean()).item() < 1.1


def test_a_vocoder_hears_no_neighbour() -> None:
    """Frames in a padded batch give, up to their end, the sound that they give alone; and the same one each time."""
    vocoder = GriffinLim(Mel())
    waves, keep = noise(3, 4_000), real([4_000, 2_500, 161])
    frames, there = vocoder.mel.absolute(waves, keep)
    sounds, whole = vocoder(frames.masked_fill(~there.unsqueeze(-1), 3.0), there)
    assert whole.sum(1).tolist() == [4_000, 2_560, 320]
    assert not sounds[~whole].any()
    for row, count in enumerate(there.sum(1).tolist()):
        alone, _ = vocoder(frames[row : row + 1, :count], there[row : row + 1, :count])
        torch.testing.assert_close(sounds[row, : alone.shape[1]], alone[0], rtol=1e-3, atol=1e-4)
    assert torch.equal(vocoder(frames, there)[0], vocoder(frames, there)[0])


def test_no_vocoder_for_these_frames() -> None:
    with pytest.raises(UserError, match=r"Mel\.recipe='kaldi' forgets how loud a sound is; use 'centred'"):
        GriffinLim(Mel(recipe="kaldi"))
    with pytest.raises(UserError, match=r"hop_ms=20\.0 is over half of window_ms=25\.0"):
        GriffinLim(Mel(hop_ms=20.0))


# Losses


def test_spectral_distance_of_known_pairs() -> None:
    """Zero for equal sounds; half the amplitude is at .5 + log 2; what lies behind the end changes nothing."""
    waves, keep = noise(2, 3_000), real([3_000, 1_900])
    equal = spectral_distance(waves, waves.clone(), keep)
    torch.testing.assert_close(equal, torch.zeros(2))
    half = spectral_distance(waves / 2, waves, keep)
    torch.testing.assert_close(half, torch.full((2,), 0.5 + math.log(2)), rtol=2e-2, atol=0.0)
    other = noise(2, 3_000, seed=1)
    padded = spectral_distance(other.masked_fill(~keep, 7.0), waves.masked_fill(~keep, -7.0), keep)
    alone = spectral_distance(other[1:, :1_900], waves[1:, :1_900], keep[1:, :1_900])
    torch.testing.assert_close(padded[1:], alone)


def test_spectra_are_torchs() -> None:
    """The magnitudes of torch.stft around the same samples, but for the window's sum."""
    waves = noise(1, 2_048)
    found, _ = spectra(waves, torch.ones_like(waves, dtype=torch.bool), 256)
    window = torch.hann_window(256)
    wanted = torch.stft(waves, 256, 64, window=window, pad_mode="constant", return_complex=True).abs() / window.sum()
    torch.testing.assert_close(found.abs(), wanted.mT[:, : found.shape[1]], rtol=1e-4, atol=1e-6)


def test_silence_has_finite_slopes() -> None:
    """Decoded silence against a sound, and a sound against silence: neither value nor slope is nan."""
    silent = torch.zeros(2, 1_000, requires_grad=True)
    wanted = torch.stack([noise(1_000), torch.zeros(1_000)])
    spectral_distance(silent, wanted, torch.ones(2, 1_000, dtype=torch.bool)).sum().backward()
    assert silent.grad is not None
    assert silent.grad.isfinite().all()


def test_hinges() -> None:
    """A judge that tells apart by more than its margin pays nothing."""
    sure, unsure = (Judged(torch.full((1, 2, 2), value), torch.ones(1, 2, dtype=torch.bool)) for value in (2.0, -2.0))
    found = (judged_apart([sure], [unsure]), judged_apart([unsure], [sure]), judged_real([sure]))
    assert [value.item() for value in found] == [0.0, 6.0, -2.0]


def test_a_critic_sees_no_padding() -> None:
    """What is said of a clip's frames in a padded batch is what is said of it alone, and so is what it costs."""
    critic, x, keep = Patches(1, 4, 2), noise(2, 1, 24 * 8).view(2, 1, 24, 8), real([24, 12])
    padded = critic(x.masked_fill(~keep[:, None, :, None], 5.0), keep)
    alone = critic(x[1:, :, :12], keep[1:, :12])
    torch.testing.assert_close(padded.said[1][padded.keep[1]], alone.said[0][alone.keep[0]])
    torch.testing.assert_close(judged_real([padded])[1:], judged_real([alone]))


@pytest.mark.parametrize("name", [*SOUNDS, *IMAGES])
def test_precision_changes_no_code(folders: Callable[[str], Path], name: str) -> None:
    """A known codec inside a model that is cast, or under autocast, gives and reads the same codes to the bit."""
    codec = opened(folders(name), name)
    if name in SOUNDS:
        x, keep = noise(2, 130), real([130, 77])
    else:
        size = (3, 8, 12) if name == "emu3" else (3, codec.pixels.height_px, codec.pixels.width_px)
        x, keep = torch.randint(0, 256, (3, *size), dtype=torch.uint8), torch.ones(3, 1, dtype=torch.bool)
    ids = codec.encode(x, keep)
    plain = codec.decode(*ids)
    around = nn.ModuleDict({"codec": codec, "other": nn.Linear(1, 1)}).bfloat16()
    assert around["other"].weight.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(codec.encode(x, keep).ids, ids.ids)
        assert all(map(torch.equal, codec.decode(*ids), plain))
