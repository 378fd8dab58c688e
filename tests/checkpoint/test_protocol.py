"""The commit protocol as a table, against a naive model, and what recovery decides from records."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.checkpoint.manifest import Commit, Final, Term
from engine.checkpoint.protocol import (
    AFTER_FAILURE,
    TRANSITIONS,
    CommitProtocol,
    Event,
    Outcome,
    Recovery,
    Rest,
    Step,
    compare,
    decide_recovery,
)

NEW = Recovery(None, False, 1)
ORDER = [
    (Rest.FILLING, Event.BARRIER),
    (Step.SNAPSHOT, Event.SNAPSHOTTED),
    (Step.PREPARE, Event.PREPARED),
    (Step.COMMIT, Event.COMMITTED),
    (Step.PUBLISH, Event.PUBLISHED),
    (Step.ACK, Event.ACKED),
    (Step.FINAL, Event.FINALIZED),
    (Rest.DONE, None),
]
LEGAL = {
    **{(here, event): there for (here, event), (there, _) in itertools.pairwise(ORDER)},
    **{(here, Event.FAILED): Rest.FAILED for here, _ in ORDER[:-1]},
    (Step.PUBLISH, Event.PUBLISH_FAILED): Step.PUBLISH,
}
POSITIONS = [*Rest, *Step]


def commit(epoch: int, term: str) -> Commit:
    return Commit(epoch, "i", term, {}, {}, {}, [], {})


def brought_to(position: Step | Rest) -> CommitProtocol:
    protocol = CommitProtocol(NEW)
    for here, event in ORDER:
        if here is position or (position is Rest.FAILED and here is Step.SNAPSHOT):
            break
        assert event is not None
        protocol.advance(event, 1)
    if position is Rest.FAILED:
        protocol.advance(Event.FAILED, 1)
    return protocol


@pytest.mark.parametrize(("position", "event"), list(itertools.product(POSITIONS, Event)))
def test_every_position_and_every_event(position, event):
    protocol = brought_to(position)
    assert protocol.position(1) is position
    expected = LEGAL.get((position, event))
    assert protocol.may(event, 1) is (expected is not None)
    if expected is None:
        with pytest.raises(RuntimeError, match=f"{event.value} of epoch 1 is illegal"):
            protocol.advance(event, 1)
        assert protocol.position(1) is position
    else:
        assert protocol.advance(event, 1) is expected
        assert protocol.position(1) is expected


def test_the_tables_are_complete():
    assert set(TRANSITIONS) == set(POSITIONS)
    assert {here for here, moves in TRANSITIONS.items() if Event.FAILED in moves} == set(AFTER_FAILURE)
    assert [AFTER_FAILURE[step] for step in Step] == [
        Outcome.DISCARDED,
        Outcome.DISCARDED,
        Outcome.UNKNOWN,
        Outcome.COMMITTED,
        Outcome.COMMITTED,
        Outcome.COMMITTED,
    ]


@pytest.mark.parametrize("first", POSITIONS)
def test_the_next_barrier_waits_for_the_commit_before_it(first):
    protocol = brought_to(first)
    if first is Rest.FILLING:
        assert protocol.position(2) is None
        return
    allowed = first in (Step.PUBLISH, Step.ACK, Step.FINAL, Rest.DONE)
    assert protocol.may(Event.BARRIER, 2) is allowed


@pytest.mark.parametrize("first", [Step.PUBLISH, Step.ACK, Step.FINAL, Rest.DONE])
def test_the_next_commit_waits_for_final(first):
    protocol = brought_to(first)
    protocol.advance(Event.BARRIER, 2)
    protocol.advance(Event.SNAPSHOTTED, 2)
    assert protocol.may(Event.PREPARED, 2) is (first is Rest.DONE)


def test_after_a_failure_nothing_new_begins_but_a_step_under_way_ends():
    protocol = brought_to(Step.PUBLISH)
    protocol.advance(Event.BARRIER, 2)
    protocol.advance(Event.FAILED, 2)
    assert not protocol.may(Event.BARRIER, 3)
    assert protocol.advance(Event.PUBLISHED, 1) is Step.ACK


def test_after_recovery_the_open_commit_is_finished_first():
    last = commit(4, "a")
    protocol = CommitProtocol(Recovery(last, True, 7))
    assert (protocol.filling, protocol.open_commit, protocol.done) == (7, 4, 0)
    protocol.advance(Event.BARRIER, 7)
    protocol.advance(Event.SNAPSHOTTED, 7)
    assert not protocol.may(Event.PREPARED, 7)
    for event in (Event.PUBLISH_FAILED, Event.PUBLISHED, Event.ACKED, Event.FINALIZED):
        protocol.advance(event, 4)
    assert (protocol.open_commit, protocol.done) == (None, 4)
    assert protocol.advance(Event.PREPARED, 7) is Step.COMMIT
    assert CommitProtocol(Recovery(last, False, 7)).done == 4


@given(st.lists(st.tuples(st.sampled_from(Event), st.integers(0, 4)), max_size=60))
def test_agrees_with_a_model_and_keeps_its_bounds(moves):
    """The model knows only lists of what happened; the machine must allow exactly what the prose allows."""
    protocol = CommitProtocol(NEW)
    happened: dict[int, list[Event]] = {}
    last_barrier = 0
    for event, ahead in moves:
        epoch = max(1, last_barrier - 2 + ahead)
        legal = _model_allows(happened, last_barrier, event, epoch)
        assert protocol.may(event, epoch) is legal, (happened, event, epoch)
        if legal:
            protocol.advance(event, epoch)
            happened.setdefault(epoch, []).append(event)
            last_barrier = max(last_barrier, epoch) if event is Event.BARRIER else last_barrier
        committed = max((epoch for epoch, events in happened.items() if Event.COMMITTED in events), default=0)
        assert protocol.filling == last_barrier + 1 <= committed + 2


def _model_allows(happened: dict[int, list[Event]], last_barrier: int, event: Event, epoch: int) -> bool:
    mine = happened.get(epoch, [])
    others = [events for other, events in happened.items() if other != epoch]
    if Event.FAILED in mine or Event.FINALIZED in mine or epoch > last_barrier + 1:
        return False
    if event is Event.FAILED:
        return True
    if event in (Event.BARRIER, Event.PREPARED) and any(Event.FAILED in events for events in others):
        return False
    if event is Event.BARRIER and any(Event.COMMITTED not in events for events in others):
        return False
    if event is Event.PREPARED and any(Event.FINALIZED not in events for events in others if Event.PREPARED in events):
        return False
    done = [made for made in mine if made is not Event.PUBLISH_FAILED]
    if event is Event.PUBLISH_FAILED:
        return bool(done) and done[-1] is Event.COMMITTED
    return event is ORDER[len(done)][1]


@pytest.mark.parametrize(
    ("records", "last", "again", "next_epoch"),
    [
        ([], None, False, 1),
        ([Term("a", 1)], None, False, 3),
        ([Term("a", 1), Term("b", 3)], None, False, 5),
        ([Term("a", 1), commit(1, "a")], 1, True, 4),
        ([Term("a", 1), commit(1, "a"), Final(1)], 1, False, 4),
        ([Term("a", 1), commit(1, "a"), Final(1), commit(2, "a")], 2, True, 5),
        ([Term("a", 1), commit(1, "a"), Term("b", 4)], 1, True, 6),
        ([Term("a", 1), commit(1, "a"), Term("b", 4), Final(1)], 1, False, 6),
        ([Term("a", 1), commit(1, "a"), Term("b", 4), Final(1), commit(4, "b")], 4, True, 7),
        ([commit(9, "a"), Term("b", 12)], 9, True, 14),
        ([commit(9, "a"), Final(9), Term("a", 5), commit(10, "a")], 10, True, 13),
    ],
)
def test_recovery_is_decided_from_records(records, last, again, next_epoch):
    recovery = decide_recovery(records)
    assert (recovery.last_commit and recovery.last_commit.epoch) == last
    assert (recovery.publish_again, recovery.next_epoch) == (again, next_epoch)
    assert decide_recovery(records) == recovery


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([Final(1)], "without its COMMIT"),
        ([commit(1, "a"), commit(2, "a")], "before any TERM"),
        ([commit(1, "a"), Final(1), commit(2, "a")], "before any TERM"),
        ([Term("a", 1), commit(1, "a"), commit(2, "a")], "follows one without FINAL"),
        ([Term("a", 1), commit(1, "b")], "is of term b"),
        ([Term("a", 1), commit(2, "a")], "where that of 1 should"),
        ([Term("a", 1), commit(1, "a"), Final(1), commit(1, "a")], "where that of 2 should"),
        ([Term("a", 1), commit(1, "a"), Final(2)], "without its COMMIT"),
        ([Term("a", 1), commit(1, "a"), Final(1), Final(1)], "without its COMMIT"),
        ([Term("a", 1), Term("a", 3)], "begins twice"),
        ([Term("a", 1), Term("b", 2)], "may be used already"),
        ([Term("a", 1), commit(1, "a"), Final(1), Term("b", 3)], "may be used already"),
        ([commit(9, "a"), Term("b", 11)], "may be used already"),
        ([commit(9, "a"), Term("a", 10)], "behind its own"),
    ],
)
def test_records_that_the_protocol_cannot_have_written(records, message):
    with pytest.raises(ValueError, match=message):
        decide_recovery(records)


@given(st.lists(st.integers(0, 5), max_size=12), st.randoms(use_true_random=False))
def test_no_epoch_is_ever_used_twice(attempts, chance):
    """Attempts of some commits each, given up at any point: the numbers they may have staged under never meet."""
    records: list[Term | Commit | Final] = []
    used: set[int] = set()
    for number, commits in enumerate(attempts):
        recovery = decide_recovery(records)
        records.append(Term(f"{number}", recovery.next_epoch))
        if recovery.publish_again and recovery.last_commit is not None:
            records.append(Final(recovery.last_commit.epoch))
        epochs = range(recovery.next_epoch, recovery.next_epoch + commits)
        for epoch in epochs:
            records += [commit(epoch, f"{number}"), Final(epoch)]
        if commits and chance.random() < 0.5:
            records.pop()
        mine = set(range(recovery.next_epoch, recovery.next_epoch + commits + 2))
        assert not mine & used
        used |= mine


def test_compare_names_old_and_new_for_each_part():
    old = {"sources": ["a"], "dedup": {"keys": ["id"], "within": 5}, "partitions": 8}
    assert compare(old, old) == []
    assert compare(old, {"sources": ("a",), "dedup": {"within": 5, "keys": ["id"]}, "partitions": 8}) == []
    assert compare(old, {"sources": ["b"], "dedup": {"keys": ["id"], "within": 6}, "sink": None}) == [
        'sources: was ["a"], now ["b"]',
        "dedup.within: was 5, now 6",
        "partitions: was 8, now absent",
        "sink: was absent, now null",
    ]
