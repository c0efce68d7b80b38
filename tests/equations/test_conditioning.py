import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import conditioning, edm
from tests.impostors import impostor
from tests.strategies import normal, seeds, sigma_datas, sigmas

counts = st.integers(0, 5)
masks = st.lists(st.booleans(), min_size=3, max_size=3).map(
    lambda given: torch.tensor(given, dtype=torch.float64).reshape(1, 1, 3, 1, 1)
)


def on_frames(*values):
    """One number a frame, shape `1 1 T 1 1`."""
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, -1, 1, 1)


def per_sample(sigma, x):
    return sigma.reshape(-1, 1, 1, 1, 1).expand_as(x)


# --- frame_mask


@pytest.mark.verifies("conditioning.frame_mask", by="point")
def test_frame_mask_of_none_one_and_three_of_four_frames():
    mask = conditioning.frame_mask(torch.tensor([0, 1, 3]), 4)
    expected = torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]])
    torch.testing.assert_close(mask, expected[:, None, :, None, None], rtol=0, atol=0)


@pytest.mark.verifies("conditioning.frame_mask")
@given(st.lists(counts, min_size=1, max_size=4), st.integers(5, 8))
def test_as_many_frames_are_given_as_were_asked_for(given, frames):
    mask = conditioning.frame_mask(torch.tensor(given), frames)
    assert mask.sum(dim=(1, 2, 3, 4)).tolist() == given


@pytest.mark.verifies("conditioning.frame_mask")
@given(counts, st.integers(1, 8))
def test_a_longer_clip_has_the_same_given_frames(given, frames):
    """The past is given, so frames that come later change nothing: a mask from the end would move."""
    given = torch.tensor([given])
    longer = conditioning.frame_mask(given, frames + 1)
    torch.testing.assert_close(longer[:, :, :-1], conditioning.frame_mask(given, frames), rtol=0, atol=0)


@impostor("conditioning.frame_mask", "the last frames: where the *input* video is cut, not where the clip starts")
def mask_of_the_last_frames(given, frames):
    return conditioning_mask(torch.arange(frames) >= frames - given[:, None])


@impostor("conditioning.frame_mask", "1 for the frames to be generated")
def mask_inverted(given, frames):
    return conditioning_mask(torch.arange(frames) >= given[:, None])


@impostor("conditioning.frame_mask", "index and count confused")
def mask_with_one_frame_more(given, frames):
    return conditioning_mask(torch.arange(frames) <= given[:, None])


@impostor("conditioning.frame_mask", "one count for the whole batch, as NVIDIA's training draws it")
def mask_of_the_first_sample(given, frames):
    return conditioning_mask((torch.arange(frames) < given[0]).expand(len(given), -1))


def conditioning_mask(table):
    return table.float()[:, None, :, None, None]


# --- active_frames


@pytest.mark.verifies("conditioning.active_frames", by="point")
def test_given_frames_are_switched_off_from_their_own_noise_level_down():
    """At inference the given frames carry noise 0.001; the equality is already below."""
    sigma = torch.tensor([0.002, 0.001, 0.0002], dtype=torch.float64)
    mask = on_frames(1, 0).expand(3, -1, -1, -1, -1)
    active = conditioning.active_frames(mask, sigma, torch.full_like(sigma, 0.001))
    assert active.flatten(1).tolist() == [[1, 0], [0, 0], [0, 0]]


@pytest.mark.verifies("conditioning.active_frames")
@given(masks, sigmas, st.floats(1.0001, 100))
def test_the_mask_is_whole_above_the_noise_of_the_given_frames(mask, augment_sigma, ratio):
    active = conditioning.active_frames(mask, ratio * augment_sigma, augment_sigma)
    torch.testing.assert_close(active, mask, rtol=0, atol=0)


@pytest.mark.verifies("conditioning.active_frames")
@given(masks, sigmas, st.one_of(st.just(1.0), st.floats(0.01, 1)))
def test_the_mask_is_empty_from_the_noise_of_the_given_frames_down(mask, augment_sigma, ratio):
    assert not conditioning.active_frames(mask, ratio * augment_sigma, augment_sigma).any()


@pytest.mark.verifies("conditioning.active_frames")
@given(masks, sigmas, sigmas, sigmas)
def test_each_sample_is_switched_by_its_own_levels(mask, a, b, augment_sigma):
    both = conditioning.active_frames(mask.expand(2, -1, -1, -1, -1), torch.cat([a, b]), augment_sigma)
    for i, sigma in enumerate((a, b)):
        alone = conditioning.active_frames(mask, sigma, augment_sigma)
        torch.testing.assert_close(both[i : i + 1], alone, rtol=0, atol=0)


@impostor("conditioning.active_frames", "still active at equality")
def active_at_equality(frame_mask, sigma, augment_sigma):
    return frame_mask * (sigma >= augment_sigma).to(frame_mask)[:, None, None, None, None]


@impostor("conditioning.active_frames", "the comparison turned round")
def active_below(frame_mask, sigma, augment_sigma):
    return frame_mask * (sigma <= augment_sigma).to(frame_mask)[:, None, None, None, None]


@impostor("conditioning.active_frames", "never switched off")
def active_for_ever(frame_mask, sigma, augment_sigma):
    return frame_mask


@impostor("conditioning.active_frames", "the first sample decides for the batch")
def active_by_the_first_sample(frame_mask, sigma, augment_sigma):
    return frame_mask * (sigma[0] > augment_sigma[0]).to(frame_mask)


# --- replace_frames


@pytest.mark.verifies("conditioning.replace_frames", by="point")
def test_replace_the_first_of_two_frames():
    D = conditioning.replace_frames(on_frames(1, 2), on_frames(10, 20), on_frames(1, 0))
    assert D.flatten().tolist() == [10, 2]


@pytest.mark.verifies("conditioning.replace_frames")
@given(masks, seeds)
def test_given_frames_are_kept_to_the_bit_and_the_others_left_alone(mask, seed):
    D, x0 = normal(seed, 2, 1, 4, 3, 2, 2)
    replaced = conditioning.replace_frames(D, x0, mask)
    torch.testing.assert_close(replaced, torch.where(mask.bool(), x0, D), rtol=0, atol=0)


@pytest.mark.verifies("conditioning.replace_frames")
@given(masks, seeds)
def test_only_generated_frames_teach_the_network(mask, seed):
    """The loss is taken on the replaced estimate: no gradient comes from what was given."""
    D, x0 = normal(seed, 2, 1, 4, 3, 2, 2)
    D.requires_grad_()
    replaced = conditioning.replace_frames(D, x0, mask)
    (gradient,) = torch.autograd.grad(replaced.sum(), D)
    torch.testing.assert_close(gradient, (1 - mask).expand_as(D), rtol=0, atol=0)


@impostor("conditioning.replace_frames", "the mask read as 1 = generate")
def replace_with_the_mask_inverted(D, x0, frame_mask):
    return (1 - frame_mask) * x0 + frame_mask * D


@impostor("conditioning.replace_frames", "the given frames added to the estimate")
def replace_by_adding(D, x0, frame_mask):
    return D + frame_mask * x0


@impostor("conditioning.replace_frames", "estimate and given frames averaged")
def replace_by_halves(D, x0, frame_mask):
    return D + frame_mask * (x0 - D) / 2


# --- augment_frames


@pytest.mark.verifies("conditioning.augment_frames", by="point")
def test_augment_a_given_and_a_generated_frame_of_ones():
    """sigma_data 0.5: c_in(0.1) = 1.961161 for the given frame, c_in(1) = 0.894427 for the other."""
    one = torch.ones(1, dtype=torch.float64)
    ones = on_frames(1, 1)
    value = conditioning.augment_frames(ones, ones, on_frames(1, 0), one, 0.1 * one, 0.5)
    torch.testing.assert_close(value, on_frames(1.961161, 0.894427), rtol=0, atol=6e-7)  # six decimals


@pytest.mark.verifies("conditioning.augment_frames")
@given(masks, sigmas, sigmas, sigma_datas, seeds)
def test_both_parts_reach_the_network_with_unit_variance(mask, sigma, augment_sigma, sigma_data, seed):
    """Orthogonal vectors of unit mean square stand for independent data, noise, and noise of the given frames."""
    x0, n, n_given = (torch.linalg.qr(normal(seed, 8, 3)).Q.T * 8**0.5).reshape(3, 1, 8, 1, 1, 1)
    x = (sigma_data * x0 + sigma * n).expand(-1, -1, 3, -1, -1)
    given = (sigma_data * x0 + augment_sigma * n_given).expand(-1, -1, 3, -1, -1)
    value = conditioning.augment_frames(x, given, mask, sigma, augment_sigma, sigma_data)
    torch.testing.assert_close((value**2).mean(dim=1, keepdim=True), torch.ones_like(mask), rtol=0, atol=1e-11)


@pytest.mark.verifies("conditioning.augment_frames")
@given(masks, sigmas, sigmas, sigma_datas, seeds)
def test_augment_frames_is_nvidias_form(mask, sigma, augment_sigma, sigma_data, seed):
    """There the given frames are divided by c_in(sigma) first, because all frames are multiplied by it later."""
    x, z, n = normal(seed, 3, 1, 4, 3, 2, 2)
    given = z + augment_sigma * n
    c_in, c_in_given = edm.c_in(sigma, sigma_data), edm.c_in(augment_sigma, sigma_data)
    nvidia = c_in * (mask * given * c_in_given / c_in + (1 - mask) * x)
    ours = conditioning.augment_frames(x, given, mask, sigma, augment_sigma, sigma_data)
    torch.testing.assert_close(ours, nvidia, rtol=1e-12, atol=0)


@pytest.mark.verifies("conditioning.augment_frames")
@given(masks, sigmas, sigmas, sigmas, sigma_datas, seeds)
def test_given_frames_look_the_same_at_every_noise_level(mask, a, b, augment_sigma, sigma_data, seed):
    x, given = normal(seed, 2, 1, 4, 3, 2, 2)
    x, given = x.expand(2, -1, -1, -1, -1), given.expand(2, -1, -1, -1, -1)
    at_a, at_b = conditioning.augment_frames(x, given, mask, torch.cat([a, b]), augment_sigma.expand(2), sigma_data)
    torch.testing.assert_close(at_a * mask[0], at_b * mask[0], rtol=0, atol=0)


@impostor("conditioning.augment_frames", "given frames scaled like the noisy ones: they all but vanish at sigma 80")
def augment_with_one_scale(x, given, frame_mask, sigma, augment_sigma, sigma_data):
    c_in = per_sample(edm.c_in(sigma, sigma_data), x)
    return c_in * (frame_mask * given + (1 - frame_mask) * x)


@impostor("conditioning.augment_frames", "given frames not scaled at all")
def augment_without_scale(x, given, frame_mask, sigma, augment_sigma, sigma_data):
    return frame_mask * given + (1 - frame_mask) * per_sample(edm.c_in(sigma, sigma_data), x) * x


@impostor("conditioning.augment_frames", "NVIDIA's division, but the later multiplication left out")
def augment_with_the_division_left_in(x, given, frame_mask, sigma, augment_sigma, sigma_data):
    c_in = per_sample(edm.c_in(sigma, sigma_data), x)
    given = given * per_sample(edm.c_in(augment_sigma, sigma_data), x) / c_in
    return frame_mask * given + (1 - frame_mask) * c_in * x


@impostor("conditioning.augment_frames", "the mask read as 1 = generate")
def augment_with_the_mask_inverted(x, given, frame_mask, sigma, augment_sigma, sigma_data):
    given = per_sample(edm.c_in(augment_sigma, sigma_data), x) * given
    return (1 - frame_mask) * given + frame_mask * per_sample(edm.c_in(sigma, sigma_data), x) * x
