"""What fails in the background: full disks, damage, an owner that leaves; told to the owner once, or tried again."""

import errno
import os
import random

import pyarrow as pa
import pytest
from window_model import SEED, Deferred, History, Inline, ids_of, probe, small_window

from engine._core.id_run import BLOCK_SIZE_BYTES
from engine.background import BackgroundThread
from engine.errors import CorruptState, StateError
from engine.stages.deduplicator import Deduplicator
from engine.stages.sealed_run import SealedRun
from engine.storage import File, Storage
from engine.testing.storage import SimulatedStorage
from engine.testing.storage_faults import FailCall


class TightFile(File):
    """A file on a disk that may be full."""

    disk: "TightDisk"

    def append(self, *buffers):
        self.disk.take(self.path)
        return super().append(*buffers)


class TightDisk(Storage):
    """Has no room for the files whose name passes ``full``; counts how often it said so."""

    def __init__(self, error=errno.ENOSPC):
        self.full = lambda name: False
        self.error = error
        self.refused = 0

    def take(self, path):
        if self.full(os.path.basename(path)):
            self.refused += 1
            raise OSError(self.error, os.strerror(self.error), path)

    def create(self, path, **options):
        file = super().create(path, **options)
        file.__class__ = TightFile
        file.disk = self
        return file


def width(name):
    """How many positions the run of this name covers; 0 for other files."""
    parts = name.split(".")[0].split("-")
    return int(parts[2]) - int(parts[1]) if parts[0] == "run" else 0


def fill(window, history, rows, *, first=0, seed=3):
    """Probe rows in small batches, with some duplicates from all the past."""
    chance = random.Random(seed)
    for start in range(first, first + rows, 50):
        numbers = [start + i if chance.random() < 0.9 else chance.randrange(start + 1) for i in range(50)]
        assert probe(window, numbers) == history.probe(numbers)


BACKGROUNDS = [Inline, lambda: BackgroundThread("test-runs")]


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_merge_without_room_is_put_off_and_done_later(tmp_path, background):
    disk, events = TightDisk(), []
    disk.full = lambda name: width(name) > 150
    window = small_window(
        tmp_path,
        within=None,
        storage=disk,
        background=background(),
        instrument=lambda event, **fields: events.append(event),
    )
    history = History(None)
    fill(window, history, 6_000)
    short = window.statistics()
    assert short.merges_postponed == events.count("merge.postponed") > 0
    assert short.merges_postponed <= disk.refused
    assert short.runs > 30
    left = {name for name in os.listdir(tmp_path) if width(name) > 150}
    assert not left
    disk.full = lambda name: False
    fill(window, history, 3_000, first=6_000)
    relieved = window.statistics()
    assert relieved.merges > short.merges
    assert relieved.runs < short.runs
    window.close()


def test_without_room_for_merges_files_do_not_become_ever_more(tmp_path):
    disk = TightDisk()
    disk.full = lambda name: width(name) > 150
    window = small_window(tmp_path, within=None, storage=disk, filters_on_top=True, memory_bytes=8_000)
    with pytest.raises(OSError, match="No space"):
        fill(window, History(None), 60_000)
    assert window.statistics().runs == 256
    window.close()


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_seal_without_room_is_an_error_and_the_end(tmp_path, background):
    disk = TightDisk()
    window = small_window(tmp_path, within=None, storage=disk, background=background())
    history = History(None)
    fill(window, history, 1_000)
    disk.full = lambda name: width(name) > 0
    with pytest.raises(OSError, match="No space") as caught:
        fill(window, history, 1_000, first=1_000)
    assert caught.value.filename.endswith(".ids.tmp")
    with pytest.raises(StateError, match="restore the last checkpoint"):
        probe(window, [1])
    window.close()


def test_a_deduplicator_without_room_says_what_to_do_and_that_helps(tmp_path, monkeypatch):
    def batch(first):
        return pa.record_batch({"id": pa.array(range(first, first + 10_000))})

    def take(firsts):
        for first in firsts:
            seen.commit(seen.probe(batch(first)).token)

    def full(storage, path, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    with Deduplicator("id", memory="2MiB", spill=tmp_path) as seen:
        take([0])
        snapshot = seen.snapshot()
        with monkeypatch.context() as patched:
            patched.setattr(Storage, "create", full)
            with pytest.raises(OSError, match="No space"):
                take(range(10_000, 1_000_000, 10_000))
            for attempt in (lambda: seen.probe(batch(0)), seen.snapshot):
                with pytest.raises(StateError, match=r"restore\(snapshot\) or begin anew") as caught:
                    attempt()
                assert "checkpoint" not in str(caught.value)
        seen.restore(snapshot)
        assert seen.probe(batch(5_000)).duplicates == 5_000
    assert os.listdir(tmp_path) == []


def test_another_error_while_merging_is_not_put_off(tmp_path):
    disk = TightDisk(errno.EIO)
    disk.full = lambda name: width(name) > 150
    window = small_window(tmp_path, within=None, storage=disk)
    with pytest.raises(OSError, match="Input/output"):
        fill(window, History(None), 6_000)
    window.close()


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_damage_that_a_merge_meets_is_told_naming_file_and_offset(tmp_path, background):
    work = background()
    window = small_window(tmp_path, within=None, background=work)
    fill(window, History(None), 2_000)
    if isinstance(work, BackgroundThread):
        work.join()
    names = sorted(name for name in os.listdir(tmp_path) if width(name))
    for name in names:
        damaged = bytearray((tmp_path / name).read_bytes())
        damaged[100] ^= 1
        with (tmp_path / name).open("r+b") as file:
            file.write(damaged)

    def only_fresh_keys():
        for first in range(10**6, 10**6 + 50_000, 50):
            token, _ = window.probe_ids(ids_of(range(first, first + 50)), 50)
            window.commit(token)

    with pytest.raises(CorruptState, match="block 0 is damaged") as caught:
        only_fresh_keys()
    assert os.path.basename(caught.value.path) in names
    assert caught.value.offset == 0
    window.close()


def test_closing_ends_what_is_under_way_and_leaves_no_half_file(tmp_path):
    background = Deferred()
    window = small_window(tmp_path, within=None, background=background, durable=False)
    history = History(None)
    first = 0
    while len(background.jobs) < 2:
        fill(window, history, 50, first=first)
        background.take_steps(1)
        first += 50
    finished = {run.path for run in window._runs._runs}
    window.close()
    assert all(job.done for job in background.jobs)
    assert {str(tmp_path / name) for name in os.listdir(tmp_path)} == finished


def test_closing_a_deduplicator_at_work_removes_everything(tmp_path):
    for rows in (100_000, 400_000, 900_000):
        with Deduplicator("id", memory="2MiB", spill=tmp_path) as seen:
            for first in range(0, rows, 50_000):
                seen.commit(seen.probe(pa.record_batch({"id": pa.array(range(first, first + 50_000))})).token)
        assert os.listdir(tmp_path) == []


@pytest.fixture
def sealed(tmp_path):
    """A window whose only run's filter lies in two pages, and its state."""
    window = small_window(tmp_path, within=None, memory_bytes=300_000, chunk_ids=4_096)
    numbers = range(8_000)
    probe(window, numbers)
    state = window.snapshot()
    window.release(state)
    window.close()
    assert [run["count"] for run in state["runs"]] == [4_096]
    return tmp_path, state


def test_a_filter_page_that_is_damaged_later_is_built_again(sealed):
    directory, state = sealed
    path = directory / state["runs"][0]["file"]
    window = small_window(directory, within=None, memory_bytes=300_000, chunk_ids=4_096)
    window.restore(state)
    run = window._runs._runs[0]
    intact = bytes(run.filter.blocks)
    assert len(intact) == 8_192
    run.filter.unload()
    window._runs._describe_to(window._window)
    content = bytearray(path.read_bytes())
    at = content.index(intact)
    content[at + 10] ^= 0xFF
    content[at + 5_000 : at + 5_100] = bytes(100)
    with path.open("r+b") as file:
        file.write(content)
    assert probe(window, range(9_000)) == bytes(8_000) + b"\1" * 1_000
    run.filter.load()
    assert bytes(run.filter.blocks) == intact
    window.close()


def test_a_filter_whose_blocks_are_damaged_too_is_told(sealed):
    directory, state = sealed
    path = directory / state["runs"][0]["file"]
    content = bytearray(path.read_bytes())
    footer_and_filter = 128 + 8_192
    content[-footer_and_filter + 3] ^= 1
    content[3 * BLOCK_SIZE_BYTES + 77] ^= 1
    path.write_bytes(content)
    window = small_window(directory, within=None, memory_bytes=300_000, chunk_ids=4_096)
    with pytest.raises(CorruptState, match="block 3 is damaged") as caught:
        window.restore(state)
    assert (caught.value.path, caught.value.offset) == (str(path), 3 * BLOCK_SIZE_BYTES)
    window.close()


def test_a_run_of_the_first_format_is_read():
    directory = os.path.join(os.path.dirname(__file__), "golden")
    run = SealedRun.open(Storage(), directory, "run-v1.ids", SEED)
    assert (run.count, run.first, run.stop, run.last_position) == (700, 1_000, 1_700, 1_699)
    ids = b"".join(number.to_bytes(16, "big") for number in [*(n * n for n in range(700)), 2, 3, 5])
    assert run.find(ids).tolist() == [*range(1_000, 1_700), *[2**64 - 1] * 3]
    run.filter.load()
    assert run.filter.block_count == 44
    run.close()


def test_a_run_that_cannot_be_removed_does_not_keep_the_window_from_closing():
    background = Deferred()
    storage = SimulatedStorage(1, faults=[FailCall("unlink", errno=errno.EACCES, times=None)])
    window = small_window("/window", within=None, storage=storage, background=background, durable=False)
    history = History(None)
    first = 0
    while len(background.jobs) < 2:
        fill(window, history, 50, first=first)
        background.take_steps(1)
        first += 50
    window.close()
    assert storage.fired["unlink EACCES"] >= 1
    assert all(job.done for job in background.jobs)
