"""The door to the filesystem: whole writes, exact reads, locks between processes, and children that own nothing."""

import errno
import json
import os
import subprocess
import sys

import pyarrow as pa
import pytest

from engine import storage as module
from engine.nature import random_id
from engine.storage import File, ForkedError, Held, Storage, file_size, list_files, open_input

HOLD = """
import sys
from engine.storage import Storage
lock = Storage().lock(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def store():
    return Storage()


def at(tmp_path, *names):
    return os.path.join(str(tmp_path), *names)


def test_append_read_truncate(store, tmp_path):
    with store.create(at(tmp_path, "f")) as file:
        assert file.append(b"abc", b"", memoryview(b"defg")[1:], pa.py_buffer(b"xyz")) == 9
        assert file.append(pa.array([1, 2], pa.int64()).buffers()[1].slice(0, 16)) == 25
        assert (file.size, file.tell()) == (25, 25)
        assert file.pread(5, 1) == b"bcefg"
        file.truncate(4)
        assert file.append(b"!") == 5
        file.sync()
        assert file.pread(5, 0) == b"abce!"
    assert file.closed
    assert store.size(at(tmp_path, "f")) == file_size(at(tmp_path, "f")) == 5
    with open_input(at(tmp_path, "f")) as stream:
        assert stream.read() == b"abce!"


def test_append_goes_on_after_reopening(store, tmp_path):
    with store.create(at(tmp_path, "f")) as file:
        file.append(b"one")
    with store.open(at(tmp_path, "f"), write=True) as file:
        assert file.append(b"two") == 6
    with store.open(at(tmp_path, "f")) as file:
        assert file.pread(6, 0) == b"onetwo"
        with pytest.raises(OSError, match=at(tmp_path, "f")):
            file.append(b"x")


def test_a_read_beyond_the_end_is_an_error(store, tmp_path):
    with store.create(at(tmp_path, "f")) as file:
        file.append(b"abc")
        assert file.pread(0, 3) == b""
        with pytest.raises(EOFError, match="ends at byte 3"):
            file.pread(3, 1)


def test_more_buffers_than_one_call_takes(store, tmp_path):
    with store.create(at(tmp_path, "f")) as file:
        assert file.append(*[b"ab"] * 3000) == 6000
        assert file.pread(6000, 0) == b"ab" * 3000


def test_short_writes_are_continued(store, tmp_path, monkeypatch):
    whole = os.pwritev

    def short(descriptor, buffers, offset):
        return whole(descriptor, [memoryview(b"".join(buffers))[:3]], offset)

    monkeypatch.setattr(module.os, "pwritev", short)
    with store.create(at(tmp_path, "f")) as file:
        assert file.append(b"0123", b"45", b"6789abcdef") == 16
        assert file.pread(16, 0) == b"0123456789abcdef"


def test_a_failed_append_leaves_the_size(store, tmp_path, monkeypatch):
    whole, calls = os.pwritev, []

    def full(descriptor, buffers, offset):
        calls.append(offset)
        if len(calls) == 2:
            return whole(descriptor, [memoryview(b"".join(buffers))[:2]], offset)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "full")
        return whole(descriptor, buffers, offset)

    monkeypatch.setattr(module.os, "pwritev", full)
    with store.create(at(tmp_path, "f")) as file:
        file.append(b"kept")
        with pytest.raises(OSError, match="full") as raised:
            file.append(b"lost")
        assert raised.value.filename == at(tmp_path, "f")
        assert file.size == 4
        assert file.append(b"next") == 8
        assert file.pread(8, 0) == b"keptnext"


def test_a_failed_sync_is_final(store, tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, "broken")

    with store.create(at(tmp_path, "f")) as file:
        file.append(b"x")
        with monkeypatch.context() as patch:
            patch.setattr(module, "_data_sync", fail)
            with pytest.raises(OSError, match="broken"):
                file.sync()
        with pytest.raises(OSError, match="an earlier sync failed"):
            file.sync()


def test_a_closed_file_says_so(store, tmp_path):
    file = store.create(at(tmp_path, "f"))
    file.close()
    file.close()
    with pytest.raises(ValueError, match="is closed"):
        file.append(b"x")


def test_names(store, tmp_path):
    store.make_directory(at(tmp_path, "a", "b", "c"))
    store.make_directory(at(tmp_path, "a", "b", "c"))
    assert os.stat(at(tmp_path, "a", "b")).st_mode & 0o777 == 0o700
    store.create(at(tmp_path, "a", "b", "f")).close()
    store.create(at(tmp_path, "a", "g"), mode=0o644).close()
    assert os.stat(at(tmp_path, "a", "b", "f")).st_mode & 0o777 == 0o600
    assert store.list(at(tmp_path, "a")) == ["b", "g"]
    assert sorted(store.tree(at(tmp_path, "a"))) == ["b/f", "g"]
    with pytest.raises(FileExistsError):
        store.create(at(tmp_path, "a", "g"))
    with pytest.raises(FileExistsError):
        store.make_directory(at(tmp_path, "a", "g"))
    store.rename(at(tmp_path, "a", "g"), at(tmp_path, "a", "h"))
    store.sync_directory(at(tmp_path, "a"))
    store.unlink(at(tmp_path, "a", "h"))
    assert not store.exists(at(tmp_path, "a", "h"))
    with pytest.raises(OSError, match="not empty"):
        store.remove_directory(at(tmp_path, "a", "b"))
    store.remove_directory(at(tmp_path, "a", "b", "c"))


def test_every_new_directory_is_made_durable_in_its_parent(tmp_path):
    class Recording(Storage):
        def __init__(self):
            self.synced = []

        def sync_directory(self, path):
            self.synced.append(path)
            super().sync_directory(path)

    store = Recording()
    store.make_directory(at(tmp_path, "a", "b"))
    assert store.synced == [os.path.dirname(str(tmp_path)), str(tmp_path), at(tmp_path, "a")]


def test_relative_paths(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store.make_directory("a/b/")
    store.make_directory("c")
    assert store.list(".") == ["a", "c"]


def test_links_are_not_written_through(store, tmp_path):
    store.create(at(tmp_path, "f")).close()
    os.symlink("f", at(tmp_path, "link"))
    os.symlink("nowhere", at(tmp_path, "dangling"))
    with pytest.raises(OSError, match="symbolic links"):
        store.open(at(tmp_path, "link"), write=True)
    with pytest.raises(FileExistsError):
        store.create(at(tmp_path, "dangling"))
    assert store.exists(at(tmp_path, "dangling"))


def test_a_lock_excludes_and_names_its_holder(store, tmp_path):
    path = at(tmp_path, "LOCK")
    lock = store.lock(path)
    lock.check()
    with pytest.raises(Held) as raised:
        store.lock(path)
    assert isinstance(raised.value, BlockingIOError)
    assert raised.value.pid == os.getpid()
    assert raised.value.host
    assert raised.value.since.tzinfo is not None
    lock.release()
    lock.release()
    store.lock(path).release()


def test_a_lock_of_another_process(store, tmp_path):
    path = at(tmp_path, "LOCK")
    child = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(Held) as raised:
            store.lock(path)
        assert raised.value.pid == child.pid
    finally:
        child.communicate()
    store.lock(path).release()  # the death of its holder frees it


@pytest.mark.parametrize("content", [b"", b"{", b'{"pid": 1}', b"[]", b"\xff\xfe"])
def test_a_holder_that_has_not_written_yet(store, tmp_path, content):
    path = at(tmp_path, "LOCK")
    lock = store.lock(path)
    with open(path, "wb") as file:
        file.write(content)
    with pytest.raises(Held) as raised:
        store.lock(path)
    assert raised.value.pid is None
    lock.release()


def test_a_replaced_lock_is_noticed(store, tmp_path):
    path = at(tmp_path, "LOCK")
    lock = store.lock(path)
    os.unlink(path)
    with pytest.raises(OSError, match="deleted or replaced"):
        lock.check()
    other = store.lock(path)
    with pytest.raises(OSError, match="deleted or replaced"):
        lock.check()
    other.check()
    other.release()
    lock.release()


def test_a_forked_child_owns_nothing(store, tmp_path):
    file = store.create(at(tmp_path, "f"))
    lock = store.lock(at(tmp_path, "LOCK"))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        found = []
        for attempt in (lambda: file.append(b"x"), lambda: file.pread(0, 0) or file.sync(), lock.check):
            try:
                attempt()
                found.append("done")
            except ForkedError:
                found.append("refused")
        lock.release()
        os.write(writing, json.dumps(found).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    assert json.loads(os.read(reading, 1000)) == ["refused"] * 3
    os.close(reading)
    lock.check()
    with pytest.raises(Held):
        store.lock(lock.path)
    assert file.append(b"x") == 1
    file.close()
    lock.release()


def test_pyarrow_writes_to_a_file(store, tmp_path):
    rows = pa.table({"a": [1, 2, 3]})
    with store.create(at(tmp_path, "f")) as file, pa.ipc.new_file(file, rows.schema) as writer:
        writer.write_table(rows)
    with pa.ipc.open_file(at(tmp_path, "f")) as reader:
        assert reader.read_all().equals(rows)
    assert isinstance(file, File)


def test_listing(tmp_path):
    for name in ("b.csv", "sub/a.csv", "sub/deep/c.csv", ".hidden/x.csv", "_tmp/y.csv", "sub/_z.csv", "[1].csv"):
        path = at(tmp_path, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "w").close()
    os.symlink("..", at(tmp_path, "sub", "up"))

    def listed(pattern):
        return [os.path.relpath(path, tmp_path) for path in list_files(at(tmp_path, pattern))]

    assert listed("") == ["[1].csv", "b.csv", "sub/a.csv", "sub/deep/c.csv"]
    assert listed("sub/*.csv") == ["sub/_z.csv", "sub/a.csv"]
    assert listed("**/c.csv") == ["sub/deep/c.csv"]
    assert listed("b.csv") == ["b.csv"]
    assert listed("_tmp/y.csv") == ["_tmp/y.csv"]
    assert listed("[1].csv") == ["[1].csv"]
    assert listed("su*") == ["sub/a.csv", "sub/deep/c.csv", "sub/up/[1].csv", "sub/up/b.csv"]
    assert listed("nothing") == []


def test_chance():
    assert len(random_id()) == 32
    assert len(random_id(64)) == 16
    assert random_id() != random_id()
