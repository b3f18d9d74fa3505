"""Mixup, CutMix and random erasing, recomputed image by image from their results."""

import math

import numpy as np
import pytest
import torch

from carvision.augment.mixing import Mix, erase, plan_mixing
from tests.augment.photos import made_up_draws

NUM, HEIGHT, WIDTH = 64, 20, 30
# Each photo has one value, so that a mixed pixel shows its weights
IMAGES = (torch.arange(NUM, dtype=torch.float32) / NUM)[:, None, None, None].expand(NUM, 3, HEIGHT, WIDTH).contiguous()
VALID = torch.ones(NUM, dtype=torch.bool)
NEXT = [*range(1, NUM), 0]


def rectangle(changed: np.ndarray) -> tuple[int, int, int, int]:
    """Return top, left, bottom, right of the True part of (H, W), which must be a full rectangle."""
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    assert changed[top:bottom, left:right].all() and changed.sum() == (bottom - top) * (right - left)
    return top, left, bottom, right


def test_mixup_interpolates_each_photo_and_the_next_by_its_share():
    mixed, partner, share = Mix(mixup=0.8)(IMAGES, VALID, (0, 1, 2))
    assert partner.tolist() == NEXT and partner.dtype == torch.int64
    for i, own in enumerate(share.tolist()):
        torch.testing.assert_close(mixed[i], own * IMAGES[i] + (1 - own) * IMAGES[NEXT[i]], atol=1e-6, rtol=0)
    assert ((share >= 0.5) & (share <= 1)).all() and len(share.unique()) == NUM


def test_cutmix_cuts_a_rectangle_and_the_share_is_the_area_that_stays():
    mixed, partner, share = Mix(cutmix=1.0)(IMAGES, VALID, (0, 1, 2))
    weights = ((mixed - IMAGES[NEXT]) / (IMAGES - IMAGES[NEXT])).round(decimals=3)  # of each photo in its own pixels
    assert partner.tolist() == NEXT
    assert set(weights.unique().tolist()) == {0.0, 1.0}
    for i in range(NUM):
        lost = (weights[i] == 0).all(0)
        assert torch.equal(lost, (weights[i] == 0).any(0))
        assert share[i].item() == pytest.approx(1 - lost.float().mean().item(), abs=1e-6)
        if lost.any():
            rectangle(lost.numpy())


def test_a_rectangle_has_the_photos_shape_and_the_betas_area_before_clipping():
    num, size = 4000, 1000
    share, outside, top, left, bottom, right = plan_mixing(Mix(cutmix=1.0), num, size, size, (3,)).T
    inner = (top > 0) & (left > 0) & (bottom < size) & (right < size)
    assert (outside == 1).all() and (bottom - top)[inner].tolist() == (right - left)[inner].tolist()
    random = np.random.default_rng((3,))
    kept = random.beta(1.0, 1.0, num)
    side = np.floor(size * np.sqrt(1 - kept))
    assert np.array_equal((bottom - top)[inner], side[inner])
    assert (share >= kept - 0.01).all()  # clipped parts stay


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_are_the_larger_of_the_betas_two(alpha):
    share = plan_mixing(Mix(mixup=alpha), 20_000, 8, 8, (0,))[:, 0]
    assert share.min() >= 0.5
    # The Beta's variance is the mean square of the distance from a half, which mirroring doesn't change
    assert ((share - 0.5) ** 2).mean() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("alphas", [{"mixup": 0.5}, {"mixup": 0.5, "cutmix": 1.0}])
def test_p_is_the_probability_of_each_photo(p, alphas):
    plan = plan_mixing(Mix(**alphas, p=p), 5000, 200, 200, (1,))
    assert (plan[:, 0] < 1).mean() == pytest.approx(p, abs=0.03)
    share, outside, top, _, bottom, _ = plan.T
    cut = bottom > top
    assert cut.mean() == pytest.approx(p / 2 if "cutmix" in alphas else 0, abs=0.04)  # with both, each takes one
    assert (outside[cut] == 1).all() and np.allclose(share[~cut], outside[~cut])


@pytest.mark.parametrize("mix", [Mix(mixup=0.8), Mix(cutmix=1.0)])
def test_photos_that_are_not_valid_are_mixed_into_none(mix):
    valid = VALID.clone()
    valid[[0, 7, 8, 40]] = False
    images = IMAGES.clone()
    images[~valid] = 99.0
    mixed, partner, share = mix(images, valid, (5, 0, 0))
    whole, _, all_shares = mix(images, VALID, (5, 0, 0))
    for i in range(NUM):
        if valid[partner[i]]:
            assert torch.equal(mixed[i], whole[i]) and share[i] == all_shares[i]
        else:
            assert torch.equal(mixed[i], images[i]) and share[i] == 1


def test_the_key_alone_decides():
    mix = Mix(mixup=0.8, cutmix=1.0)
    first = mix(IMAGES, VALID, (0, 1, 2))
    torch.rand(3), np.random.rand(3)
    assert all(map(torch.equal, first, mix(IMAGES, VALID, (0, 1, 2))))
    shares = [mix(IMAGES, VALID, key)[2] for key in ((0, 1, 2), (1, 1, 2), (0, 2, 2), (0, 1, 3), (0, 1, 2, 1))]
    assert len({tuple(share.tolist()) for share in shares}) == 5


def test_inactive_mixing_and_single_photos_change_nothing():
    assert not Mix().active and not Mix(mixup=1.0, p=0.0).active and Mix(cutmix=1.0).active
    mixed, _, share = Mix()(IMAGES, VALID, (0,))
    assert torch.equal(mixed, IMAGES) and (share == 1).all()
    alone, _, _ = Mix(mixup=1.0)(IMAGES[:1], VALID[:1], (0,))
    torch.testing.assert_close(alone, IMAGES[:1])


@pytest.mark.parametrize(("area", "ratio"), [((0.02, 0.33), (0.3, 3.3)), ((0.2, 0.9), (0.1, 10))])
def test_erased_rectangles_have_their_area_shape_and_position(area, ratio):
    height, width, num = 60, 100, 400
    draws = made_up_draws(num, 5)
    # The mean of black and white halves is grey, which no pixel is
    images = torch.zeros(num, 3, height, width)
    images[:, :, ::2] = 1.0
    changed = ((erase(images, draws, area, ratio, "mean") - 0.5).abs() < 1e-4).all(1).numpy()
    found = np.array([rectangle(image) for image in changed])
    high, wide = found[:, 2] - found[:, 0], found[:, 3] - found[:, 1]
    error = np.abs(high * wide / (height * width) - (area[0] + (area[1] - area[0]) * draws[:, 0].numpy()))
    assert error.max() < 0.5 * (1 / high + 1 / wide).max() + 0.01 and error.mean() < 0.01
    shape = (high / height) / (wide / width)
    assert ((shape > ratio[0] * 0.8) & (shape < ratio[1] * 1.25)).all()
    if area[1] < 0.5:
        assert abs(np.log(shape).mean()) < 0.1 and shape.min() < 0.4 and shape.max() > 2.5
    assert (found >= 0).all() and (found[:, 2] <= height).all() and (found[:, 3] <= width).all()
    for i, free in enumerate((height - high, width - wide)):
        assert (found[:, i] == np.floor(draws[:, 2 + i].numpy() * (free + 1))).all()


def test_noise_is_uniform_and_independent_between_channels_and_images():
    images, draws = torch.zeros(6, 3, 64, 64), made_up_draws(6, 5)
    draws[:, :4] = torch.tensor([0.999, 0.5, 0.0, 0.0])
    noise = erase(images, draws, (0.9, 0.999), (1, 1), "noise")[:, :, :58, :58]
    values = noise.flatten()
    assert ((values >= 0) & (values < 1)).all() and values.unique().numel() > 0.98 * values.numel()
    assert values.mean().item() == pytest.approx(0.5, abs=0.01)
    assert values.std().item() == pytest.approx(math.sqrt(1 / 12), abs=0.01)
    series = noise.permute(1, 0, 2, 3).reshape(18, -1).numpy()
    assert np.abs(np.corrcoef(series)[np.triu_indices(18, 1)]).max() < 0.08
    assert torch.equal(noise, erase(images, draws, (0.9, 0.999), (1, 1), "noise")[:, :, :58, :58])
