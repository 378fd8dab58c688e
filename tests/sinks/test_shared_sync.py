"""A directory's sync for many who make files in it: never too few, and none that another one has done."""

import threading

from engine.sinks.shared_sync import SharedSync
from engine.testing.storage import SimulatedStorage


def syncs_of(storage: SimulatedStorage) -> int:
    return sum(call == ("sync_directory", "/room", 0) for call in storage.trace)


def test_each_new_name_is_synced_once():
    storage = SimulatedStorage()
    storage.make_directory("/room")
    names, done = SharedSync(storage, "/room"), syncs_of(storage)
    names.sync()
    assert syncs_of(storage) == done  # there is nothing to sync
    for count in (1, 2, 5):
        for _ in range(count):
            names.made()
        names.sync()
        names.sync()
        done += 1
        assert syncs_of(storage) == done


def test_a_name_that_comes_while_others_are_synced_waits_for_the_next():
    class Gated(SimulatedStorage):
        def sync_directory(self, path: str) -> None:
            arrived.set()
            assert gate.wait(60)
            super().sync_directory(path)

    arrived, gate = threading.Event(), threading.Event()
    gate.set()
    storage = Gated()
    storage.make_directory("/room")
    names, done = SharedSync(storage, "/room"), syncs_of(storage)
    names.made()
    arrived.clear()
    gate.clear()
    first = threading.Thread(target=names.sync)
    first.start()
    assert arrived.wait(60)
    names.made()  # too late for that one
    second = threading.Thread(target=names.sync)
    second.start()
    gate.set()
    first.join(60)
    second.join(60)
    assert syncs_of(storage) == done + 2
