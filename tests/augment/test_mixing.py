"""Mixup and CutMix, recomputed photo by photo from the mixed photos themselves."""

import numpy as np
import pytest
import torch

from carvision.augment.mixing import Mix, plan_mixing

NUM, HEIGHT, WIDTH = 64, 20, 30
# Each photo has one value, so that a mixed pixel tells its weights
IMAGES = (torch.arange(NUM, dtype=torch.float32) / NUM)[:, None, None, None].expand(NUM, 3, HEIGHT, WIDTH).contiguous()
VALID = torch.ones(NUM, dtype=torch.bool)
NEXT = [*range(1, NUM), 0]


def own_weights(mixed: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W): the weight that each photo has in its own mixed pixels."""
    return (mixed - IMAGES[NEXT]) / (IMAGES - IMAGES[NEXT])


def test_mixup_lays_the_next_photo_over_each_by_its_share():
    mixed, partner, share = Mix(mixup=0.8)(IMAGES, VALID, (0, 1, 2))
    assert partner.tolist() == NEXT and partner.dtype == torch.int64
    for i, own in enumerate(share.tolist()):
        torch.testing.assert_close(mixed[i], own * IMAGES[i] + (1 - own) * IMAGES[NEXT[i]], atol=1e-6, rtol=0)
    assert ((share >= 0.5) & (share <= 1)).all() and len(share.unique()) == NUM


def test_cutmix_cuts_a_rectangle_and_the_share_is_the_area_that_stays():
    mixed, partner, share = Mix(cutmix=1.0)(IMAGES, VALID, (0, 1, 2))
    weights = own_weights(mixed).round(decimals=3)
    assert partner.tolist() == NEXT
    assert set(weights.unique().tolist()) == {0.0, 1.0}
    for i in range(NUM):
        lost = (weights[i] == 0).all(0)
        assert torch.equal(lost, (weights[i] == 0).any(0))
        rows, columns = lost.any(1), lost.any(0)
        assert int(lost.sum()) == int(rows.sum()) * int(columns.sum())
        assert share[i].item() == pytest.approx(1 - lost.float().mean().item(), abs=1e-6)
        for side in (rows, columns):  # without gaps
            assert not len(side.nonzero()) or int(side.nonzero().max() - side.nonzero().min()) + 1 == int(side.sum())


def test_a_rectangle_has_the_photos_shape_and_the_betas_area_before_the_edges_cut_it():
    num, size = 4000, 1000
    share, outside, top, left, bottom, right = plan_mixing(Mix(cutmix=1.0), num, size, size, (3,)).T
    inner = (top > 0) & (left > 0) & (bottom < size) & (right < size)
    assert (outside == 1).all() and (bottom - top)[inner].tolist() == (right - left)[inner].tolist()
    random = np.random.default_rng((3,))
    kept = random.beta(1.0, 1.0, num)
    side = np.floor(size * np.sqrt(1 - kept))
    assert np.array_equal((bottom - top)[inner], side[inner])
    assert (share >= kept - 0.01).all()  # what is cut off stays
    middle = (top + bottom)[inner & (side < 300)] / 2
    assert middle.mean() == pytest.approx(size / 2, rel=0.1) and middle.min() < 200 and middle.max() > 800


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_are_the_larger_of_the_betas_two(alpha):
    share = plan_mixing(Mix(mixup=alpha), 20_000, 8, 8, (0,))[:, 0]
    assert share.min() >= 0.5
    # The Beta's variance is the mean square of the distance from a half, which mirroring leaves as it is
    assert ((share - 0.5) ** 2).mean() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_with_both_each_photo_takes_one_of_them():
    share, outside, top, _, bottom, _ = plan_mixing(Mix(mixup=0.8, cutmix=1.0), 4000, 100, 100, (0,)).T
    cut = bottom > top
    assert cut.mean() == pytest.approx(0.5, abs=0.05)  # some rectangles have no pixel
    assert (outside[cut] == 1).all() and (outside[~cut] < 1).mean() > 0.9
    assert np.allclose(share[~cut], outside[~cut])


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("alphas", [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}])
def test_p_is_the_chance_of_each_photo(p, alphas):
    plan = plan_mixing(Mix(**alphas, p=p), 5000, 200, 200, (1,))
    assert (plan[:, 0] < 1).mean() == pytest.approx(p, abs=0.03)
    kept = plan[:, 0] == 1
    assert (plan[kept, 1] == 1).all() and (plan[kept, 2:4] == plan[kept, 4:]).any(1).all()


@pytest.mark.parametrize("mix", [Mix(mixup=0.8), Mix(cutmix=1.0), Mix(mixup=0.8, cutmix=1.0)])
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
    for one, other in zip(first, mix(IMAGES, VALID, (0, 1, 2)), strict=True):
        assert torch.equal(one, other)
    shares = [mix(IMAGES, VALID, key)[2] for key in ((0, 1, 2), (1, 1, 2), (0, 2, 2), (0, 1, 3), (0, 1, 2, 1))]
    assert len({tuple(share.tolist()) for share in shares}) == 5


def test_nothing_is_mixed_where_nothing_is_asked():
    assert not Mix().active and not Mix(mixup=1.0, p=0.0).active
    assert Mix(mixup=0.2).active and Mix(cutmix=1.0).active
    mixed, _, share = Mix()(IMAGES, VALID, (0,))
    assert torch.equal(mixed, IMAGES) and (share == 1).all()
    alone, partner, share = Mix(mixup=1.0)(IMAGES[:1], VALID[:1], (0,))
    assert partner.tolist() == [0]
    torch.testing.assert_close(alone, IMAGES[:1])
