import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import conditioning, edm, solvers
from cosmos_ref.errors import UserError
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


# --- last_frames


@pytest.mark.verifies("conditioning.last_frames", by="point")
def test_two_of_four_frames_are_the_third_and_the_fourth():
    assert conditioning.last_frames(on_frames(1, 2, 3, 4), 2).flatten().tolist() == [3, 4]


@pytest.mark.verifies("conditioning.last_frames")
@given(st.integers(0, 5), st.integers(0, 5), seeds)
def test_earlier_frames_put_in_front_do_not_matter(count, earlier, seed):
    given, before = normal(seed, 2, 3, count, 2, 2), normal(seed + 1, 2, 3, earlier, 2, 2)
    taken = conditioning.last_frames(torch.cat([before, given], dim=2), count)
    torch.testing.assert_close(taken, given, rtol=0, atol=0)


@pytest.mark.verifies("conditioning.last_frames")
@given(st.integers(0, 5), seeds)
def test_a_clip_goes_on_in_order(count, seed):
    """One frame more is one frame earlier, in front of the same ones."""
    video = normal(seed, 1, 3, 6, 2, 2)
    fewer, more = conditioning.last_frames(video, count), conditioning.last_frames(video, count + 1)
    torch.testing.assert_close(more[:, :, 1:], fewer, rtol=0, atol=0)


@pytest.mark.verifies("conditioning.last_frames")
@given(st.one_of(st.integers(-3, -1), st.integers(4, 8)))
def test_more_frames_than_there_are_are_refused(count):
    try:
        conditioning.last_frames(on_frames(1, 2, 3), count)
    except UserError as error:
        assert f"{count} frames are to be taken of a video of 3: take at most 3" in str(error)
    else:
        raise AssertionError(f"{count} frames of 3 were taken")


@impostor("conditioning.last_frames", "the first frames, as diffusers did before its pull request 13018")
def first_frames(video, count):
    return video[:, :, :count]


@impostor("conditioning.last_frames", "counted back from the end: with none to take it takes all")
def last_frames_counted_back(video, count):
    return video[:, :, -count:]


@impostor("conditioning.last_frames", "in the order in which they are met from the end")
def last_frames_backwards(video, count):
    return video.flip(2)[:, :, :count]


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


@pytest.mark.verifies("conditioning.frame_mask")
@given(st.integers(0, 3), st.integers(1, 8))
def test_a_batch_of_any_size_has_a_mask(batch, frames):
    """Also none: an empty batch has an empty mask."""
    mask = conditioning.frame_mask(torch.full((batch,), 1), frames)
    assert mask.shape == (batch, 1, frames, 1, 1) and mask.sum() == batch


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
    return conditioning_mask((torch.arange(frames) < given[:1, None]).expand(len(given), -1))


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


@pytest.mark.verifies("conditioning.replace_frames", "solvers.euler_step")
@given(masks, seeds)
def test_given_frames_are_reached_along_a_straight_line(mask, seed):
    """The estimate is replaced, not the sample: over all steps the noise there falls in proportion, down to none."""
    x0, n, F = normal(seed, 3, 1, 4, 3, 2, 2)
    x, levels = x0 + 80.0 * n, [80.0, 9.0, 0.5, 0.002]
    for sigma, sigma_next in zip(levels, [*levels[1:], 0.0], strict=True):
        D = conditioning.replace_frames(torch.sin(F * x), x0, mask)
        x = solvers.euler_step(x, D, sigma, sigma_next)
        torch.testing.assert_close(mask * x, mask * (x0 + sigma_next * n), rtol=0, atol=1e-12)


@impostor("conditioning.replace_frames", "the estimate left as it is, on the thought that the sample was replaced")
def replace_nothing(D, x0, frame_mask):
    return D


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


@pytest.mark.verifies("conditioning.augment_frames")
@given(masks, st.sampled_from([1e-6, 1e6]), seeds)
def test_the_network_sees_numbers_of_size_one_at_any_noise(mask, sigma, seed):
    """Six decades beyond where it is used, in float32: neither part vanishes and none runs away."""
    x0, n, n_given = normal(seed, 3, 1, 400, 3, 1, 1).float()
    one = torch.ones(1)
    x, given = 0.5 * x0 + sigma * n, 0.5 * x0 + n_given / sigma
    value = conditioning.augment_frames(x, given, mask.float(), sigma * one, one / sigma, 0.5)
    # the mean square of 400 normal numbers is off by 7 % on average
    torch.testing.assert_close((value**2).mean(dim=1, keepdim=True), torch.ones_like(mask).float(), rtol=0, atol=0.5)


@pytest.mark.verifies("conditioning.augment_frames")
@given(masks, st.lists(sigmas, min_size=4, max_size=4, unique_by=lambda sigma: sigma.item()), seeds)
def test_each_sample_is_scaled_by_its_own_levels(mask, levels, seed):
    """As many samples as columns: levels that met the last axis instead of the first would go unnoticed."""
    x, given = normal(seed, 2, 2, 4, 3, 2, 2)
    sigma, augment_sigma = torch.cat(levels[:2]), torch.cat(levels[2:])
    both = conditioning.augment_frames(x, given, mask, sigma, augment_sigma, 0.5)
    for i in range(2):
        one = slice(i, i + 1)
        alone = conditioning.augment_frames(x[one], given[one], mask, sigma[one], augment_sigma[one], 0.5)
        torch.testing.assert_close(both[one], alone, rtol=1e-13, atol=0)


@impostor("conditioning.augment_frames", "a number for each sample, multiplied along the width")
def augment_along_the_width(x, given, frame_mask, sigma, augment_sigma, sigma_data):
    given = edm.c_in(augment_sigma, sigma_data) * given
    return frame_mask * given + (1 - frame_mask) * edm.c_in(sigma, sigma_data) * x


@impostor("conditioning.augment_frames", "the two levels changed round")
def augment_with_levels_changed(x, given, frame_mask, sigma, augment_sigma, sigma_data):
    given = per_sample(edm.c_in(sigma, sigma_data), x) * given
    return frame_mask * given + (1 - frame_mask) * per_sample(edm.c_in(augment_sigma, sigma_data), x) * x


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


# --- pluecker_rays


def camera(seed):
    """Intrinsics of an image of 4 x 6 pixels, and a camera somewhere, turned somehow."""
    a, b, c, d = normal(seed, 4).tolist()
    K = torch.tensor([[[5 + 0.5 * a, 0.1 * b, 3 + c], [0, 4 + 0.5 * d, 2 + a], [0, 0, 1]]], dtype=torch.float64)
    return K, torch.cat([rotation(seed + 1), normal(seed + 2, 1, 3, 1)], dim=2)


def rotation(seed):
    Q = torch.linalg.qr(normal(seed, 3, 3)).Q
    return (Q * torch.linalg.det(Q))[None]


def rays(K, pose):
    return conditioning.pluecker_rays(K, pose, 4, 6).split(3, dim=1)


def cross(a, b):
    return torch.linalg.cross(a.expand_as(b), b, dim=1)


def column(vector):
    return vector.reshape(1, 3, 1, 1)


@pytest.mark.verifies("conditioning.pluecker_rays", by="point")
def test_the_ray_of_one_pixel_of_two_by_hand():
    """Focal length 1/2, the left pixel of two: (-1/2, 0, 1/2) / sqrt(1/2); the camera stands one unit up."""
    K = torch.tensor([[[0.5, 0, 1], [0, 0.5, 0.5], [0, 0, 1]]], dtype=torch.float64)
    pose = torch.eye(3, 4, dtype=torch.float64)[None].clone()
    pose[0, 1, 3] = -1
    left = conditioning.pluecker_rays(K, pose, 1, 2)[0, :, 0, 0]
    s = 0.5**0.5
    torch.testing.assert_close(left, left.new_tensor([-s, 0, -s, -s, 0, s]), rtol=0, atol=1e-15)


@pytest.mark.verifies("conditioning.pluecker_rays")
@given(seeds)
def test_the_moment_is_at_right_angles_to_the_direction_and_that_has_length_one(seed):
    moment, d = rays(*camera(seed))
    torch.testing.assert_close((moment * d).sum(1), 0 * d[:, 0], rtol=0, atol=1e-14)
    torch.testing.assert_close((d**2).sum(1), torch.ones_like(d[:, 0]), rtol=0, atol=1e-14)


@pytest.mark.verifies("conditioning.pluecker_rays")
@given(seeds, st.floats(0.1, 100))
def test_every_point_of_a_ray_is_seen_in_its_pixel(seed, depth):
    """Projected with the same camera, it falls on the centre of the pixel: column + 1/2, row + 1/2."""
    K, pose = camera(seed)
    d = rays(K, pose)[1]
    in_camera = torch.einsum("bji,bjhw->bihw", pose[:, :, :3], depth * d)  # from the centre, so turned back alone
    p = torch.einsum("bij,bjhw->bihw", K, in_camera)
    rows, columns = torch.meshgrid(torch.arange(4) + 0.5, torch.arange(6) + 0.5, indexing="ij")
    assert (p[:, 2] > 0).all()  # in front of the camera
    torch.testing.assert_close(p[0, :2] / p[0, 2], torch.stack([columns, rows]).double(), rtol=0, atol=1e-11)


@pytest.mark.verifies("conditioning.pluecker_rays")
@given(seeds, st.floats(-100, 100), st.integers(0, 3), st.integers(0, 5))
def test_a_ray_does_not_depend_on_where_along_it_the_camera_stands(seed, distance, row, column_):
    K, pose = camera(seed)
    six = conditioning.pluecker_rays(K, pose, 4, 6)[:, :, row, column_]
    moved = pose.clone()
    moved[:, :, 3] += distance * six[:, 3:]
    there = conditioning.pluecker_rays(K, moved, 4, 6)[:, :, row, column_]
    torch.testing.assert_close(there, six, rtol=0, atol=1e-12)


@pytest.mark.verifies("conditioning.pluecker_rays")
@given(seeds)
def test_every_point_of_a_ray_has_the_same_moment(seed):
    """Points are where the camera is, and any depth from there."""
    K, pose = camera(seed)
    moment, d = rays(K, pose)
    depth = normal(seed + 5, 1, 1, 4, 6)
    torch.testing.assert_close(cross(column(pose[0, :, 3]) + depth * d, d), moment, rtol=0, atol=1e-13)


@pytest.mark.verifies("conditioning.pluecker_rays")
@given(seeds)
def test_rays_move_with_the_world(seed):
    """Turned by R and pushed by t: d goes to R d, and the moment m to R m + t x R d."""
    K, pose = camera(seed)
    R, t = rotation(seed + 6), normal(seed + 7, 1, 3, 1)
    moment, d = rays(K, pose)
    moved_moment, moved_d = rays(K, R @ pose + torch.cat([torch.zeros(1, 3, 3), t], dim=2))
    d, moment = torch.einsum("bij,bjhw->bihw", R, d), torch.einsum("bij,bjhw->bihw", R, moment)
    torch.testing.assert_close(moved_d, d, rtol=0, atol=1e-13)
    torch.testing.assert_close(moved_moment, moment + cross(column(t), d), rtol=0, atol=1e-13)


@pytest.mark.verifies("conditioning.pluecker_rays")
@given(seeds)
def test_half_the_pixels_with_half_the_focal_length_see_between(seed):
    """Resizing: K's first two rows are halved, and the middle of four pixels is the middle of one."""
    K, pose = camera(seed)
    fine = conditioning.pluecker_rays(K, pose, 4, 6)
    coarse = conditioning.pluecker_rays(K * K.new_tensor([[0.5], [0.5], [1.0]]), pose, 2, 3)
    corners = sum(through_one(fine[:, :, i::2, j::2], pose) for i in (0, 1) for j in (0, 1))
    torch.testing.assert_close(through_one(coarse, pose), corners / 4, rtol=0, atol=1e-12)


def through_one(six, pose):
    """Directions of rays, as points of the plane at depth 1, in which pixels are evenly spaced."""
    in_camera = torch.einsum("bji,bjhw->bihw", pose[:, :, :3], six[:, 3:])
    return in_camera / in_camera[:, 2:]


def pluecker_with(intrinsics, pose, height, width, half=0.5, normalize=True):
    """Moment and direction with one part exchanged."""
    y, x = torch.meshgrid(torch.arange(height) + half, torch.arange(width) + half, indexing="ij")
    p = torch.stack([x, y, torch.ones_like(x)]).to(pose)
    d = torch.einsum("bij,jhw->bihw", pose[:, :, :3] @ torch.linalg.inv(intrinsics), p)
    d = d / d.norm(dim=1, keepdim=True) if normalize else d
    return cross(pose[:, :, 3, None, None], d), d


@impostor("conditioning.pluecker_rays", "d x c: the moment of the ray that looks back")
def pluecker_of_the_way_back(intrinsics, camera_to_world, height, width):
    moment, d = pluecker_with(intrinsics, camera_to_world, height, width)
    return torch.cat([-moment, d], dim=1)


@impostor("conditioning.pluecker_rays", "the direction first, as other papers have it")
def pluecker_direction_first(intrinsics, camera_to_world, height, width):
    moment, d = pluecker_with(intrinsics, camera_to_world, height, width)
    return torch.cat([d, moment], dim=1)


@impostor("conditioning.pluecker_rays", "the pixel's corner instead of its centre")
def pluecker_of_the_corner(intrinsics, camera_to_world, height, width):
    return torch.cat(pluecker_with(intrinsics, camera_to_world, height, width, half=0), dim=1)


@impostor("conditioning.pluecker_rays", "a direction of any length")
def pluecker_of_any_length(intrinsics, camera_to_world, height, width):
    return torch.cat(pluecker_with(intrinsics, camera_to_world, height, width, normalize=False), dim=1)


@impostor("conditioning.pluecker_rays", "extrinsics (world to camera) taken for the pose")
def pluecker_of_the_extrinsics(intrinsics, camera_to_world, height, width):
    R = camera_to_world[:, :, :3].mT
    pose = torch.cat([R, -R @ camera_to_world[:, :, 3:]], dim=2)
    return torch.cat(pluecker_with(intrinsics, pose, height, width), dim=1)


@impostor("conditioning.pluecker_rays", "the camera's centre in place of the moment")
def pluecker_with_the_centre(intrinsics, camera_to_world, height, width):
    d = pluecker_with(intrinsics, camera_to_world, height, width)[1]
    return torch.cat([camera_to_world[:, :, 3, None, None].expand_as(d), d], dim=1)
