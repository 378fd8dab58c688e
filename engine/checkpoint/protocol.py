"""The commit protocol as tables: what may follow what, while running and in the records that recovery reads.

Rules of this file
    1. Everything that decides about the order of commits is here, as much as possible of it in tables.
    2. No bytes, no files, no clock, no threads: events and records come in, decisions go out.
    3. An illegal event is a fault of the caller and raises RuntimeError; an illegal record is damage and raises
       ValueError (the store knows the file and the place, and says so).

One epoch goes through six steps; an event is given when its step is done for every stage and sink:

    FILLING ─BARRIER─► SNAPSHOT ─SNAPSHOTTED─► PREPARE ─PREPARED─► COMMIT ─COMMITTED─►
    PUBLISH ─PUBLISHED─► ACK ─ACKED─► FINAL ─FINALIZED─► DONE

Epochs overlap: while k is published, k+1 may be snapshotted and prepared and k+2 is filling. ``EXCLUDES`` bounds it:

    - the barrier of k+1 is sent only after the COMMIT of k is durable;
    - the COMMIT of k+1 is begun only after the FINAL of k: at most one commit is open;
    - after a failure nothing new is begun. A step under way may still come to its end (it is shielded).

Which epoch numbers may have been used
    A number is used once rows were staged under it. By the first bound, an attempt whose last COMMIT is k has sent no
    barrier beyond that of k+1; rows behind that barrier are of k+2, and of no later epoch. So the next attempt begins
    with k+3. An attempt without any COMMIT, whose TERM says ``first_epoch`` f, has sent at most the barrier of f: it
    used f and f+1.
    The next first epoch is therefore max(last COMMIT + 3, last TERM's first_epoch + 2), and 1 in the beginning.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeAlias

from engine.checkpoint.manifest import Commit, Final, Record, Term, canonical
from engine.progress import Epoch

__all__ = [
    "AFTER_FAILURE",
    "EXCLUDES",
    "TRANSITIONS",
    "CommitProtocol",
    "Event",
    "History",
    "Outcome",
    "Position",
    "Recovery",
    "Rest",
    "Step",
    "compare",
    "decide_recovery",
]


class Step(Enum):
    """The step of an epoch's commit that is under way."""

    SNAPSHOT = 1
    """Stage states: tmp, fsync, rename, fsync directory."""

    PREPARE = 2
    """Sinks make the rows durable and give handles."""

    COMMIT = 3
    """The COMMIT record is appended and synced: the only commit point."""

    PUBLISH = 4
    """Sinks commit the handles, until it succeeds."""

    ACK = 5
    """Sources are told; advisory."""

    FINAL = 6
    """The FINAL record is appended."""


class Rest(Enum):
    """Where an epoch stands outside of its six steps."""

    FILLING = "filling"
    DONE = "done"
    FAILED = "failed"


Position: TypeAlias = Step | Rest


class Event(Enum):
    """What happens to an epoch."""

    BARRIER = "barrier"
    """Its barrier is sent; rows behind it belong to the next epoch."""

    SNAPSHOTTED = "snapshotted"
    PREPARED = "prepared"
    COMMITTED = "committed"
    PUBLISH_FAILED = "publish failed"
    """One attempt failed; another follows with the same handles."""

    PUBLISHED = "published"
    ACKED = "acked"
    FINALIZED = "finalized"
    FAILED = "failed"
    """Its step failed for good: the run ends."""


class Outcome(Enum):
    """What has become of the rows of an epoch that failed."""

    DISCARDED = "discarded"
    """They were never committed: recovery discards what was staged and reads them again."""

    UNKNOWN = "unknown"
    """The COMMIT may or may not be on the disk: recovery reads it."""

    COMMITTED = "committed"
    """They are committed: recovery publishes them again under the same token."""


TRANSITIONS: Mapping[Position, Mapping[Event, Position]] = {
    Rest.FILLING: {Event.BARRIER: Step.SNAPSHOT, Event.FAILED: Rest.FAILED},
    Step.SNAPSHOT: {Event.SNAPSHOTTED: Step.PREPARE, Event.FAILED: Rest.FAILED},
    Step.PREPARE: {Event.PREPARED: Step.COMMIT, Event.FAILED: Rest.FAILED},
    Step.COMMIT: {Event.COMMITTED: Step.PUBLISH, Event.FAILED: Rest.FAILED},
    Step.PUBLISH: {Event.PUBLISHED: Step.ACK, Event.PUBLISH_FAILED: Step.PUBLISH, Event.FAILED: Rest.FAILED},
    Step.ACK: {Event.ACKED: Step.FINAL, Event.FAILED: Rest.FAILED},
    Step.FINAL: {Event.FINALIZED: Rest.DONE, Event.FAILED: Rest.FAILED},
    Rest.DONE: {},
    Rest.FAILED: {},
}

EXCLUDES: Mapping[Event, frozenset[Position]] = {
    Event.BARRIER: frozenset({Step.SNAPSHOT, Step.PREPARE, Step.COMMIT, Rest.FAILED}),
    Event.PREPARED: frozenset({Step.COMMIT, Step.PUBLISH, Step.ACK, Step.FINAL, Rest.FAILED}),
}
"""An event is illegal while *another* epoch stands at one of these."""

AFTER_FAILURE: Mapping[Position, Outcome] = {
    Rest.FILLING: Outcome.DISCARDED,
    Step.SNAPSHOT: Outcome.DISCARDED,
    Step.PREPARE: Outcome.DISCARDED,
    Step.COMMIT: Outcome.UNKNOWN,
    Step.PUBLISH: Outcome.COMMITTED,
    Step.ACK: Outcome.COMMITTED,
    Step.FINAL: Outcome.COMMITTED,
}


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a new attempt begins with."""

    last_commit: Commit | None
    """Restore its states and seek to its offsets; None: begin at the beginning."""

    publish_again: bool
    """Whether its FINAL is missing: commit its handles once more, under the same token, then append FINAL."""

    next_epoch: Epoch
    """The first epoch of the new attempt: no earlier attempt has used it or a later one."""


@dataclass(frozen=True, slots=True)
class History:
    """What records say, one after the other. A value: ``then`` gives the history with one record more."""

    last_commit: Commit | None = None
    finished: bool = True
    """Whether the last commit has its FINAL."""

    term: Term | None = None
    terms: frozenset[str] = frozenset()

    @property
    def next_epoch(self) -> Epoch:
        """The first epoch that no attempt so far can have used; the head of this file derives it."""
        after_commit = self.last_commit.epoch + 3 if self.last_commit is not None else 1
        after_term = self.term.first_epoch + 2 if self.term is not None else 1
        return max(after_commit, after_term)

    @property
    def next_commit(self) -> Epoch:
        """The epoch that the next COMMIT of the present term must have."""
        if self.term is None:
            raise ValueError("there is no term yet")
        if self.last_commit is not None and self.last_commit.term == self.term.term:
            return self.last_commit.epoch + 1
        return self.term.first_epoch

    def then(self, record: Record) -> "History":
        """The history that ends with ``record``. Raises ValueError where the protocol cannot have written it."""
        match record:
            case Term():
                return self._then_term(record)
            case Commit():
                return self._then_commit(record)
            case Final():
                return self._then_final(record)

    def _then_term(self, term: Term) -> "History":
        if term.term in self.terms:
            raise ValueError(f"term {term.term} begins twice")
        carried = self.last_commit if self.term is None else None
        if carried is not None and carried.term == term.term:
            # A file that was begun within a term carries that term's last commit before it.
            if term.first_epoch > carried.epoch:
                raise ValueError(
                    f"term {term.term} begins with epoch {term.first_epoch}, behind its own {carried.epoch}"
                )
        elif term.first_epoch < self.next_epoch:
            raise ValueError(f"term {term.term} begins with epoch {term.first_epoch}, which may be used already")
        return replace(self, term=term, terms=self.terms | {term.term})

    def _then_commit(self, commit: Commit) -> "History":
        if self.term is None:
            if self.last_commit is not None:
                raise ValueError(f"COMMIT of epoch {commit.epoch} stands before any TERM")
        else:
            if not self.finished:
                raise ValueError(f"COMMIT of epoch {commit.epoch} follows one without FINAL")
            if commit.term != self.term.term:
                raise ValueError(f"COMMIT of epoch {commit.epoch} is of term {commit.term}, not {self.term.term}")
            if commit.epoch != self.next_commit:
                raise ValueError(f"COMMIT of epoch {commit.epoch} stands where that of {self.next_commit} should")
        return replace(self, last_commit=commit, finished=False)

    def _then_final(self, final: Final) -> "History":
        if self.finished or self.last_commit is None or self.last_commit.epoch != final.epoch:
            raise ValueError(f"FINAL of epoch {final.epoch} without its COMMIT before it")
        return replace(self, finished=True)


def decide_recovery(records: Iterable[Record]) -> Recovery:
    """What a new attempt begins with, after these records. Pure: the same records give the same answer, any time.

    Raises ValueError where the protocol cannot have written them.
    """
    history = History()
    for record in records:
        history = history.then(record)
    return Recovery(history.last_commit, not history.finished, history.next_epoch)


class CommitProtocol:
    """Where every epoch of one attempt stands. Not thread-safe: it belongs to the coordinator.

    After recovery with ``publish_again`` the last commit stands at PUBLISH, and goes on from there.
    """

    def __init__(self, recovery: Recovery) -> None:
        self._filling: Epoch = recovery.next_epoch
        self._positions: dict[Epoch, Position] = {self._filling: Rest.FILLING}
        self._done: Epoch = 0
        if recovery.last_commit is not None:
            if recovery.publish_again:
                self._positions[recovery.last_commit.epoch] = Step.PUBLISH
            else:
                self._done = recovery.last_commit.epoch

    @property
    def filling(self) -> Epoch:
        """The epoch of the rows that sources read now."""
        return self._filling

    @property
    def open_commit(self) -> Epoch | None:
        """The epoch whose COMMIT may be on the disk and whose FINAL is not."""
        open_steps = (Step.COMMIT, Step.PUBLISH, Step.ACK, Step.FINAL)
        return next((epoch for epoch, position in self._positions.items() if position in open_steps), None)

    @property
    def done(self) -> Epoch:
        """The last epoch that is done; 0 before the first."""
        return self._done

    def position(self, epoch: Epoch) -> Position | None:
        """Where ``epoch`` stands; None where this attempt does not know it (any more)."""
        return Rest.DONE if epoch == self._done else self._positions.get(epoch)

    def may(self, event: Event, epoch: Epoch) -> bool:
        """Whether ``event`` is legal for ``epoch`` now."""
        return self._objection(event, epoch) is None

    def advance(self, event: Event, epoch: Epoch) -> Position:
        """Note that ``event`` happened to ``epoch``; give where it stands now. Raises RuntimeError if illegal."""
        objection = self._objection(event, epoch)
        if objection is not None:
            raise RuntimeError(f"commit protocol: {event.value} of epoch {epoch} is illegal: {objection}")
        position = TRANSITIONS[self._positions[epoch]][event]
        self._positions[epoch] = position
        if event is Event.BARRIER:
            self._filling = epoch + 1
            self._positions[self._filling] = Rest.FILLING
        if position is Rest.DONE:
            del self._positions[epoch]
            self._done = epoch
        return position

    def _objection(self, event: Event, epoch: Epoch) -> str | None:
        position = self.position(epoch)
        if position is None:
            return f"it is unknown; epoch {self._filling} is filling"
        if event not in TRANSITIONS[position]:
            return f"it stands at {position.name}"
        for other, there in self._positions.items():
            if other != epoch and there in EXCLUDES.get(event, frozenset()):
                return f"epoch {other} stands at {there.name}"
        return None


def compare(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """One line for every part in which two fingerprints differ, naming old and new; a part of a part is ``a.b``."""
    lines: list[str] = []
    for part in [*old, *(part for part in new if part not in old)]:
        before, now = old.get(part), new.get(part)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            lines += [f"{part}.{line}" for line in compare(before, now)]
        elif part not in old or part not in new or canonical(before) != canonical(now):
            lines.append(f"{part}: was {_shown(old, part)}, now {_shown(new, part)}")
    return lines


def _shown(fingerprint: Mapping[str, object], part: str) -> str:
    return canonical(fingerprint[part]).decode() if part in fingerprint else "absent"
