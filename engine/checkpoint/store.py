"""The state directory: one owner, one manifest, and what recovery decided when it was opened.

    <path>/LOCK                            flock; holds pid, host and start time of the owner
    <path>/manifest-<number>               the records; the highest number counts
    <path>/manifest-<number>.tmp           a manifest that never got its name; deleted
    <path>/manifest-<number>.torn-<term>   what stood behind the last valid record at the start of that term; kept
    <path>/stages/<name>-<partition>/      the stages' own files; names are escaped, contents are the stages' affair
    <path>/stages/<name>-<partition>.rebuilt-<id>/   the same after a repair, where the state in the COMMIT says so;
                                           what then goes from the directories before is told in ``replaced``
    <path>/repair/                         what a repair under way has rebuilt so far; deleted by the next one
    <path>/sinks/<name>/                   the same for rows that a sink keeps until their commit

Laws
    - Opening reads, decides, and then writes one new manifest file (tmp, fsync, rename, fsync directory) that holds the
      last COMMIT, its FINAL and the new TERM; only then are older ones unlinked. So what recovery decided on is durable
      anew, also where it was read from the page cache after a failed sync of the process before; an old file is never
      written to again, not by recovery and, to any effect, not by an owner that was left behind; and being killed
      anywhere and opened again comes to the same decision.
    - A directory that is refused is unchanged, but for the text in LOCK. One that is accepted loses its tmp files and
      gains a copy of a torn tail before that rename, and nothing else.
    - Every append is durable when it returns: the manifest's law that at most its last frame can be torn rests on it.
    - The first failure of a write is the last: its outcome is unknown until recovery reads it; every later call raises.
    - The lock is checked before every change: a deleted or replaced LOCK file, or a forked child, changes nothing. Who
      lost it between a check and the rename of a manifest finds the tmp file gone: whoever came after deleted it.
    - A directory without a manifest is new only if nothing of ours but LOCK and tmp files is in it.
    - Files of other names are neither read nor deleted.

Not thread-safe: one thread at a time.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from engine.checkpoint import manifest
from engine.checkpoint.fence import FencedStorage
from engine.checkpoint.manifest import Commit, Damage, Decoded, Final, Header, Record, Term
from engine.checkpoint.protocol import History, Recovery, compare
from engine.errors import CorruptState, StateError
from engine.nature import random_id, wall_clock
from engine.progress import Epoch, Token
from engine.storage import File, Held, Lock, Storage

if TYPE_CHECKING:
    from engine.stage import StageState

__all__ = [
    "REPLACED",
    "ROLL_AT_BYTES",
    "FoundManifest",
    "StateDirectory",
    "Torn",
    "check_fingerprint",
    "find_manifest",
    "stage_directory",
    "take",
    "taken_by",
]

ROLL_AT_BYTES = 4 << 20
"""A manifest that is larger is replaced by a new one before the next COMMIT."""

INCARNATION_BITS = 128
SEED_BITS = 128
TERM_BITS = 64

_MANIFEST = re.compile(r"manifest-(\d{8,})")
_LEFTOVER = re.compile(r"manifest-\d{8,}\.tmp")
_OURS = re.compile(r"manifest-\d{8,}\.torn-[0-9a-f]+|stages|sinks")
_PLACE = "directory"
"""The key in the state of a stage that was rebuilt: where its files lie, below the state directory."""

REPLACED = "replaced"
"""Another one: the directories that its files had before, with what was damaged in each."""


@dataclass(frozen=True, slots=True)
class Torn:
    """A tail of the manifest that was never acknowledged, and where it was put aside."""

    path: str
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FoundManifest:
    """What an existing directory holds; ``problem`` of ``decoded`` is None or a torn tail."""

    file: str
    data: bytes
    decoded: Decoded
    header: Header
    history: History


class StateDirectory:
    """The open state directory of one attempt. Make it with ``open``; it is its own context manager.

    ``seed`` is 16 secret bytes of the incarnation; ``torn`` says what the previous attempt left half written.
    """

    def __init__(
        self, storage: Storage, path: str, lock: Lock, header: Header, history: History, roll_at_bytes: int
    ) -> None:
        self.path = path
        self.incarnation = header.incarnation
        self.seed = header.seed
        self.term = random_id(TERM_BITS)
        self.torn: Torn | None = None
        self._storage = FencedStorage(storage, self.check)
        self._lock = lock
        self._roll_at_bytes = roll_at_bytes
        self._recovery = Recovery(history.last_commit, not history.finished, history.next_epoch)
        self._history = history
        self._number = header.number
        self._file: File | None = None
        self._tail = manifest.Tail(0, 0, 0, 0)
        self._failure: BaseException | None = None

    @classmethod
    def open(
        cls,
        storage: Storage,
        path: str,
        *,
        fingerprint: Mapping[str, Any],
        roll_at_bytes: int = ROLL_AT_BYTES,
        lock: Lock | None = None,
    ) -> Self:
        """Take the directory, made where missing, and begin a term in it. ``lock``: that of who has ``take``n it.

        Raises StateError where it is in use, cannot be used, is of a later format, or is of a graph with another
        ``fingerprint`` (JSON); CorruptState, naming file and offset, where it is damaged. It is unchanged then.
        """
        if lock is None:
            with _explained(path, "cannot be opened"):
                storage.make_directory(path)
            lock = take(storage, path)
        try:
            with _explained(path, "cannot be opened"):
                return cls._begin(storage, path, lock, fingerprint, roll_at_bytes)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def _begin(
        cls, storage: Storage, path: str, lock: Lock, fingerprint: Mapping[str, Any], roll_at_bytes: int
    ) -> Self:
        names = storage.list(path)
        found = find_manifest(storage, path, names)
        if found is None:
            header, history = Header(random_id(INCARNATION_BITS), bytes.fromhex(random_id(SEED_BITS)), 0), History()
        else:
            header, history = found.header, found.history
            check_fingerprint(path, history.last_commit, fingerprint)
        state = cls(storage, path, lock, header, history, roll_at_bytes)
        try:
            state._start(names, found)
        except BaseException:
            state.close()
            raise
        return state

    def _start(self, names: list[str], found: FoundManifest | None) -> None:
        for name in names:
            if _LEFTOVER.fullmatch(name):
                self._storage.unlink(os.path.join(self.path, name))
        if found is not None and found.decoded.problem is not None:
            self.torn = self._put_aside(found)
        self._history = self._history.then(Term(self.term, self._recovery.next_epoch))
        self._write_manifest([name for name in names if _MANIFEST.fullmatch(name)])

    @property
    def last_commit(self) -> Commit | None:
        """The last COMMIT: that of an earlier attempt, or since then of this one."""
        return self._history.last_commit

    @property
    def publish_again(self) -> bool:
        """Whether the last COMMIT has no FINAL yet."""
        return not self._history.finished

    @property
    def next_epoch(self) -> Epoch:
        """The first epoch of this attempt; no earlier attempt used it or a later one."""
        return self._recovery.next_epoch

    @property
    def recovery(self) -> Recovery:
        """What this attempt began with: feed it to ``CommitProtocol``. Does not change."""
        return self._recovery

    def token(self, epoch: Epoch, sink: str) -> Token:
        """The token of ``sink`` for the last commit or a later epoch; for epoch 0, where there is no commit yet."""
        last = self.last_commit
        if last is not None and epoch < last.epoch:
            raise ValueError(f"epoch {epoch} is before the last commit, {last.epoch}: its term is not known any more")
        term = last.term if last is not None and epoch == last.epoch else self.term
        return Token(self.incarnation, epoch, term, sink)

    def stage_directory(self, stage: str, partition: int) -> str:
        """The directory for a stage's own files in one partition. It may not exist yet; any name is safe."""
        return stage_directory(self.path, stage, partition, self._state_of(stage, partition))

    def placed(self, stage: str, partition: int, state: "StageState | None") -> "StageState | None":
        """``state`` as the next COMMIT has to hold it: a stage that was rebuilt goes on where that put its files."""
        before = self._state_of(stage, partition) or {}
        return state if state is None else state | {key: before[key] for key in (_PLACE, REPLACED) if key in before}

    def _state_of(self, stage: str, partition: int) -> "StageState | None":
        states = self.last_commit.states.get(stage, []) if self.last_commit is not None else []
        return states[partition] if partition < len(states) else None

    def sink_directory(self, sink: str) -> str:
        """The directory for the rows that a sink keeps until their commit. It may not exist yet; any name is safe."""
        return os.path.join(self.path, "sinks", _escaped(sink))

    def check(self) -> None:
        """Raise OSError where this attempt has lost the directory, or is the copy of a forked child."""
        self._lock.check()

    def append_commit(self, commit: Commit) -> None:
        """Make ``commit`` durable: the commit point. May block for the length of an fsync, or two.

        Raises StateError where that fails (its outcome is unknown then) or an earlier write had failed, and
        RuntimeError where the protocol does not allow this commit.
        """
        self._append(commit, f"COMMIT of epoch {commit.epoch}")

    def append_final(self, epoch: Epoch) -> None:
        """Note that the commit of ``epoch`` is published and acknowledged. Raises as ``append_commit``."""
        self._append(Final(epoch), f"FINAL of epoch {epoch}")

    def adopt(self, rebuilt: "Mapping[tuple[str, int], tuple[str, StageState]]") -> None:
        """Take rebuilt states, each a directory with its description, in place of those of the last COMMIT.

        All else of it stays, whether it is FINAL or not; durable when this returns. The old files stay where they are.
        Raises StateError where that fails (its outcome is unknown then), and RuntimeError where there is no COMMIT.
        """
        if self.last_commit is None:
            raise RuntimeError("commit protocol: there is no COMMIT whose states could be replaced")
        states = {stage: list(lanes) for stage, lanes in self.last_commit.states.items()}
        with _explained(self.path, "the rebuilt states could not be put in place"):
            self._storage.make_directory(os.path.join(self.path, "stages"))
            for (stage, partition), (directory, state) in rebuilt.items():
                place = f"{stage_directory('', stage, partition)}.rebuilt-{self.term}"
                self._storage.rename(directory, os.path.join(self.path, place))
                states[stage][partition] = state | {_PLACE: place}
            self._storage.sync_directory(os.path.join(self.path, "stages"))
        self._history = replace(self._history, last_commit=replace(self.last_commit, states=states))
        try:
            with _explained(self.path, "the rebuilt states could not be committed"):
                self._write_manifest([_manifest_name(self._number)])
        except BaseException as error:
            self._failure = error
            raise

    def close(self) -> None:
        """Let others have the directory. Harmless when repeated, and in a forked child."""
        try:
            if self._file is not None:
                self._file.close()
        finally:
            self._lock.release()
            if self._failure is None:
                self._failure = ValueError("it is closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, record: Commit | Final, what: str) -> None:
        if self._failure is not None:
            raise StateError(f"{self.path}: {what} cannot be written: {self._failure}") from self._failure
        try:
            if isinstance(record, Commit) and record.incarnation != self.incarnation:
                raise ValueError(f"{what} is of incarnation {record.incarnation}")
            history = self._history.then(record)
        except ValueError as error:
            raise RuntimeError(f"commit protocol: {error}") from error
        try:
            with _explained(self.path, f"the {what} could not be written"):
                self._write(record)
        except BaseException as error:
            self._failure = error
            raise
        self._history = history

    def _write(self, record: Commit | Final) -> None:
        if isinstance(record, Commit) and self._tail.size > self._roll_at_bytes:
            self._write_manifest([_manifest_name(self._number)])
        file = self._file
        if file is None:
            raise ValueError("the manifest was never begun")
        frame, tail = manifest.encode(record, self._tail)
        file.append(frame)
        file.sync()
        self._tail = tail

    def _write_manifest(self, older: list[str]) -> None:
        """Begin the next manifest file with all that counts of the history; the ``older`` go once it is durable."""
        self._number += 1
        name = _manifest_name(self._number)
        target = os.path.join(self.path, name)
        header = Header(self.incarnation, self.seed, self._number)
        data, tail = manifest.begin(header, _carried(self._history))
        file = self._storage.create(f"{target}.tmp")
        try:
            file.append(data)
            file.sync()
            self._storage.rename(f"{target}.tmp", target)
            self._storage.sync_directory(self.path)
        except BaseException:
            file.close()
            raise
        if self._file is not None:
            self._file.close()
        self._file, self._tail = file, tail
        for old in older:
            with suppress(OSError):  # it is superseded: what stays behind is deleted at the next start
                self._storage.unlink(os.path.join(self.path, old))

    def _put_aside(self, found: FoundManifest) -> Torn:
        offset = found.decoded.valid_through
        tail = found.data[offset:]
        path = f"{found.file}.torn-{self.term}"
        with self._storage.create(path) as copy:
            copy.append(tail)
            copy.sync()
        self._storage.sync_directory(self.path)
        return Torn(path, offset, len(tail))


def take(storage: Storage, path: str) -> Lock:
    """The lock of the state directory ``path``. Raises StateError where it is in use or cannot be used."""
    with _explained(path, "cannot be opened"):
        return storage.lock(os.path.join(path, "LOCK"))


def stage_directory(path: str, stage: str, partition: int, state: "StageState | None" = None) -> str:
    """Where a stage's own files of one partition lie in the state directory ``path``: where ``state`` says, if it was
    rebuilt.
    """
    place = (state or {}).get(_PLACE)
    return os.path.join(path, place or os.path.join("stages", f"{_escaped(stage)}-{partition:05}"))


def _manifest_name(number: int) -> str:
    return f"manifest-{number:08}"


def _carried(history: History) -> list[Record]:
    """The records that say the same as ``history`` for all that comes."""
    records: list[Record] = []
    if history.last_commit is not None:
        records.append(history.last_commit)
        if history.finished:
            records.append(Final(history.last_commit.epoch))
    if history.term is not None:
        records.append(history.term)
    return records


def find_manifest(storage: Storage, path: str, names: list[str]) -> FoundManifest | None:
    """Read the newest manifest of the ``names`` in a state directory; None for a new one. Changes nothing.

    Raises StateError for a later format, CorruptState, and OSError.
    """
    numbers = [int(match[1]) for name in names if (match := _MANIFEST.fullmatch(name))]
    if not numbers:
        ours = next((name for name in names if _OURS.fullmatch(name)), None)
        if ours is not None:
            raise _corrupt(path, os.path.join(path, _manifest_name(1)), None, f"the manifest is gone; {ours} is there")
        return None
    number = max(numbers)
    file = os.path.join(path, _manifest_name(number))
    with storage.open(file) as opened:
        data = opened.pread(opened.size, 0) if opened.size else b""
    decoded = manifest.decode(data)
    problem = decoded.problem
    if problem is not None and problem.damage is Damage.NEWER:
        raise StateError(
            f"{file} was written by a later release: {problem.reason}.\n  Nothing was changed. Use that release."
        )
    if problem is not None and problem.damage is Damage.CORRUPT:
        raise _corrupt(path, file, problem.offset, problem.reason)
    if decoded.header is None or decoded.header.number != number:
        raise _corrupt(path, file, 0, "it was written under another name")
    return FoundManifest(file, data, decoded, decoded.header, _read_history(path, file, decoded))


def _read_history(path: str, file: str, decoded: Decoded) -> History:
    history = History()
    for record, offset in zip(decoded.records, decoded.offsets, strict=True):
        try:
            history = history.then(record)
        except ValueError as error:
            raise _corrupt(path, file, offset, str(error)) from error
    if history.term is None:
        raise _corrupt(path, file, decoded.valid_through, "it holds no TERM")
    return history


def _corrupt(path: str, file: str, offset: int | None, reason: str) -> CorruptState:
    where = "" if offset is None else f" at byte {offset}"
    advice = f"Nothing was changed. Bring back a whole copy of {path}, or begin anew with another state= and output."
    return CorruptState(f"{file} is damaged{where}: {reason}.\n  {advice}", path=file, offset=offset)


def check_fingerprint(path: str, commit: Commit | None, fingerprint: Mapping[str, Any]) -> None:
    """Raise StateError where ``commit``, the last one in ``path``, is of another graph."""
    if commit is None:
        return
    new: dict[str, Any] = json.loads(manifest.canonical(dict(fingerprint)))
    differences = compare(commit.fingerprint, new)
    if differences:
        lines = "".join(f"\n  {line}" for line in differences)
        advice = "Nothing was changed. Run the pipeline as it was, or give this one its own state= and output."
        raise StateError(f"{path} is the state of another pipeline:{lines}\n  {advice}")


@contextmanager
def _explained(path: str, what: str) -> Iterator[None]:
    """Say what an OSError means for the state directory."""
    try:
        yield
    except Held as held:
        raise StateError(_taken(path, held)) from held
    except (OSError, EOFError) as error:
        raise StateError(
            f"{path}: {what}: {error}.\n  Mend it and run again: it resumes at the last commit."
        ) from error


def _taken(path: str, held: Held) -> str:
    return f"{path} is in use by {taken_by(held)}.\n  Stop it, or give this process its own state=."


def taken_by(held: Held) -> str:
    """Who holds a state directory, and since when."""
    who = f"pid {held.pid} on host {held.host}" if held.pid is not None else "another process"
    since = ""
    if held.since is not None:
        began = held.since.astimezone()
        today = began.date() == wall_clock().astimezone().date()
        since = f" since {began:%H:%M}" if today else f" since {began:%Y-%m-%d %H:%M}"
    return f"{who}{since}"


def _escaped(name: str) -> str:
    """A file name for any text; other texts have other names, also where case does not count."""
    escaped = "".join(
        chr(byte) if chr(byte) in "abcdefghijklmnopqrstuvwxyz0123456789_" else f"%{byte:02x}"
        for byte in name.encode("utf-8", "surrogatepass")
    )
    if len(escaped) > 120:
        return f"{escaped[:80]}%-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"
    return escaped
