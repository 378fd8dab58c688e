"""The state directory as a bystander reads it: without the lock, beside a run that may own it, changing nothing.

Laws
    - Only reads. No lock is taken, and no file is made, cut, renamed or removed.
    - A run that goes on meanwhile may replace the manifest and delete files that only earlier commits name. So what is
      missing or damaged counts only where the last COMMIT is still the same afterwards; else everything is read anew.
    - A torn tail is no damage: it was never acknowledged, and may be a record that is being written.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from engine.checkpoint.manifest import Commit, Term
from engine.checkpoint.store import FoundManifest, find_manifest, stage_directory
from engine.errors import StateError
from engine.stages.window_files import FileCheck, check_window_files
from engine.storage import Held, Storage

__all__ = ["Inspection", "Verification", "inspect", "state_directories", "verify"]

ATTEMPTS = 10
"""How often a directory is read anew that changes meanwhile."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the manifest of one pipeline says."""

    path: str
    manifest: str
    manifest_bytes: int
    """Valid bytes of it."""

    torn_bytes: int
    """Bytes behind them that were never acknowledged."""

    incarnation: str
    term: Term | None
    last_commit: Commit | None
    final: bool
    """Whether the last commit is published and acknowledged."""

    owner: Held | None
    """Who took the directory last."""

    owned: bool | None
    """Whether it still does; None: it is on another host."""

    @property
    def pipeline(self) -> str:
        """The name of the pipeline: that of the directory."""
        return os.path.basename(os.path.abspath(self.path))


@dataclass(frozen=True, slots=True)
class Verification:
    """The files of one pipeline, the manifest apart: ``find_manifest`` has verified that."""

    inspection: Inspection
    files: tuple[FileCheck, ...]

    @property
    def damaged(self) -> tuple[FileCheck, ...]:
        """Those that are not sound."""
        return tuple(file for file in self.files if file.problem is not None)


def state_directories(storage: Storage, path: str) -> list[str]:
    """The directories of pipelines in a state directory, sorted; itself where it is that of a pipeline.

    Raises StateError where there are none.
    """
    names = _names(storage, path)
    if _is_of_a_pipeline(names):
        return [path]
    inner = [os.path.join(path, name) for name in names]
    found = [name for name in inner if storage.is_directory(name) and _is_of_a_pipeline(_names(storage, name))]
    if not found:
        raise StateError(f"{path}: holds no state of a pipeline.\n  Give what was passed as state=.")
    return found


def inspect(storage: Storage, path: str) -> Inspection:
    """Read the manifest in the directory of one pipeline.

    Raises StateError where it cannot be read, holds none yet, or is of a later format; CorruptState where it is
    damaged.
    """
    for _ in range(ATTEMPTS):
        names = _names(storage, path)
        try:
            found = find_manifest(storage, path, names)
            holder = storage.holder(os.path.join(path, "LOCK"))
        except FileNotFoundError:
            continue  # a run has just replaced the manifest
        except (OSError, EOFError) as error:
            raise _unreadable(path, error) from error
        if found is None:
            raise StateError(f"{path}: no run has begun in it yet: there is no manifest.\n  Nothing was changed.")
        return _inspection(path, found, holder)
    raise StateError(f"{path}: its manifest vanishes whenever it is to be read.\n  Nothing was changed; try again.")


def verify(storage: Storage, path: str) -> Verification:
    """Read every file that the last COMMIT in the directory of one pipeline names. Raises as ``inspect``.

    Raises StateError also for states of another release, and where a run commits faster than its files can be read.
    """
    before = inspect(storage, path)
    for _ in range(ATTEMPTS):
        verification = Verification(before, tuple(_checks(storage, before)))
        if not verification.damaged:
            return verification
        after = inspect(storage, path)
        if _epoch(after) == _epoch(before):
            return verification
        before = after
    raise StateError(f"{path}: a run commits faster than its files can be read.\n  Nothing was changed; try again.")


def _names(storage: Storage, path: str) -> list[str]:
    try:
        return storage.list(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: OSError | EOFError) -> StateError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return StateError(f"{path}: cannot be read: {reason}.\n  Nothing was changed. Give what was passed as state=.")


def _is_of_a_pipeline(names: list[str]) -> bool:
    return any(name == "LOCK" or name.startswith("manifest-") for name in names)


def _inspection(path: str, found: FoundManifest, holder: tuple[Held, bool | None] | None) -> Inspection:
    owner, owned = holder if holder is not None else (None, False)
    return Inspection(
        path=path,
        manifest=found.file,
        manifest_bytes=found.decoded.valid_through,
        torn_bytes=len(found.data) - found.decoded.valid_through,
        incarnation=found.header.incarnation,
        term=found.history.term,
        last_commit=found.history.last_commit,
        final=found.history.last_commit is not None and found.history.finished,
        owner=owner,
        owned=owned,
    )


def _checks(storage: Storage, inspection: Inspection) -> Iterator[FileCheck]:
    if inspection.last_commit is None:
        return
    for stage, states in inspection.last_commit.states.items():
        for partition, state in enumerate(states):
            if state is not None:
                directory = stage_directory(inspection.path, stage, partition, state)
                yield from check_window_files(storage, directory, state)


def _epoch(inspection: Inspection) -> int | None:
    return None if inspection.last_commit is None else inspection.last_commit.epoch
