"""Directories of a stage that a repair replaced: what is removed from them, and what stays.

    stages/<lane>/                      of the first repair: the files of before it
    stages/<lane>.rebuilt-<id>/         of a later one; or of a repair that was cut short, and named by no COMMIT ever
    state["replaced"]                   in the COMMIT: {name of a directory: [names of the damaged files in it]}

Laws
    - A damaged file is never removed here. Nothing reads it any more: its owner may remove it by hand.
    - The other files of a stage go once a run has a COMMIT of its own that is FINAL: the last two name none of them.
    - Files of other names stay, and with them their directory.
"""

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from engine.checkpoint.store import REPLACED, stage_directory
from engine.errors import StateError
from engine.stages.key_window import WINDOW_FILES
from engine.storage import Storage

if TYPE_CHECKING:
    from engine.stage import StageState

__all__ = ["collect", "noted"]


def noted(again: "StageState", before: "StageState", directory: str, damaged: Iterable[str]) -> "StageState":
    """The state ``again``, which replaces ``before`` and its ``directory`` with those damaged files."""
    replaced = before.get(REPLACED, {}) | {os.path.basename(directory): sorted(damaged)}
    return again | {REPLACED: replaced}


def collect(storage: Storage, path: str, states: Mapping[str, list[Any]]) -> None:
    """Remove from the state directory ``path`` what no COMMIT names that holds ``states``. May be repeated.

    REQUIRES: the COMMIT of ``states`` is FINAL, and the one before it is not older than the last repair. Raises
    StateError.
    """
    try:
        for stage, lanes in states.items():
            for partition, state in enumerate(lanes):
                if state is not None and REPLACED in state:
                    _collect_lane(storage, path, stage, partition, state)
    except OSError as error:
        raise StateError(
            f"{path}: what a repair replaced cannot be removed: {error}\n"
            "  Everything before the last commit is safe. Mend the disk, and run again."
        ) from error


def _collect_lane(storage: Storage, path: str, stage: str, partition: int, state: "StageState") -> None:
    parent, lane = os.path.split(stage_directory(path, stage, partition))
    own = os.path.basename(stage_directory(path, stage, partition, state))
    for name in storage.list(parent):
        if name == own or not (name == lane or name.startswith(f"{lane}.rebuilt-")):
            continue
        directory = os.path.join(parent, name)
        kept = set(state[REPLACED].get(name, ()))
        left = [file for file in storage.list(directory) if file in kept or not WINDOW_FILES.fullmatch(file)]
        for file in storage.list(directory):
            if file not in left:
                storage.unlink(os.path.join(directory, file))
        if not left:
            storage.remove_directory(directory)
