"""Emotion states: what they keep of an activity, and that one tracker serves for oneself and for others."""

import pytest
import torch

from ctm.diffusion.emotion import EmotionConfig, EmotionStateTracker

WIDTH, EMOTIONS = 12, 3


@pytest.fixture
def tracker() -> EmotionStateTracker:
    torch.manual_seed(0)
    return EmotionStateTracker(EmotionConfig(width=WIDTH, emotions=EMOTIONS, hidden=8)).eval()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"width": 0}, "emotion.width must be a whole number of at least 1, got 0", id="no neurons"),
        pytest.param({"width": 4, "emotions": 2.5}, "emotion.emotions must be a whole number", id="half an emotion"),
        pytest.param({"width": 4, "hidden": True}, "emotion.hidden must be a whole number", id="a truth"),
    ],
)
def test_impossible_sizes_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        EmotionConfig(**options)


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e6])
def test_no_activity_drives_a_state_out_of_its_range(tracker, scale):
    activity = scale * torch.randn(5, 20, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        states = tracker.follow(activity)
    assert states.abs().max() <= 1
    assert torch.isfinite(states).all()


def test_the_strength_of_an_activity_is_not_lost(tracker):
    activity = torch.randn(4, 6, WIDTH, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        weak, strong = tracker.follow(activity)[:, -1], tracker.follow(2 * activity)[:, -1]
    assert (weak - strong).abs().amax(dim=1).min() > 1e-2


def test_a_state_holds_what_went_before(tracker):
    activity = torch.randn(1, 5, WIDTH, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        whole, last = tracker.follow(activity)[:, -1], tracker.follow(activity[:, -1:])[:, -1]
    assert (whole - last).abs().max() > 1e-2


def test_following_is_one_tick_after_another_and_the_same_for_oneself_and_others(tracker):
    activity = torch.randn(3, 4, WIDTH, generator=torch.Generator().manual_seed(4))
    own = other = tracker.start(3)
    with torch.no_grad():
        followed = tracker.follow(activity)
        for tick, post in enumerate(activity.unbind(1)):
            own, other = tracker(post, own), tracker(post, other)
            torch.testing.assert_close(own, followed[:, tick], atol=1e-6, rtol=0)
            assert torch.equal(own, other)


def test_a_rows_state_does_not_depend_on_its_company(tracker):
    activity = torch.randn(7, 4, WIDTH, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        together = tracker.follow(activity)
        alone = torch.cat([tracker.follow(row[None]) for row in activity])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
