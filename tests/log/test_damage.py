"""A log after crashes and damage: what was acknowledged is there, or the damage is told; nothing else is given out."""

import errno
import random
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from engine import Log
from engine.errors import CorruptLog, LogError
from engine.log.format import HEADER_BYTES
from engine.storage import File, Storage
from engine.testing.storage import SimulatedStorage

PATH = Path("/srv/log")


def rows(start: int, count: int) -> pa.RecordBatch:
    return pa.record_batch({"n": pa.array(range(start, start + count), pa.int64())})


def numbers(batches) -> list[int]:
    return [n for batch in batches for n in batch.column("n").to_pylist()]


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def restore(files: dict[str, bytes], path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    (path / "partition-00000").mkdir(parents=True)
    for name, data in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.fixture
def unclosed(tmp_path) -> dict[str, bytes]:
    """Three appends of five rows, all acknowledged, as a power cut leaves them: no mark, no published offset."""
    log = Log(tmp_path / "made")
    for start in (0, 5, 10):
        log.append(rows(start, 5))
    files = contents(tmp_path / "made")
    log.close()
    del files["partition-00000/durable"]
    return files


def segment_of(files: dict[str, bytes]) -> str:
    [name] = [name for name in files if name.endswith(".seg")]
    return name


def opened(path: Path, storage: Storage | None = None) -> tuple[list[int], int]:
    with Log(path, storage=storage or Storage()) as log:
        found = numbers(log.read())
        assert log.append(rows(len(found), 2)) == len(found) + 2
        return found, sum(torn.size_bytes for torn in log.torn)


def simulated(files: dict[str, bytes]) -> SimulatedStorage:
    """A log at PATH on a simulated disk, where no sync takes time."""
    storage = SimulatedStorage()
    for name, data in files.items():
        storage.make_directory(str((PATH / name).parent))
        with storage.create(str(PATH / name)) as file:
            if data:
                file.append(data)
    return storage


def simulated_contents(storage: SimulatedStorage) -> dict[str, bytes]:
    found = storage.contents(str(PATH)).items()
    return {str(Path(path).relative_to(PATH)): data for path, data in found if data is not None}


def test_a_tail_that_is_cut_at_every_byte_is_torn_or_damage(unclosed):
    name = segment_of(unclosed)
    data = unclosed[name]
    verdicts = Counter()
    for size in range(len(data)):
        storage = simulated(unclosed | {name: data[:size]})
        before = simulated_contents(storage)
        try:
            found, torn = opened(PATH, storage)
        except CorruptLog as error:
            # The last frame that is whole proves the rows of the frames before it.
            assert (error.path, size < HEADER_BYTES) == (str(PATH / name), True)  # noqa: PT017
            verdicts["damage"] += 1
            del before["LOCK"]
            assert simulated_contents(storage).items() >= before.items()
            continue
        assert found == list(range(len(found)))
        assert simulated_contents(storage)[name] == data[:size]
        verdicts["torn" if torn else "whole"] += 1
        assert numbers(Log(PATH, storage=storage).read()) == [*found, *range(len(found), len(found) + 2)]
    assert verdicts == {"damage": HEADER_BYTES, "torn": len(data) - HEADER_BYTES - 3, "whole": 3}


@pytest.mark.parametrize("filling", ["zeros", "garbage", "old"])
def test_bytes_behind_the_end_are_torn(tmp_path, unclosed, filling):
    name = segment_of(unclosed)
    tail = {"zeros": bytes(500), "garbage": random.Random(1).randbytes(500), "old": unclosed[name][-384:]}[filling]
    path = restore(unclosed | {name: unclosed[name] + tail}, tmp_path / "longer")
    assert opened(path) == (list(range(15)), len(tail))


def test_every_flipped_bit_below_what_is_durable_is_told(tmp_path, seed):
    log = Log(tmp_path / "made", segment_bytes=300)
    for start in range(0, 30, 5):
        log.append(rows(start, 5))
    log.close()
    files = contents(tmp_path / "made")
    del files["LOCK"]
    flips = [(name, bit) for name, data in files.items() for bit in range(len(data) * 8)]
    chance = random.Random(seed)
    told = Counter()
    for name, bit in chance.sample(flips, 600):
        data = bytearray(files[name])
        data[bit // 8] ^= 1 << bit % 8
        path = restore(files | {name: bytes(data)}, tmp_path / "flipped")
        before = contents(path)
        try:
            with Log(path, write=False) as log:
                beside = numbers(log.read())
            with Log(path) as log:
                found = numbers(log.read())
        except CorruptLog as error:
            assert error.path.startswith(str(path))  # noqa: PT017 - which of the two it is, is the question
            told[name.split("/")[-1].split(".")[-1]] += 1
        else:
            # A hint of what is durable, or the padding and the mark behind the last row, which nothing reads.
            assert beside == found[: len(beside)]
            assert found == list(range(30)) or name.endswith("durable"), (name, bit)
        after = contents(path)
        for file in before:
            assert file.endswith("durable") or after[file] == before[file]
    assert told["seg"] > 300
    assert told["LOG"] > 10


@pytest.fixture
def seed(request) -> int:
    value = request.config.getoption("--seed", default=None)
    value = random.SystemRandom().randrange(1 << 32) if value is None else int(value)
    print(f"seed {value}")
    return value


def test_readers_do_not_depend_on_the_published_offset(tmp_path):
    with Log(tmp_path / "log") as log:
        log.append(rows(0, 5))
    (tmp_path / "log/partition-00000/durable").unlink()
    with Log(tmp_path / "log", write=False) as log:
        assert numbers(log.read()) == [0, 1, 2, 3, 4]


def test_missing_and_foreign_segments_are_told(tmp_path):
    with Log(tmp_path / "log", segment_bytes=300) as log:
        for start in range(0, 30, 5):
            log.append(rows(start, 5))
    files = contents(tmp_path / "log")
    segments = sorted(name for name in files if name.endswith(".seg"))
    assert len(segments) > 3
    for gone, reason in ((0, "segment 0 before it is missing"), (2, "segment 2 before"), (-1, "were durable")):
        path = restore({name: data for name, data in files.items() if name != segments[gone]}, tmp_path / "gone")
        with pytest.raises(CorruptLog, match=reason):
            Log(path)
    swapped = restore(files | {segments[1]: files[segments[2]]}, tmp_path / "swapped")
    with pytest.raises(CorruptLog, match="it was written as"):
        Log(swapped)
    with Log(tmp_path / "other") as other:
        other.append(rows(0, 5))
    [foreign] = (tmp_path / "other").rglob("*.seg")
    path = restore(files | {segments[0]: foreign.read_bytes()}, tmp_path / "foreign")
    with pytest.raises(CorruptLog, match="belongs to partition 0 of log"):
        Log(path)
    path = restore(files | {"partition-00000/unknown.txt": b"kept"}, tmp_path / "unknown")
    Log(path).close()
    assert (path / "partition-00000/unknown.txt").read_bytes() == b"kept"


def test_damage_in_an_older_segment_is_told_where_it_is_read(tmp_path):
    with Log(tmp_path / "log", segment_bytes=300) as log:
        for start in range(0, 30, 5):
            log.append(rows(start, 5))
        damaged = sorted((tmp_path / "log").rglob("*.seg"))[1]
        data = damaged.read_bytes()
        damaged.write_bytes(data[:-200])
        assert numbers(log.read(0, 5)) == [0, 1, 2, 3, 4]
        with pytest.raises(CorruptLog, match=r"is damaged at byte \d+") as told:
            list(log.read())
        assert told.value.path == str(damaged)
        assert numbers(log.read(20)) == list(range(20, 30))


class Failing(Storage):
    """Files whose calls fail as often as ``failures`` says, by the name of the call; counts what fired."""

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()
        self.fired: Counter[str] = Counter()
        self.error = errno.EIO

    def fail(self, call: str) -> None:
        if self.failures[call]:
            self.failures[call] -= 1
            self.fired[call] += 1
            raise OSError(self.error, "injected")

    def create(self, path: str, *, mode: int = 0o600) -> File:
        self.fail("create")
        file = super().create(path, mode=mode)
        if ".seg" in path:
            sync, append = file.sync, file.append

            def failing_sync() -> None:
                self.fail("sync")
                sync()

            def failing_append(*buffers) -> int:
                if self.failures["append"]:
                    append(buffers[0])  # a short write comes before the error
                    file._size -= len(buffers[0])
                self.fail("append")
                return append(*buffers)

            file.sync, file.append = failing_sync, failing_append  # type: ignore[method-assign]
        return file


def test_a_failed_sync_is_not_retried_and_its_rows_go_to_a_new_segment(tmp_path):
    storage = Failing()
    with Log(tmp_path / "log", storage=storage) as log:
        log.append(rows(0, 5))
        storage.failures["sync"] = 1
        assert log.append(rows(5, 5)) == 10
        assert log.append(rows(10, 5)) == 15
        assert numbers(log.read()) == list(range(15))
    assert storage.fired == {"sync": 1}
    segments = sorted(path.name for path in (tmp_path / "log").rglob("*.seg"))
    assert [int(name[:20]) for name in segments] == [0, 5]
    with Log(tmp_path / "log") as log:
        assert numbers(log.read()) == list(range(15))


def test_syncs_that_go_on_failing_close_the_log_to_appends(tmp_path):
    storage = Failing()
    log = Log(tmp_path / "log", storage=storage)
    log.append(rows(0, 5))
    storage.failures["sync"] = 2
    with pytest.raises(LogError, match="could not be made durable"):
        log.append(rows(5, 5))
    with pytest.raises(LogError, match="an earlier append could not be made durable"):
        log.append(rows(5, 5))
    assert log.end() == 5
    assert numbers(log.read()) == [0, 1, 2, 3, 4]
    with pytest.raises(LogError):
        log.close()
    assert storage.fired == {"sync": 2}
    with Log(tmp_path / "log") as log:
        assert numbers(log.read())[:5] == [0, 1, 2, 3, 4]
        assert numbers(log.read()) == list(range(log.end()))


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_failed_write_appends_nothing_and_the_next_one_may_succeed(tmp_path, error):
    storage = Failing()
    storage.error = error
    with Log(tmp_path / "log", storage=storage) as log:
        log.append(rows(0, 5))
        for _ in range(3):
            storage.failures["append"] = 1
            with pytest.raises(LogError, match="could not be written"):
                log.append(rows(100, 50))
        assert log.append(rows(5, 5)) == 10
        assert numbers(log.read()) == list(range(10))
    assert storage.fired == {"append": 3}
    with Log(tmp_path / "log") as log:
        assert (numbers(log.read()), log.torn) == (list(range(10)), ())


def test_a_segment_that_cannot_be_made_appends_nothing(tmp_path):
    storage = Failing()
    with Log(tmp_path / "log", storage=storage, segment_bytes=300) as log:
        log.append(rows(0, 5))
        log.roll()
        storage.failures["create"] = 1
        with pytest.raises(LogError, match="could not be written"):
            log.append(rows(5, 5))
        assert log.append(rows(5, 5)) == 10
        assert numbers(log.read()) == list(range(10))
    assert storage.fired == {"create": 1}
