"""Files of stages behind a fence: nothing is changed once the lock is lost, and no call goes past the storage below."""

import inspect

import pytest

from engine.checkpoint.fence import FencedStorage
from engine.storage import Storage
from engine.testing.storage import SimulatedStorage


def public(kind: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}


def test_every_call_of_a_storage_is_handed_on():
    assert public(Storage) <= set(vars(FencedStorage))


def test_nothing_is_changed_once_the_lock_is_lost():
    lost = False

    def check() -> None:
        if lost:
            raise OSError("lost")

    below = SimulatedStorage()
    fenced = FencedStorage(below, check)
    fenced.make_directory("/room/empty")
    file = fenced.create("/room/ids")
    file.append(b"mine")
    lost, before = True, below.changes
    changes = (
        lambda: file.append(b"more"),
        lambda: file.truncate(0),
        lambda: fenced.create("/room/other"),
        lambda: fenced.make_directory("/room/new"),
        lambda: fenced.rename("/room/ids", "/room/keys"),
        lambda: fenced.unlink("/room/ids"),
        lambda: fenced.remove_directory("/room/empty"),
    )
    for change in changes:
        with pytest.raises(OSError, match="lost"):
            change()
    with fenced.open("/room/ids", write=True) as opened, pytest.raises(OSError, match="lost"):
        opened.append(b"more")
    assert below.changes == before
    assert fenced.open("/room/ids").pread(4, 0) == b"mine"
