"""The plan of an update: no sample is left out or seen twice, whatever the processes."""

from dataclasses import replace
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.config import PRESETS
from cosmos_ref.errors import UserError
from cosmos_ref.training.schedule import check_shares, domain_of, image_steps, images_per_video, plan_step, share_out

MICRO = PRESETS["micro"]  # clips of 5 frames: 3 latent frames


def planned(batch_size, micro_batch=0, share=0.0):
    train = replace(MICRO.train, batch_size=batch_size, micro_batch=micro_batch)
    return replace(MICRO, train=train, data=replace(MICRO.data, image_share=share))


shares = st.integers(0, 1000).map(lambda n: n / 1000)
divided = st.tuples(st.integers(1, 6), st.integers(1, 4)).map(lambda pair: (pair[0] * pair[1], pair[1]))


@given(shares, st.integers(0, 2000))
def test_of_the_first_n_updates_as_many_are_of_images_as_their_share_says(share, n):
    seen = sum(domain_of(step, share) == "image" for step in range(n))
    assert seen == image_steps(n, share) == floor(n * round(1000 * share) / 1000 + 1e-9)


@pytest.mark.parametrize(("share", "n"), [(0.29, 100), (0.1, 30), (0.7, 10)])
def test_the_share_is_meant_as_it_is_written(share, n):
    """0.29 * 100 is 28.999999999999996 in floating point."""
    assert image_steps(n, share) == round(share * n)


@given(shares, st.integers(1, 100), st.integers(0, 500))
def test_images_come_as_regularly_as_they_can(share, n, start):
    """In any row of n updates there are n r of them, rounded up or down."""
    seen = sum(domain_of(step, share) == "image" for step in range(start, start + n))
    assert abs(seen - n * share) < 1 + 1e-9


@given(divided, shares)
def test_an_update_of_images_has_as_many_tokens_as_one_of_videos(sizes, share):
    config = planned(*sizes, share)
    latent_frames = {"video": 3, "image": 1}
    for step in range(20):
        plan = plan_step(config, step)
        frames = [len(part.samples) * latent_frames[part.domain] for part in plan]
        assert sum(frames) == 3 * sizes[0]
        assert set(frames) == {3 * sizes[1]}  # also micro-batch by micro-batch: they take the same memory


@given(divided, shares)
def test_samples_and_micro_batches_of_each_domain_are_numbered_without_gap_or_overlap(sizes, share):
    config = planned(*sizes, share)
    samples, numbers = {"video": [], "image": []}, {"video": [], "image": []}
    for step in range(30):
        for part in plan_step(config, step):
            assert part.domain == domain_of(step, share)
            samples[part.domain] += part.samples
            numbers[part.domain].append(part.number)
    for domain in samples:
        assert samples[domain] == list(range(len(samples[domain])))
        assert numbers[domain] == list(range(len(numbers[domain])))


@given(divided, st.integers(1, 12), st.integers(1, 4), st.sampled_from([0.0, 1.0]), st.integers(0, 5))
def test_the_processes_together_see_the_update_and_each_sees_as_much_as_any_other(sizes, processes, split, share, step):
    whole = plan_step(planned(*sizes, share), step)
    number_of = {sample: part.number for part in whole for sample in part.samples}
    try:
        parts = [share_out(whole, rank, processes, split) for rank in range(processes)]
    except UserError:
        assert sum(len(part.samples) for part in whole) % processes or len(whole) % processes
        return
    seen = [sample for own in parts for part in own for sample in part.samples]
    assert sorted(seen) == list(number_of)
    assert len({(len(own), *(len(part.samples) for part in own)) for own in parts}) == 1
    assert all(number_of[sample] == part.number for own in parts for part in own for sample in part.samples)


@given(divided, st.integers(1, 4), st.integers(1, 4))
def test_images_at_once_are_no_more_tokens_than_what_a_process_has_of_a_video(sizes, groups, split):
    """Unless a single image is more: it is not cut."""
    whole = plan_step(planned(*sizes, share=1.0), 0)
    try:
        parts = share_out(whole, 0, groups * split, split)
    except UserError:
        return
    videos = sizes[1]  # at once; an image has a third of a video's tokens
    assert all(len(part.samples) * split <= 3 * videos or len(part.samples) == 1 for part in parts)


def test_micro_batches_go_round_the_processes():
    whole = plan_step(planned(8, 2), 0)
    assert [[part.number for part in share_out(whole, rank, 2)] for rank in (0, 1)] == [[0, 2], [1, 3]]


def test_a_micro_batch_is_cut_where_there_are_more_processes():
    (whole,) = plan_step(planned(4), 1)
    assert [share_out([whole], rank, 2)[0].samples for rank in (0, 1)] == [range(4, 6), range(6, 8)]


@pytest.mark.parametrize(
    ("batch_size", "micro_batch", "sizes", "good"),
    [
        (4, 0, {"video": 3}, "3, 6 or 9"),  # 4 is as far from 3 as from nothing nearer
        (6, 2, {"video": 4}, "4, 8 or 12"),
        (4, 1, {"video": 4, "image": 8}, "8, 16 or 24"),  # three images each cannot be cut in two
    ],
)
def test_an_update_that_cannot_be_shared_out_is_refused_and_others_are_named(batch_size, micro_batch, sizes, good):
    config = planned(batch_size, micro_batch, share=0.5)
    with pytest.raises(UserError, match=f"train.batch_size {batch_size} .*give --train.batch-size {good}"):
        check_shares(config, sizes)
    named = [int(word) for word in good.replace(" or", ",").split(", ")]
    for size in named:
        check_shares(planned(size, micro_batch, share=0.5), sizes)


def test_an_image_is_a_latent_frame_of_a_video():
    assert images_per_video(MICRO) == 3
    assert images_per_video(PRESETS["7b"]) == 16
