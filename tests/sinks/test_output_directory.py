"""Whose directory it is, what is staged, and what is published: the same for every sink of files."""

import errno
import os
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sink_runs import INCARNATION, OTHER, files_below, opened, origin, staged, staging_directories, token, written

from engine.errors import PipelineError, SinkError
from engine.sink import Guarantee, Sink, Writer
from engine.sinks.arrow_ipc_files import arrow_ipc
from engine.sinks.ownership import FileMark, file_name, looks_like_ours
from engine.sinks.parquet_files import parquet
from engine.storage import File, Storage

ROWS = pa.record_batch({"a": pa.array([1, 2, 3]), "b": pa.array(["x", None, "z"])})
NONE = ROWS.slice(0, 0)
FIRST = "part-00000-00000001-00.parquet"

both = pytest.mark.parametrize("make", [parquet, arrow_ipc])


@both
def test_the_contract(make, tmp_path):
    sink = opened(make(tmp_path / "out"), ROWS.schema)
    assert isinstance(sink, Sink)
    assert isinstance(sink.writer(0, token(1, sink)), Writer)
    assert sink.guarantee is Guarantee.EXACTLY_ONCE
    assert sink.location == str(tmp_path / "out")
    assert sink.name == f"{make.__name__}({tmp_path}/out)" == repr(sink)
    assert make("out/").name == make("./out").name


@both
def test_nothing_is_visible_before_the_commit(make, tmp_path):
    path = tmp_path / "out"
    sink = opened(make(path), ROWS.schema)
    handles = [staged(sink, ROWS, partition=partition) for partition in range(2)]
    assert files_below(path) == []
    assert len(staging_directories(path)) == 1
    sink.commit(handles)
    names = [f"part-{partition:05}-00000001-00.{sink.extension}" for partition in range(2)]
    assert files_below(path) == names
    assert staging_directories(path) == []
    assert (sink.published_files, sink.found_files) == (2, 0)
    assert sink.published_bytes == sum(os.path.getsize(path / name) for name in names)
    assert os.stat(path / names[0]).st_mode & 0o777 == 0o644 & ~_umask()
    sink.commit(handles)
    assert sink.published_files == 2
    again = opened(make(path), ROWS.schema, epoch=1)
    assert again.found_files == 2
    again.commit(handles)
    assert (files_below(path), again.published_files) == (names, 0)


def _umask():
    before = os.umask(0)
    os.umask(before)
    return before


@both
def test_no_rows_make_no_file(make, tmp_path):
    sink = opened(make(tmp_path / "out"), ROWS.schema)
    assert staged(sink, []) is None
    assert staged(sink, NONE) is None
    sink.commit([None, None])
    sink.discard_after(token(1, sink))
    assert files_below(tmp_path) == []


def test_names_sort_in_the_order_of_commits():
    names = [
        file_name(FileMark("i", epoch, "t", "s", partition), part, "parquet", shared=False)
        for partition in (0, 1, 99_999)
        for epoch in (1, 99, 100, 12_345_678)
        for part in (0, 1, 9, 10, 89, 90, 91, 99, 100, 1000, 99_999)
    ]
    assert names == sorted(names)
    assert all(looks_like_ours(name) for name in names)
    assert len(set(names)) == len(names)
    assert not looks_like_ours("part-0.parquet")


# -- whose directory --


def refused(sink, *, epoch=0, match):
    """``open`` must refuse and leave everything as it was."""
    before = files_below(os.path.dirname(os.path.realpath(sink.location)))
    with pytest.raises(SinkError, match=match) as raised:
        opened(sink, ROWS.schema, epoch=epoch)
    assert files_below(os.path.dirname(os.path.realpath(sink.location))) == before
    assert "Nothing was touched" in str(raised.value)
    return str(raised.value)


@both
@pytest.mark.parametrize("name", ["old.parquet", ".DS_Store", "sub/x.txt", FIRST, "part-00000-00000001-00.arrow"])
def test_files_of_others_are_refused(make, tmp_path, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not ours")
    sink = make(tmp_path / "out")
    sink.pipeline = "orders"
    message = refused(sink, match='holds 1 file that "orders" did not write')
    assert f"(first: {name})" in message
    assert f'sinks.{make.__name__}(..., mode="append")' in message


def test_a_foreign_file_with_our_name_but_no_mark_is_refused(tmp_path):
    os.mkdir(tmp_path / "out")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "out" / FIRST)
    refused(parquet(tmp_path / "out"), epoch=5, match="did not write")


@both
def test_another_incarnation_is_refused(make, tmp_path):
    written(make(tmp_path / "out"), ROWS)
    sink = make(tmp_path / "out")
    with pytest.raises(SinkError, match="belongs to another incarnation; choose another directory, or bring back"):
        opened(sink, ROWS.schema, epoch=7, incarnation=OTHER)


@both
def test_a_later_epoch_is_refused(make, tmp_path):
    written(make(tmp_path / "out"), ROWS, epoch=3)
    refused(make(tmp_path / "out"), epoch=2, match=r"committed after epoch 2, (?s:.*) older backup")
    opened(make(tmp_path / "out"), ROWS.schema, epoch=3)


@both
def test_append_leaves_others_alone(make, tmp_path):
    path = tmp_path / "out"
    first = make(path)
    written(first, ROWS)
    (path / "old.csv").write_text("a\n1\n")
    before = {name: (path / name).read_bytes() for name in files_below(path)}
    sink = opened(make(path, mode="append"), ROWS.schema, incarnation=OTHER)
    sink.commit([staged(sink, ROWS, incarnation=OTHER)])
    third = opened(make(path, mode="append"), ROWS.schema, epoch=1, incarnation=OTHER)
    third.commit([staged(third, ROWS, epoch=2, incarnation=OTHER)])
    assert {name: (path / name).read_bytes() for name in before} == before
    assert len(files_below(path)) == len(before) + 2
    with pytest.raises(SinkError, match="committed after epoch 1"):
        opened(make(path, mode="append"), ROWS.schema, epoch=1, incarnation=OTHER)


def test_a_file_in_place_of_the_directory(tmp_path):
    (tmp_path / "out").write_text("x")
    refused(parquet(tmp_path / "out"), match="is a file; a directory is needed")


def test_relative_paths_are_fixed_when_the_run_opens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sink = opened(parquet("new/out/"), ROWS.schema)
    os.mkdir("elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    sink.commit([staged(sink, ROWS)])
    assert files_below(tmp_path) == [f"new/out/{FIRST}"]


def test_a_link_to_the_directory(tmp_path):
    (tmp_path / "disk" / "data").mkdir(parents=True)
    os.symlink(tmp_path / "disk" / "data", tmp_path / "out")
    sink = opened(parquet(tmp_path / "out"), ROWS.schema)
    handle = staged(sink, ROWS)
    assert len(staging_directories(tmp_path / "disk" / "data")) == 1
    sink.commit([handle])
    assert files_below(tmp_path / "disk") == [f"data/{FIRST}"]


def test_a_mount_point_is_refused(tmp_path):
    class TwoDisks(Storage):
        def same_filesystem(self, path, other):
            return False

    os.mkdir(tmp_path / "out")
    sink = parquet(tmp_path / "out")
    sink.storage = TwoDisks()
    refused(sink, match="is a mount point")


# -- recovery --


def test_publishing_again_after_a_restart(tmp_path):
    sink = opened(parquet(tmp_path / "out"), ROWS.schema)
    handles = [staged(sink, ROWS, partition=partition) for partition in range(2)]
    sink.commit(handles[:1])
    again = opened(parquet(tmp_path / "out"), ROWS.schema, epoch=1)
    again.commit(handles)
    again.discard_after(token(1, again))
    assert len(files_below(tmp_path)) == 2


def test_staged_and_published_both_there(tmp_path):
    path = tmp_path / "out"
    sink = opened(parquet(path), ROWS.schema)
    handle = staged(sink, ROWS)
    place = tmp_path / staging_directories(path)[0]
    copy = (place / os.listdir(place)[0]).read_bytes()
    name = os.listdir(place)[0]
    sink.commit([handle])
    os.mkdir(place)
    (place / name).write_bytes(copy)
    again = opened(parquet(path), ROWS.schema, epoch=1)
    again.commit([handle])
    again.discard_after(token(1, again))
    assert files_below(tmp_path) == [f"out/{FIRST}"]


def damage(path):
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("published", [True, False])
def test_a_damaged_file_is_not_published(tmp_path, published):
    path = tmp_path / "out"
    sink = opened(parquet(path), ROWS.schema)
    handle = staged(sink, ROWS)
    if published:
        sink.commit([handle])
        damage(path / FIRST)
    else:
        place = tmp_path / staging_directories(path)[0]
        damage(place / os.listdir(place)[0])
    again = opened(parquet(path), ROWS.schema, epoch=1)
    with pytest.raises(SinkError, match="is damaged"):
        again.commit([handle])


def test_a_vanished_file_is_an_error(tmp_path):
    sink = opened(parquet(tmp_path / "out"), ROWS.schema)
    handle = staged(sink, ROWS)
    sink.commit([handle])
    os.unlink(tmp_path / "out" / FIRST)
    with pytest.raises(SinkError, match="is neither there nor in"):
        sink.commit([handle])


@both
def test_memory_that_runs_out_makes_no_stranger_of_our_file(make, tmp_path):
    sink = opened(make(tmp_path / "out"), ROWS.schema)
    sink.commit([staged(sink, ROWS)])

    class Scarce(Storage):
        def open_input(self, path):
            raise pa.ArrowMemoryError("injected")

    again = make(tmp_path / "out")
    again.storage = Scarce()
    with pytest.raises(SinkError, match=r"cannot be examined: ArrowMemoryError: injected"):
        opened(again, ROWS.schema, epoch=1)


def test_a_stranger_under_the_same_name_is_never_overwritten(tmp_path):
    sink = opened(parquet(tmp_path / "out"), ROWS.schema)
    handle = staged(sink, ROWS)
    pq.write_table(pa.table({"theirs": [1]}), tmp_path / "out" / FIRST)
    with pytest.raises(SinkError, match="bears another mark"):
        sink.commit([handle])
    assert pq.read_table(tmp_path / "out" / FIRST).column_names == ["theirs"]


def test_discarding_what_was_not_committed(tmp_path):
    path = tmp_path / "out"
    sink = opened(parquet(path), ROWS.schema)
    sink.commit([staged(sink, ROWS)])
    staged(sink, ROWS, epoch=2)
    staged(sink, ROWS, epoch=3)
    other = opened(parquet(path, mode="append"), ROWS.schema, incarnation=OTHER)
    staged(other, ROWS, epoch=9, incarnation=OTHER)
    again = opened(parquet(path), ROWS.schema, epoch=1)
    again.discard_after(token(1, again))
    again.discard_after(token(1, again))
    assert files_below(path) == [FIRST]
    assert staging_directories(path) == [f".out.staging-{OTHER[:16]}"]
    again.commit([staged(again, ROWS, epoch=4)])
    assert len(files_below(path)) == 2


def test_a_committed_file_left_in_staging_is_an_error(tmp_path):
    sink = opened(parquet(tmp_path / "out"), ROWS.schema)
    staged(sink, ROWS, epoch=1)
    before = files_below(tmp_path)
    with pytest.raises(SinkError, match="should have been published by epoch 1"):
        sink.discard_after(token(1, sink))
    assert files_below(tmp_path) == before


class Removing(Storage):
    """Another process, on its way into the call since it lost the state directory, takes away a directory just made."""

    def __init__(self):
        self.removed = 0

    def make_directory(self, path, **options):
        super().make_directory(path, **options)
        if ".staging-" in path and not self.removed:
            os.rmdir(path)
            self.removed += 1


def test_what_a_process_does_that_lost_the_state_directory_hinders_nobody(tmp_path):
    """One call each: it leaves an empty file of an epoch that is over, or takes the empty directory away."""
    storage = Removing()
    sink = parquet(tmp_path / "out")
    sink.storage = storage
    opened(sink, ROWS.schema, epoch=1)
    sink.commit([staged(sink, ROWS, epoch=2)])
    assert storage.removed == 1
    staging = tmp_path / f".out.staging-{INCARNATION[:16]}"
    staging.mkdir()
    (staging / "00000-00000001-000000.parquet").touch()
    sink.discard_after(token(2, sink))
    assert files_below(tmp_path) == ["out/part-00000-00000002-00.parquet"]
    assert staging_directories(tmp_path / "out") == []


# -- writers --


@both
def test_abort_leaves_nothing(make, tmp_path):
    sink = opened(make(tmp_path / "out"), ROWS.schema, memory_bytes=1)
    writer = sink.writer(0, token(1, sink))
    writer.write(ROWS, origin=origin())
    assert len(files_below(tmp_path)) == 1
    writer.abort()
    writer.abort()
    assert files_below(tmp_path) == []
    with pytest.raises(SinkError, match="was given up"):
        writer.write(ROWS, origin=origin())


def test_abort_after_prepare_changes_nothing(tmp_path):
    sink = opened(parquet(tmp_path / "out"), ROWS.schema)
    writer = sink.writer(0, token(1, sink))
    writer.write(ROWS, origin=origin())
    handle = writer.prepare()
    writer.abort()
    sink.commit([handle])
    assert files_below(tmp_path / "out") == [FIRST]
    with pytest.raises(SinkError, match="is prepared"):
        writer.write(ROWS, origin=origin())


@both
def test_rows_of_another_schema(make, tmp_path):
    sink = opened(make(tmp_path / "out"), ROWS.schema, memory_bytes=1)
    writer = sink.writer(1, token(1, sink))
    with pytest.raises(SinkError, match=r"rows of in\.parquet rows 0-1 cannot be written") as raised:
        writer.write(pa.record_batch({"a": pa.array(["x"])}), origin=origin())
    assert isinstance(raised.value.__cause__, pa.ArrowInvalid)
    assert raised.value.partition == 1


class FullDisk(Storage):
    """Takes so many bytes."""

    def __init__(self, room):
        self.room = room

    def create(self, path, *, mode=0o600):
        class FullFile(File):
            def append(this, *buffers):  # noqa: N805
                self.room -= sum(memoryview(buffer).nbytes for buffer in buffers)
                if self.room < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), this.path)
                return super().append(*buffers)

        return FullFile(path, os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode), writable=True)


@both
@pytest.mark.parametrize("room", [0, 100, 600])
def test_a_full_disk(make, tmp_path, room):
    sink = make(tmp_path / "out")
    sink.storage = FullDisk(room)
    opened(sink, ROWS.schema)
    with pytest.raises(SinkError, match="No space left on device") as raised:
        staged(sink, ROWS)
    assert "Free space and run again; nothing uncommitted is visible" in str(raised.value)
    assert isinstance(raised.value.__cause__, OSError)
    assert raised.value.__cause__.errno == errno.ENOSPC
    assert ".staging-" in str(raised.value)
    assert files_below(tmp_path) == []


def test_a_failed_sync(tmp_path):
    class NoSync(Storage):
        def sync_directory(self, path):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    sink = opened(parquet(tmp_path / "out"), ROWS.schema)
    handle = staged(sink, ROWS)
    good, sink._output._storage = sink._output._storage, NoSync()
    with pytest.raises(SinkError, match="committed files cannot be published: Input/output error"):
        sink.commit([handle])
    sink._output._storage = good
    sink.commit([handle])


def test_writers_of_many_threads(tmp_path):
    sink = opened(parquet(tmp_path / "out"), ROWS.schema, partitions=8)
    handles, failures = {}, []

    def work(partition):
        try:
            handles[partition] = staged(sink, [ROWS] * 50, partition=partition)
        except SinkError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(partition,)) for partition in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    sink.commit(list(handles.values()))
    assert [pq.read_metadata(tmp_path / "out" / name).num_rows for name in files_below(tmp_path / "out")] == [150] * 8


class Recording(Storage):
    """Writes down in which order things become durable."""

    def __init__(self):
        self.events = []

    def create(self, path, *, mode=0o600):
        def note(what):
            self.events.append((what, os.path.basename(path)))

        class RecordedFile(File):
            def append(this, *buffers):  # noqa: N805
                note("append")
                return super().append(*buffers)

            def sync(this):  # noqa: N805
                super().sync()
                note("sync")

        note("create")
        return RecordedFile(path, os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode), writable=True)

    def sync_directory(self, path):
        super().sync_directory(path)
        self.events.append(("sync directory", path))

    def rename(self, source, target):
        super().rename(source, target)
        self.events.append(("rename", os.path.basename(source)))


@both
def test_what_is_durable_before_what(make, tmp_path):
    sink = make(tmp_path / "out", partition_by="b")
    sink.storage = Recording()
    opened(sink, ROWS.schema)
    handles = [staged(sink, ROWS, partition=partition) for partition in range(2)]
    events = sink.storage.events
    prepared = len(events)
    place = str(tmp_path / staging_directories(tmp_path / "out")[0])
    names = [file[3] for handle in handles for file in handle["files"]]
    assert len(names) == 6
    for name in names:
        order = [what for what, which in events if which == name]
        assert order[-1] == "sync"
        assert order.count("sync") == 1
        assert ("sync directory", place) in events[events.index(("sync", name)) :]
    sink.commit(handles)
    published = events[prepared:]
    last = max(index for index, (what, _) in enumerate(published) if what == "rename")
    synced = {path for what, path in published[last:] if what == "sync directory"}
    assert synced == {str(tmp_path / "out" / name) for name in os.listdir(tmp_path / "out")}
    assert len(synced) == 3


def test_one_sync_of_the_staging_directory_serves_all(tmp_path):
    class Counting(Storage):
        syncs = 0

        def sync_directory(self, path):
            self.syncs += ".staging-" in path
            super().sync_directory(path)

    sink = parquet(tmp_path / "out", row_group_rows=1)
    sink.storage = Counting()
    opened(sink, ROWS.schema)
    writers = [sink.writer(partition, token(1, sink)) for partition in range(4)]
    for writer in writers:
        writer.write(ROWS, origin=origin())
    for writer in writers:
        writer.prepare()
    assert sink.storage.syncs == 1


def test_slices_do_not_keep_large_buffers(tmp_path):
    big = pa.record_batch({"a": pa.array(range(100_000))})
    sink = opened(parquet(tmp_path / "out"), big.schema, partitions=1, memory_bytes=2_000_000)
    writer = sink.writer(0, token(1, sink))
    before = pa.total_allocated_bytes()
    kept = []
    for _ in range(20):
        writer.write(pa.record_batch({"a": pa.array(range(100_000))}).slice(5, 3), origin=origin())
        kept.append(pa.total_allocated_bytes() - before)
    assert max(kept) < 4 * 800_000
    sink.commit([writer.prepare()])
    assert pq.read_table(tmp_path / "out").column("a").to_pylist() == [5, 6, 7] * 20


@pytest.mark.parametrize(
    ("make", "options", "match"),
    [
        (parquet, {"mode": "overwrite"}, "mode is 'overwrite'"),
        (parquet, {"compression": "zip"}, "compression is 'zip'"),
        (parquet, {"row_group_rows": 0}, "row_group_rows is 0"),
        (parquet, {"max_file_bytes": 0}, "max_file_bytes is 0"),
        (arrow_ipc, {"compression": "snappy"}, "compression is 'snappy'"),
        (arrow_ipc, {"mode": ""}, "mode is ''"),
    ],
)
def test_wrong_options(make, options, match):
    with pytest.raises(PipelineError, match=match):
        make("out", **options)


def test_a_sink_must_be_opened():
    with pytest.raises(SinkError, match="is not open"):
        parquet("out").writer(0, token(1, parquet("out")))
    with pytest.raises(SinkError, match="is not open"):
        parquet("out").commit([])
    with pytest.raises(PipelineError, match="path is empty"):
        parquet("")
