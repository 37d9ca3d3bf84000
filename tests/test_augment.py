"""Augmentation: a pure function of each item and its own draws, against torchvision and planted answers."""

import pytest
import torch
import torchvision.transforms.functional as TF

from mmfm.config import Augment
from mmfm.data.augment import DRAWS, augment_frames, augment_images, hide_tokens
from mmfm.data.batch import Tokens

EVERYTHING = Augment(
    **{
        "rotate_deg": 15.0,
        "scale": 0.2,
        "shear": 0.1,
        "translate": 0.1,
        "elastic": 0.05,
        "brightness": 0.3,
        "cutout": 0.5,
    },
    **{"speed": 0.2, "vtlp": 0.2, "time_mask": 8, "freq_mask": 4, "noise": 0.1},
)


def draws(n: int, seed: int = 0, **chosen: float) -> torch.Tensor:
    """Random ones, or the neutral middle with some of them chosen by their place ("u3")."""
    if not chosen:
        return torch.rand(n, DRAWS, generator=torch.Generator().manual_seed(seed))
    u = torch.full((n, DRAWS), 0.5)
    for name, value in chosen.items():
        u[:, int(name[1:])] = value
    return u


def pictures(n: int = 3, height: int = 12, width: int = 20) -> torch.Tensor:
    return torch.rand(n, 1, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def spectrograms() -> Tokens:
    keep = torch.arange(30) < torch.tensor([30, 17, 24])[:, None]
    x = torch.randn(3, 30, 16, generator=torch.Generator().manual_seed(2))
    return Tokens(x * keep.unsqueeze(-1), keep)


def test_neutral_draws_and_zero_settings_change_nothing():
    """In the middle of every range there is the input itself; with all settings at zero, whatever the draws."""
    images, frames = pictures(), spectrograms()
    still = Augment(
        rotate_deg=15.0, scale=0.2, shear=0.1, translate=0.1, elastic=0.05, brightness=0.3, speed=0.2, vtlp=0.2
    )
    torch.testing.assert_close(augment_images(images, draws(3, u0=0.5), still), images, rtol=0, atol=1e-5)
    torch.testing.assert_close(augment_frames(frames, draws(3, u0=0.5), still).x, frames.x, rtol=0, atol=1e-5)
    assert augment_images(images, draws(3), Augment()) is images
    assert augment_frames(frames, draws(3), Augment()) is frames


def test_a_shift_is_a_shift():
    """The largest draw moves a 12-pixel side by 3 pixels at shift=0.25: as slicing does, the border repeated."""
    images = pictures()
    moved = augment_images(images, draws(3, u4=1.0), Augment(translate=0.25))
    torch.testing.assert_close(moved[..., :-3], images[..., 3:], rtol=0, atol=1e-5)
    torch.testing.assert_close(moved[..., -3:], images[..., -1:].expand(-1, -1, -1, 3), rtol=0, atol=1e-5)


def test_a_rotation_is_torchvisions():
    """The inside of the picture, where no border enters, turns as torchvision's bilinear rotation turns it."""
    images = pictures(height=24, width=24)
    ours = augment_images(images, draws(3, u0=1.0), Augment(rotate_deg=10.0))
    theirs = TF.rotate(images, 10.0, interpolation=TF.InterpolationMode.BILINEAR)
    torch.testing.assert_close(ours[..., 6:18, 6:18], theirs[..., 6:18, 6:18], rtol=0, atol=1e-4)


def test_a_stretch_is_an_interpolation():
    """Half as long again in the middle column direction: a ramp stays a ramp of the other slope."""
    ramp = (torch.arange(20.0) - 9.5).expand(1, 1, 12, 20) / 20
    wider = augment_images(ramp, draws(1, u1=0.0), Augment(scale=0.25))
    torch.testing.assert_close(wider[0, 0, 5, 3:17], (ramp / 1.25)[0, 0, 5, 3:17], rtol=0, atol=1e-5)


@pytest.mark.parametrize("place", range(3))
def test_an_item_is_the_same_alone_and_in_a_batch(place):
    """Neither its neighbours nor their padding change what an item becomes."""
    u, images, frames = draws(3), pictures(), spectrograms()
    one = slice(place, place + 1)
    together = augment_images(images, u, EVERYTHING)[one]
    torch.testing.assert_close(together, augment_images(images[one], u[one], EVERYTHING), rtol=0, atol=1e-6)
    length = int(frames.keep[place].sum())
    alone = augment_frames(Tokens(frames.x[one, :length], frames.keep[one, :length]), u[one], EVERYTHING)
    batch = augment_frames(frames, u, EVERYTHING)
    torch.testing.assert_close(batch.x[one][batch.keep[one]], alone.x[alone.keep], rtol=0, atol=1e-4)


def test_speed_changes_the_length_and_formant_the_pitch_of_a_ridge():
    """Fastest at speed=0.25: 30 frames become 24. A ridge at bin 8 of 16 moves up by formant, the length stays."""
    frames = spectrograms()
    fast = augment_frames(frames, draws(3, u0=1.0), Augment(speed=0.25))
    assert fast.keep.sum(1).tolist() == [24, 14, 19]
    ridge = torch.zeros(1, 10, 16)
    ridge[..., 8] = 1.0
    shifted = augment_frames(Tokens(ridge, torch.ones(1, 10, dtype=torch.bool)), draws(1, u1=1.0), Augment(vtlp=0.25))
    assert shifted.x[0, 5].argmax().item() == 10 and shifted.keep.all()


def test_masks_are_no_longer_than_asked_nor_than_half():
    """Over many draws: at most 8 frames and at most half of a clip, at most 4 bins; both are reached."""
    n = 400
    frames = Tokens(torch.ones(n, 12, 16), torch.arange(12).expand(n, 12) < torch.tensor([12, 10] * (n // 2))[:, None])
    x = augment_frames(frames, draws(n), Augment(time_mask=8, freq_mask=4)).x
    hidden_frames = ((x == 0).all(2) & frames.keep).sum(1)
    lengths = frames.keep.sum(1)
    assert hidden_frames[lengths == 12].max() == 6 and hidden_frames[lengths == 10].max() == 5
    visible = x[(x != 0).any(2)].view(-1, 16)
    assert (visible == 0).sum(1).max() == 4 and (visible == 0).sum(1).min() == 0


def test_a_blank_is_a_rectangle_of_the_darkest():
    """At cutout=0.5: at most half of either side, contiguous, and black."""
    n = 200
    blank = augment_images(torch.ones(n, 1, 12, 20), draws(n), Augment(cutout=0.5)) == -1
    rows, columns = blank.any(3)[:, 0], blank.any(2)[:, 0]
    assert rows.sum(1).max() == 6 and columns.sum(1).max() == 10
    assert (rows[:, :, None] & columns[:, None, :] == blank[:, 0]).all()
    for line in (rows, columns):
        assert (line.int().diff(dim=1).abs().sum(1) <= 2).all()


def test_tokens_are_hidden_as_often_as_asked():
    """30 % of 60,000 within five deviations; the rest stays."""
    ids = torch.arange(30).expand(2_000, 30)
    hidden = hide_tokens(ids, draws(2_000), 0.3, 99)
    share = (hidden == 99).double().mean().item()
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / 60_000) ** 0.5
    assert (hidden[hidden != 99] == ids[hidden != 99]).all()


PLACES = 1_500  # more than any period that a hash by hand would have


def correlations(hidden: torch.Tensor) -> torch.Tensor:
    """Of a [rows, places] mask with itself, for every lag but none, in standard deviations of independent draws."""
    x = hidden.double() - hidden.double().mean()
    spectrum = torch.fft.rfft(x, n=2 * x.shape[1])
    products = torch.fft.irfft(spectrum.abs().square())[:, 1 : x.shape[1]].sum(0)
    counts = x.shape[0] * (x.shape[1] - torch.arange(1, x.shape[1]))
    return products / (x.var() * counts.double().sqrt())


def test_no_place_of_a_long_text_says_what_another_is():
    """No lag of up to 1,500 places stands out, and no place is hidden more often than others; nor do rows agree, nor
    what is hidden of a text where it is read with what is hidden where it is written."""
    ids = torch.zeros(300, PLACES, dtype=torch.int64)
    read, written = (hide_tokens(ids, draws(300), 0.3, 1, salt=salt).bool() for salt in (0, 1))
    assert correlations(read).abs().max() < 5.5 and correlations(read.T).abs().max() < 5.5
    for sums in (read.sum(0), read.sum(1)):
        share, size = sums.double() / (read.numel() / len(sums)), read.numel() / len(sums)
        assert ((share - 0.3).abs() < 5 * (0.21 / size) ** 0.5).all()
    both = ((read.double() - 0.3) * (written.double() - 0.3)).mean() / 0.21
    assert abs(both) < 5 / read.numel() ** 0.5


def test_a_text_is_masked_alike_alone_and_padded():
    ids = torch.arange(40).expand(3, 40)
    assert torch.equal(hide_tokens(ids, draws(3), 0.5, 99)[:, :7], hide_tokens(ids[:, :7], draws(3), 0.5, 99))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_is_of_its_own_in_each_cell(dtype):
    """Of mean zero and the deviation asked for, in any precision; no lag in time or frequency, and no other clip, has
    any of it."""
    x = torch.zeros(4, PLACES, 16, dtype=dtype)
    noise = augment_frames(
        Tokens(x, torch.ones(x.shape[:2], dtype=torch.bool)), draws(4), Augment(noise=0.5)
    ).x.double()
    assert abs(noise.mean()) < 5 * 0.5 / noise.numel() ** 0.5 and noise.std() == pytest.approx(0.5, rel=0.02)
    assert correlations(noise.mT.flatten(0, 1)).abs().max() < 5.5
    assert correlations(noise.flatten(0, 1)).abs().max() < 5.5
    assert abs((noise[0] * noise[1]).mean()) < 5 * 0.25 / noise[0].numel() ** 0.5


def test_pictures_in_half_precision_are_moved_as_in_single():
    """Only what is stored is rounded: where a pixel lies is not."""
    images = pictures(height=96, width=200)
    exact = augment_images(images.bfloat16().float(), draws(3), EVERYTHING)
    torch.testing.assert_close(augment_images(images.bfloat16(), draws(3), EVERYTHING), exact.bfloat16())
