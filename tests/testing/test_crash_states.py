"""The explorer visits every end of a short run, none twice, and a fair share of those of a long one."""

import random
from itertools import product

import pytest

from engine.testing.crash_states import count_ends, crash_states
from engine.testing.disk import NOISE_BYTES, Loss
from engine.testing.storage import SimulatedStorage

ALL = 10**6


def contents_at(storage, changes, *, noise=False):
    """The distinct states that a program may find after so many whole changes; noise is left out."""
    found = [state.storage().contents() for state in crash_states(storage, most=ALL) if state.changes == changes]
    return [image for image in found if noise or all(set(data or b"") <= set(b"\0abcdef") for data in image.values())]


def test_a_create_and_a_write():
    storage = SimulatedStorage(record=True)
    storage.create("f").append(b"abc")
    assert contents_at(storage, 0) == [{}]
    assert contents_at(storage, 1) == [
        *({}, {"/f": b""}),  # the name is lost, or kept
        *({"/f": b"\0"}, {"/f": b"a"}, {"/f": b"\0\0"}, {"/f": b"ab"}),  # within the write: the length alone, or all
    ]
    assert contents_at(storage, 2) == [{}, {"/f": b""}, {"/f": b"\0\0\0"}, {"/f": b"abc"}]


def test_every_sector_by_itself():
    storage = SimulatedStorage(record=True)
    file = storage.create("f")
    storage.sync_directory("/")
    file.append(b"a" * 512 + b"b" * 512)
    images = [image["/f"] for image in contents_at(storage, 3)]
    a, b, zeros = b"a" * 512, b"b" * 512, bytes(512)
    assert sorted(images) == sorted([b"", zeros + zeros, a + zeros, zeros + b, a + b])
    images = [image["/f"] for image in contents_at(storage, 2)]
    assert a[:100] in images
    assert a + b[:300] in images
    assert zeros + b[:300] in images


def test_every_set_of_names():
    storage = SimulatedStorage(record=True)
    for name in "abc":
        storage.create(name)
    assert len(contents_at(storage, 3)) == 8
    storage.sync_directory("/")
    assert len(contents_at(storage, 4)) == 1


def test_a_sync_leaves_one_state_and_a_failed_one_does_not():
    storage = SimulatedStorage(record=True)
    file = storage.create("f")
    storage.sync_directory("/")
    file.append(b"abc")
    file.sync()
    assert contents_at(storage, 4) == [{"/f": b"abc"}]


def test_no_state_comes_twice_and_the_seed_decides():
    storage = SimulatedStorage(record=True)
    for name in "abcdef":
        storage.create(name).append(name.encode() * 2000)
    storage.sync_directory("/")

    def sample(seed):
        return [(state.changes, state.disk.digest()) for state in crash_states(storage, most=500, seed=seed)]

    first = sample(1)
    assert len(first) == len(set(first))
    assert 250 < len(first) <= 500
    assert first == sample(1) != sample(2)
    assert {changes for changes, _ in first} == set(range(14))


def test_the_first_of_a_sample_keeps_nothing_and_the_next_everything():
    storage = SimulatedStorage(record=True)
    for name in "abcdef":
        storage.create(name).append(name.encode() * 2000)
    whole = [state for state in crash_states(storage, most=400) if state.changes == 12]
    assert whole[0].storage().contents() == {}
    assert whole[1].storage().contents() == storage.contents()


def some_run(seed):
    """A few files that are written, synced, cut, renamed and removed, some of them durable."""
    chance = random.Random(seed)
    storage = SimulatedStorage(record=True)
    storage.make_directory("d")
    names = ["a", "d/b", "d/c"]
    for number in range(9):
        name = chance.choice(names)
        match chance.randrange(6):
            case 0 | 1:
                with storage.open(name, write=True) if storage.exists(name) else storage.create(name) as file:
                    file.append(bytes([number]) * chance.choice([1, 40, 600]))
            case 2 if storage.exists(name):
                with storage.open(name, write=True) as file:
                    file.truncate(chance.randrange(file.size + 1))
                    file.sync()
            case 3 if storage.exists(name):
                storage.rename(name, chance.choice(names))
            case 4 if storage.exists(name):
                storage.unlink(name)
            case _:
                storage.sync_directory(chance.choice(["/", "d"]))
    return storage


@pytest.mark.parametrize("seed", [0, 1, 4, 5])
def test_what_is_left_out_or_shared_would_have_been_the_same(seed):
    """Against the plain way: every choice there is, each image made by itself on a disk of its own."""
    storage = some_run(seed)
    disk, steps = storage.recording
    noise, disk = random.Random(1).randbytes(NOISE_BYTES), disk.copy()
    plain, ends = set(), 0
    for number, (_, change) in enumerate([(None, None), *steps]):
        if change is not None:
            disk.apply(change)
        loss = Loss(disk.copy(), noise)
        for choice in product(*map(range, loss.ways)):
            fresh = SimulatedStorage(disk=Loss(disk.copy(), noise).image(choice).copy())
            plain.add((number, tuple(fresh.contents().items())))
            assert loss.digest(choice) == fresh._machine.disk.digest()
            ends += 1
        few = [tuple(SimulatedStorage(disk=loss.image(choice)).contents().items()) for choice in loss.choices()]
        assert {(number, contents) for contents in few} == {entry for entry in plain if entry[0] == number}
        assert len(few) <= loss.count
    assert ends > len(plain) > 20
    assert count_ends(storage) >= ends  # those within a write, too


def test_ends_behind_so_many_changes():
    storage = some_run(3)
    every = [(state.changes, state.disk.digest()) for state in crash_states(storage, most=None)]
    for since in (0, 4, storage.changes):
        some = [(state.changes, state.disk.digest()) for state in crash_states(storage, most=None, since=since)]
        assert some == [entry for entry in every if entry[0] >= since]
    assert len({changes for changes, _ in every}) == storage.changes + 1


def test_each_reboot_is_another_storage():
    storage = SimulatedStorage(record=True)
    storage.create("f")
    storage.sync_directory("/")
    *_, last = crash_states(storage, most=ALL)
    last.storage().unlink("f")
    assert last.storage().contents() == {"/f": b""}
    assert "changes=2" in repr(last)


def test_what_was_open_at_the_beginning_may_still_be_lost():
    storage = SimulatedStorage(record=True)
    storage.create("f").append(b"abc")
    after = storage.kill()
    after.create("g")
    images = contents_at(after, 1)
    assert {"/f": b"abc", "/g": b""} in images
    assert {"/g": b""} in images
    assert {} in images


def test_only_a_recording_storage_can_be_explored():
    with pytest.raises(ValueError, match="record=True"):
        next(crash_states(SimulatedStorage(), most=1))
