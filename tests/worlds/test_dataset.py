"""A batch says the truth about its clips."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.errors import UserError
from cosmos_ref.worlds import KINDS, simulate


@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS))
def test_the_resolution_does_not_change_what_happens(seed, kind):
    small = simulate([seed], frames=9, height=16, width=24, kind=kind)
    large = simulate([seed], frames=9, height=32, width=48, kind=kind)
    torch.testing.assert_close(small.states, large.states, atol=0, rtol=0, equal_nan=True)
    assert small.contacts == large.contacts and small.captions == large.captions
    assert small.scenes[0].box[0] == 24 / 16  # the box fills the picture


def test_a_longer_clip_begins_like_the_shorter_one():
    short = simulate(range(20), frames=5, height=16, width=16)
    long = simulate(range(20), frames=9, height=16, width=16)
    torch.testing.assert_close(long.states[:, :5], short.states, atol=0, rtol=0, equal_nan=True)
    assert torch.equal(long.video[:, :, :5], short.video)


def test_actions_are_the_change_of_velocity_that_the_push_makes():
    """Where nothing else happens in the frame of the push."""
    batch = simulate(range(100), frames=4, height=16, width=16, kind="push")
    judged = 0
    for states, contacts, action in zip(batch.states, batch.contacts, batch.actions, strict=True):
        if [c.kind for c in contacts if c.time <= 2] == ["push"]:
            torch.testing.assert_close((states[2, 0, 3:5] - states[1, 0, 3:5]).float(), action)
            judged += 1
    assert judged > 80
    unpushed = simulate(range(10), frames=2, height=16, width=16, kind="push")  # ends before the push at frame 2
    assert not unpushed.actions.any()


def test_present_places_are_those_of_the_scene():
    batch = simulate(range(30), frames=2, height=16, width=16)
    assert batch.present.sum(1).tolist() == [len(s.marbles) for s in batch.scenes]
    assert torch.equal(batch.states[:, :, :, 0].isnan().any(1), ~batch.present)
    assert not batch.visibility.transpose(1, 2)[~batch.present].any()


@pytest.mark.parametrize(
    "arguments",
    [
        {"seeds": []},
        {"frames": 0},
        {"height": 4, "width": 4},
        {"height": 16, "width": 64},
        {"kind": "water"},
    ],
)
def test_clips_that_cannot_be_simulated_are_refused(arguments):
    with pytest.raises(UserError):
        simulate(**{"seeds": [0], "frames": 2, "height": 16, "width": 16} | arguments)
