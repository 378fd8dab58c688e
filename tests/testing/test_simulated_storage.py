"""What a simulated storage does to those who trust it: every fault fires, is counted, and comes again with its seed."""

import errno
import threading

import pytest

from engine.storage import Held
from engine.testing.storage import PowerLost, SimulatedStorage
from engine.testing.storage_faults import CutPower, FailCall, FlipBit, LyingSync, ShortWrite, SlowCall

SEEDS = range(200)


def written(storage, *pieces, name="f"):
    file = storage.create(name)
    for piece in pieces:
        file.append(piece)
    return file


def after_crashes(make, survives="some"):
    """The distinct contents that the crashes of many seeds leave."""
    found = []
    for seed in SEEDS:
        storage = SimulatedStorage(seed)
        make(storage)
        after = storage.crash(survives).contents()
        if after not in found:
            found.append(after)
    return found


def test_what_was_synced_stays_and_the_rest_goes():
    storage = SimulatedStorage()
    storage.make_directory("a")
    file = written(storage, b"kept", name="a/f")
    file.sync()
    storage.sync_directory("a")
    file.append(b"lost")
    storage.create("a/g").sync()
    assert storage.crash("nothing").contents() == {"/a": None, "/a/f": b"kept"}


def test_everything_may_stay_too():
    storage = SimulatedStorage()
    storage.make_directory("a")
    written(storage, b"x" * 700, b"y" * 700, name="a/f")
    storage.rename("a/f", "a/g")
    before = storage.contents()
    assert storage.crash("everything").contents() == before == {"/a": None, "/a/g": b"x" * 700 + b"y" * 700}


def test_a_name_does_not_outlive_the_crash_because_its_bytes_do():
    storage = SimulatedStorage()
    written(storage, b"bytes").sync()
    assert storage.crash("nothing").contents() == {}


def test_any_set_of_sectors_survives():
    def make(storage):
        file = written(storage, b"a" * 512, b"b" * 512)
        storage.sync_directory("/")
        file.truncate(1024)

    def sectors(image):
        data = image["/f"].ljust(1024, b"-")
        halves = (data[:512], data[512:])
        return "".join({b"a" * 512: "a", b"b" * 512: "b", b"-" * 512: "-", bytes(512): "0"}.get(h, "?") for h in halves)

    found = {sectors(image) for image in after_crashes(make)}
    assert {"--", "a-", "ab", "a0", "0b", "?b", "a?"} <= found


def test_what_a_removed_file_left_shows_through():
    def make(storage):
        written(storage, b"old" * 200, name="old").sync()
        storage.unlink("old")
        written(storage, b"n" * 512)
        storage.sync_directory("/")

    assert any(image["/f"] == (b"old" * 200)[:512] for image in after_crashes(make))


def test_any_set_of_renames_survives_and_each_is_whole():
    def make(storage):
        for name in "ab":
            written(storage, name.encode(), name=name).sync()
        storage.sync_directory("/")
        storage.rename("a", "A")
        storage.rename("b", "B")

    found = after_crashes(make)
    assert len(found) == 4
    assert all(("/a" in image) != ("/A" in image) and ("/b" in image) != ("/B" in image) for image in found)


def test_a_rename_is_durable_in_both_directories_at_once():
    for synced in ("from", "to"):
        storage = SimulatedStorage()
        storage.make_directory("from")
        storage.make_directory("to")
        written(storage, b"x", name="from/f").sync()
        storage.rename("from/f", "to/f")
        storage.sync_directory(synced)
        assert storage.crash("nothing").contents() == {"/from": None, "/to": None, "/to/f": b"x"}


def test_after_a_crash_nothing_goes_on():
    storage = SimulatedStorage()
    file = written(storage, b"x")
    lock = storage.lock("LOCK")
    after = storage.crash("everything")
    uses = [lambda: file.append(b"y"), lambda: file.pread(1, 0), file.sync, lock.check]
    for call in [*uses, lambda: storage.list("/"), lambda: storage.exists("f"), lambda: storage.create("g")]:
        with pytest.raises(PowerLost):
            call()
    file.close()
    lock.release()
    after.lock("LOCK").check()
    assert (storage.fired["crash"], after.fired) == (1, {})


def test_a_kill_frees_the_locks_and_leaves_the_cache():
    storage = SimulatedStorage()
    written(storage, b"x")
    lock = storage.lock("LOCK")
    with pytest.raises(Held):
        storage.lock("LOCK")
    after = storage.kill()
    after.lock("LOCK").check()
    lock.release()
    assert after.contents()["/f"] == b"x"
    assert after.crash("nothing").contents() == {}


def test_a_failed_sync_drops_the_bytes_and_a_second_one_would_not_say_so():
    storage = SimulatedStorage(faults=[FailCall("sync", errno=errno.EIO)])
    file = written(storage, b"lost")
    storage.sync_directory("/")
    with pytest.raises(OSError, match="Input/output error"):
        file.sync()
    with pytest.raises(OSError, match="an earlier sync failed"):
        file.sync()
    with storage.open("f") as again:
        again.sync()  # as Linux does: no error, and no bytes
        assert again.pread(4, 0) == b"lost"
    assert storage.fired == {"sync EIO": 1}
    assert storage.crash("everything").contents() == {"/f": bytes(4)}


def test_a_lying_sync_returns():
    storage = SimulatedStorage(faults=[LyingSync(times=2)])
    file = written(storage, b"x")
    file.sync()
    storage.sync_directory("/")
    assert storage.fired["lying sync"] == 2
    assert storage.crash("nothing").contents() == {}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_takes_a_part_first(number):
    taken = set()
    for seed in SEEDS:
        storage = SimulatedStorage(seed, faults=[FailCall("append", nth=2, errno=number)])
        file = written(storage, b"kept")
        with pytest.raises(OSError) as full:
            file.append(b"0123456789")
        assert (full.value.errno, file.size) == (number, 4)
        taken.add(len(storage.contents()["/f"]) - 4)
        assert file.append(b"again") == 9
        assert file.pread(9, 0) == b"keptagain"
    assert taken == set(range(10))


def test_space_comes_back():
    storage = SimulatedStorage()
    storage.capacity_bytes = 10
    written(storage, b"12345", name="old")
    file = written(storage, b"abc")
    with pytest.raises(OSError) as full:
        file.append(b"defg")
    assert full.value.errno == errno.ENOSPC
    assert storage.contents()["/f"] == b"abcde"
    storage.unlink("old")
    assert file.append(b"defg") == 7
    assert storage.fired == {"disk full": 1}


def test_short_writes_are_continued():
    storage = SimulatedStorage(3, faults=[ShortWrite(times=4)])
    file = written(storage, bytes(range(200)))
    assert file.pread(200, 0) == bytes(range(200))
    assert storage.fired["short write"] == 4
    assert [call.name for call in storage.trace].count("append") == 5


def test_a_power_cut_tears_the_write():
    left = set()
    for seed in SEEDS:
        storage = SimulatedStorage(seed, faults=[CutPower("append", nth=2)])
        file = written(storage, b"")
        storage.sync_directory("/")
        file.append(b"kept")
        with pytest.raises(PowerLost):
            file.append(b"torn")
        assert storage.fired == {"power cut": 1}
        left.add(storage.crash("everything").contents()["/f"])
    assert left == {b"kept", b"keptt", b"keptto", b"kepttor"}


def test_a_bit_flips_and_stays():
    storage = SimulatedStorage(faults=[FlipBit(nth=2)])
    file = written(storage, bytes(100))
    file.sync()
    storage.sync_directory("/")
    assert file.pread(100, 0) == bytes(100)
    damaged = file.pread(10, 40)
    assert sum(byte.bit_count() for byte in damaged) == 1
    assert file.pread(10, 40) == damaged
    bit = storage.flip_bit("f")
    storage.flip_bit("f", bit)
    assert storage.fired["bit flip"] == 3
    assert storage.crash("nothing").contents()["/f"][40:50] == damaged


def test_slow_calls_go_by_the_clock_of_the_test():
    waits = []
    storage = SimulatedStorage(faults=[SlowCall("sync", 30.0, times=None)], sleep=waits.append)
    file = written(storage, b"x")
    file.sync()
    file.sync()
    assert waits == [30.0, 30.0]
    assert storage.fired["slow sync"] == 2


def test_others_go_on_while_a_call_is_slow():
    storage = SimulatedStorage(faults=[SlowCall("sync", 30.0)], sleep=lambda _: (other.start(), other.join()))
    file = written(storage, b"x")
    other = threading.Thread(target=lambda: written(storage, b"meanwhile", name="g"))
    file.sync()
    assert storage.contents()["/g"] == b"meanwhile"


def test_a_call_that_was_waiting_when_the_power_went_does_nothing():
    storage = SimulatedStorage(faults=[SlowCall("sync", 30.0)], sleep=lambda _: left.append(storage.crash("nothing")))
    left = []
    file = written(storage, b"x")
    storage.sync_directory("/")
    with pytest.raises(PowerLost):
        file.sync()
    assert left[0].contents() == {"/f": b""}


def test_faults_are_counted_from_the_nth_and_by_path():
    storage = SimulatedStorage(faults=[FailCall("create", errno=errno.EMFILE, nth=2, times=2, path="*/b*")])
    names = ["a1", "b1", "a2", "b2", "b3", "b4"]
    failed = []
    for name in names:
        try:
            storage.create(name)
        except OSError as error:
            failed.append((name, error.errno))
    assert failed == [("b2", errno.EMFILE), ("b3", errno.EMFILE)]
    assert storage.fired == {"create EMFILE": 2}
    with pytest.raises(ValueError, match='no call "exists" can fail'):
        FailCall("exists")


def test_the_same_seed_gives_the_same_run():
    def run(seed):
        faults = [FailCall("append", errno=errno.EIO, times=None, chance=0.3), ShortWrite(times=None, chance=0.3)]
        storage = SimulatedStorage(seed, faults=faults)
        file = storage.create("f")
        for number in range(40):
            try:
                file.append(bytes([number]) * 100)
            except OSError:
                storage.rename("f", "f")
        return storage.trace, storage.fired, storage.crash().contents()

    assert run(1) == run(1)
    assert run(1) != run(2)
    trace, fired, _ = run(1)
    assert 0 < fired["append EIO"] < 30
    assert fired["short write"] > 3
    assert trace[0] == ("create", "/f", 0)
    assert trace[1] == ("append", "/f", 100)
