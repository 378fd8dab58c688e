"""A state directory on a simulated disk: an owner that notes what it was promised, and what must be there then.

Two oracles: ``check_reopened`` opens the directory twice, which writes; ``ReadBack`` reads its manifest, changes
nothing, and remembers its answers.
"""

from dataclasses import dataclass, field

from crash.remembered import Remembered

from engine.checkpoint.manifest import Commit
from engine.checkpoint.protocol import History
from engine.checkpoint.store import StateDirectory, find_manifest
from engine.errors import StateError
from engine.progress import Epoch
from engine.testing.crash_states import CrashState
from engine.testing.storage import SimulatedStorage

PATH = "/srv/state/orders"
FINGERPRINT = {"sources": ["memory(a)"], "sink": "out"}
ROLL_AT_BYTES = 700
"""About two commits: files are rolled within a run."""


@dataclass
class Noted:
    """Something was asked for when the disk had changed ``begun`` times, and granted at ``done`` (None: never)."""

    epoch: int
    begun: int
    done: int | None = None


@dataclass
class Promises:
    """What an owner asked for and was granted, by the count of changes of the disk."""

    incarnation: str | None = None
    known_from: int = 0
    commits: list[Noted] = field(default_factory=list)
    finals: list[Noted] = field(default_factory=list)
    terms: list[Noted] = field(default_factory=list)
    appended: dict[int, Commit] = field(default_factory=dict)

    def check(self, state: "StateDirectory | Found", changes: int) -> None:
        """What must hold when the directory is opened after the disk had changed so often, or a part more."""
        epoch = state.last_commit.epoch if state.last_commit is not None else 0
        assert _granted(self.commits, changes) <= epoch <= _asked(self.commits, changes)
        assert state.last_commit == self.appended.get(epoch)
        if epoch <= _granted(self.finals, changes):
            assert not state.publish_again
        elif epoch > _asked(self.finals, changes):
            assert state.publish_again
        assert state.next_epoch > max(_granted(self.terms, changes), epoch)
        if self.incarnation is not None and changes >= self.known_from:
            assert state.incarnation == self.incarnation


@dataclass(frozen=True)
class Found:
    """What whoever opens the directory next begins with; ``next_epoch`` is before its TERM."""

    incarnation: str | None
    last_commit: Commit | None
    publish_again: bool
    next_epoch: Epoch


def _granted(notes: list[Noted], changes: int) -> int:
    return max((note.epoch for note in notes if note.done is not None and note.done <= changes), default=0)


def _asked(notes: list[Noted], changes: int) -> int:
    return max((note.epoch for note in notes if note.begun <= changes), default=0)


def opened(storage: SimulatedStorage) -> StateDirectory:
    return StateDirectory.open(storage, PATH, fingerprint=FINGERPRINT, roll_at_bytes=ROLL_AT_BYTES)


def attempt(storage: SimulatedStorage, promises: Promises, commits: int, *, last_final: bool = True) -> None:
    """One attempt of the owner: recover, publish again, then some commits."""
    with opened(storage) as state:
        if promises.incarnation is None:
            promises.incarnation, promises.known_from = state.incarnation, storage.changes
        promises.terms.append(Noted(state.next_epoch + 1, 0, storage.changes))
        if state.last_commit is not None and state.publish_again:
            _finish(storage, state, promises, state.last_commit.epoch)
        for epoch in range(state.next_epoch, state.next_epoch + commits):
            commit = Commit(epoch, state.incarnation, state.term, FINGERPRINT, {"a": epoch}, {}, [], {"rows": epoch})
            promises.appended[epoch] = commit
            promises.commits.append(Noted(epoch, storage.changes))
            state.append_commit(commit)
            promises.commits[-1].done = storage.changes
            if last_final or epoch < state.next_epoch + commits - 1:
                _finish(storage, state, promises, epoch)


def _finish(storage: SimulatedStorage, state: StateDirectory, promises: Promises, epoch: int) -> None:
    promises.finals.append(Noted(epoch, storage.changes))
    state.append_final(epoch)
    promises.finals[-1].done = storage.changes


class ReadBack:
    """What recovery finds, for every state; nothing is written. It depends on the disk alone: ``told`` may become that
    of another run.
    """

    def __init__(self, told: Promises) -> None:
        self.told = told
        self._known: dict[bytes, Found] = {}
        self._found = Remembered(_found, within=PATH, opens=_is_of_a_manifest, failures=(StateError, OSError))

    @property
    def asked(self) -> int:
        """How often a manifest had to be read."""
        return self._found.asked

    def check(self, state: CrashState, changes: int) -> None:
        """What was promised by so many changes is there. Raises AssertionError, StateError, OSError."""
        if state.digest not in self._known:
            self._known[state.digest] = self._found.answer(state, state.digests())
        self.told.check(self._known[state.digest], changes)


def _is_of_a_manifest(path: str) -> bool:
    return "/manifest-" in path and not path.endswith(".tmp")


def _found(storage: SimulatedStorage) -> Found:
    manifest = find_manifest(storage, PATH, storage.list(PATH)) if storage.exists(PATH) else None
    incarnation, history = (None, History()) if manifest is None else (manifest.header.incarnation, manifest.history)
    return Found(incarnation, history.last_commit, not history.finished, history.next_epoch)


def check_reopened(storage: SimulatedStorage, promises: Promises, changes: int) -> None:
    """The directory opens with what was promised, twice, and the second time nothing is left to decide."""
    with opened(storage) as first:
        promises.check(first, changes)
    with opened(storage) as second:
        promises.check(second, changes)
        assert (second.last_commit, second.publish_again) == (first.last_commit, first.publish_again)
        assert second.incarnation == first.incarnation
        assert second.next_epoch > first.next_epoch + 1
        assert second.torn is None
