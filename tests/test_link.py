"""Laws of one link's memory: how two memories are settled, and what a proposal may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossipfl.errors import Refused
from gossipfl.protocol.link import DAY_S, FARTHEST, Answered, Link, Pending, begin_anew, digest, judge, settle, stands
from gossipfl.protocol.messages import LinkView

digests = st.sampled_from([b"", b"a" * 32, b"b" * 32])
views = st.builds(LinkView, st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), digests, digests)


@given(views, views)
def test_both_sides_settle_alike(a: LinkView, b: LinkView) -> None:
    assert settle(a, b) == settle(b, a)


@given(views)
def test_a_memory_fits_itself(view: LinkView) -> None:
    assert settle(view, view) is None


@given(views, views)
def test_settling_never_goes_back_to_an_epoch_in_which_something_was_done(a: LinkView, b: LinkView) -> None:
    epoch = settle(a, b)
    if epoch is not None:
        assert epoch >= max(a.epoch, b.epoch)
        assert all(view.done == 0 for view in (a, b) if view.epoch == epoch)


@given(views, views)
def test_after_both_begin_anew_they_fit(a: LinkView, b: LinkView) -> None:
    epoch = settle(a, b)
    if epoch is not None:
        fresh = [view if view.epoch == epoch else LinkView(epoch, 0, 0, b"", b"") for view in (a, b)]
        again = settle(*fresh)
        assert again is None or fresh[0].last != fresh[1].last


def test_a_proposal_that_was_answered_but_not_heard_is_settled_without_loss() -> None:
    mine = LinkView(0, 4, 5, b"p" * 32, b"o" * 32)
    theirs = LinkView(0, 5, 0, b"", b"p" * 32)
    assert settle(mine, theirs) is None


def test_an_older_copy_of_a_state_folder_begins_a_new_epoch() -> None:
    assert settle(LinkView(2, 3, 0, b"", b"c" * 32), LinkView(2, 9, 0, b"", b"d" * 32)) == 3


def test_a_lost_state_folder_begins_a_new_epoch() -> None:
    assert settle(LinkView(0, 0, 0, b"", b""), LinkView(0, 9, 0, b"", b"d" * 32)) == 1


def test_who_crashed_before_beginning_anew_follows_who_did_not() -> None:
    assert settle(LinkView(3, 0, 1, b"x" * 32, b""), LinkView(2, 9, 0, b"", b"d" * 32)) == 3


def answered(k: int, proposal: bytes) -> Answered:
    return Answered(k, "model", proposal, b"", b"", b"", b"", b"", 0, 1.0, 0.5, 1.0, 1.0, b"")


def test_the_same_proposal_is_answered_again_and_never_applied_twice() -> None:
    proposal = digest(b"the manifest")
    link = Link("b", done=5, high=5, last=proposal, answered=answered(5, proposal))
    assert judge(link, 0, 5, 4, proposal) == "again"
    with pytest.raises(Refused) as refusal:
        judge(link, 0, 5, 4, digest(b"another manifest"))
    assert refusal.value.reason == "replay"


@pytest.mark.parametrize(
    ("epoch", "k", "prev", "reason"), [(1, 6, 5, "gap"), (0, 4, 3, "replay"), (0, 7, 6, "gap"), (0, 6, 4, "gap")]
)
def test_a_proposal_out_of_place_is_refused(epoch: int, k: int, prev: int, reason: str) -> None:
    with pytest.raises(Refused) as refusal:
        judge(Link("b", done=5, high=5), epoch, k, prev, b"p" * 32)
    assert refusal.value.reason == reason


@given(st.integers(6, 5 + FARTHEST))
def test_a_counter_may_be_skipped_but_not_used_again(k: int) -> None:
    assert judge(Link("b", done=5, high=5), 0, k, 5, b"p" * 32) == "next"


def test_a_counter_absurdly_far_ahead_is_refused() -> None:
    with pytest.raises(Refused) as refusal:
        judge(Link("b", done=5, high=5), 0, 6 + FARTHEST, 5, b"p" * 32)
    assert refusal.value.reason == "gap"


def test_beginning_anew_forgets_flow_and_doubt_and_counts() -> None:
    pending = Pending(6, 5, "model", b"m", b"s", b"r" * 32, 8)
    link = Link("b", done=5, high=6, flow=b"f" * 32, pending=pending, exchanges=5, sent=10)
    fresh = begin_anew(link, 1, 1000, 3)
    assert (fresh.epoch, fresh.done, fresh.flow, fresh.pending, fresh.exchanges) == (1, 0, b"", None, 5)
    assert fresh.names() == frozenset()


def test_beginning_anew_is_a_paid_event() -> None:
    link = Link("b")
    for epoch in range(1, 4):
        link = begin_anew(link, epoch, 1000 + epoch, 3)
    with pytest.raises(Refused) as refusal:
        begin_anew(link, 4, 1010, 3)
    assert refusal.value.reason == "quota"
    assert begin_anew(link, 4, 1010 + DAY_S, 3).epoch == 4


@given(st.text(min_size=1), st.text(min_size=1))
def test_exactly_one_of_two_crossing_proposals_stands(a: str, b: str) -> None:
    if a != b:
        assert stands(a, b) != stands(b, a)
