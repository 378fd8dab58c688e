"""Without faults a simulated storage does what the real one does: the same answers and errors, call by call."""

import errno
import os
import tempfile
from array import array
from contextlib import ExitStack

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from engine.storage import Held, Storage
from engine.testing.storage import SimulatedStorage

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
DATA = st.binary(max_size=1300)


def outcome(action):
    """What a call gave, or how it failed."""
    try:
        return "gave", action()
    except OSError as error:
        return type(error).__name__, errno.errorcode.get(error.errno)
    except (EOFError, ValueError) as error:
        return type(error).__name__, None


class BothStorages(RuleBasedStateMachine):
    """The same calls on a directory of the disk and on a simulated storage."""

    files = Bundle("files")

    @initialize()
    def begin(self):
        self.stack = ExitStack()
        self.root = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.real, self.simulated = Storage(), SimulatedStorage()
        self.simulated.make_directory(self.root)

    def teardown(self):
        if hasattr(self, "stack"):
            self.stack.close()

    def at(self, path):
        return f"{self.root}/{path}"

    def same(self, call):
        real, simulated = outcome(lambda: call(self.real)), outcome(lambda: call(self.simulated))
        assert real == simulated
        return real

    def pair(self, call):
        """Files opened on both sides, or None."""
        opened = []

        def attempt(storage):
            opened.append(call(storage))
            return opened[-1].size

        self.same(attempt)
        for file in opened:
            self.stack.callback(file.close)
        return tuple(opened) if opened else None

    def both(self, pair, call):
        if pair is not None:
            assert outcome(lambda: call(pair[0])) == outcome(lambda: call(pair[1]))
            assert pair[0].size == pair[1].size

    @rule(target=files, path=PATHS)
    def create(self, path):
        return self.pair(lambda storage: storage.create(self.at(path)))

    @rule(target=files, path=PATHS, write=st.booleans())
    def open(self, path, write):
        if not write and self.real.is_directory(self.at(path)):
            return None  # only refused when it is read from
        return self.pair(lambda storage: storage.open(self.at(path), write=write))

    @rule(pair=files, pieces=st.lists(DATA, max_size=3))
    def append(self, pair, pieces):
        self.both(pair, lambda file: file.append(*pieces))

    @rule(pair=files, offset=st.integers(0, 3000), size=st.integers(0, 3000))
    def pread(self, pair, offset, size):
        self.both(pair, lambda file: file.pread(size, offset))

    @rule(pair=files, offsets=st.lists(st.integers(0, 900), max_size=3))
    def pread_many(self, pair, offsets):
        places, sizes = array("q", offsets), array("q", [7] * len(offsets))
        self.both(pair, lambda file: file.pread_many(places, sizes))

    @rule(pair=files, size=st.integers(0, 2000))
    def truncate(self, pair, size):
        self.both(pair, lambda file: file.truncate(size))

    @rule(pair=files)
    def sync(self, pair):
        self.both(pair, lambda file: file.sync())

    @rule(pair=files)
    def close(self, pair):
        self.both(pair, lambda file: file.close())

    @rule(path=PATHS)
    def make_directory(self, path):
        self.same(lambda storage: storage.make_directory(self.at(path)))

    @rule(before=PATHS, after=PATHS)
    def rename(self, before, after):
        self.same(lambda storage: storage.rename(self.at(before), self.at(after)))

    @rule(path=PATHS)
    def unlink(self, path):
        self.same(lambda storage: storage.unlink(self.at(path)))

    @rule(path=PATHS)
    def remove_directory(self, path):
        self.same(lambda storage: storage.remove_directory(self.at(path)))

    @rule(path=PATHS)
    def sync_directory(self, path):
        self.same(lambda storage: storage.sync_directory(self.at(path)))

    @rule(path=PATHS)
    def ask(self, path):
        self.same(lambda storage: storage.list(self.at(path)))
        self.same(lambda storage: sorted(storage.tree(self.at(path))))
        self.same(lambda storage: storage.exists(self.at(path)))
        self.same(lambda storage: storage.is_directory(self.at(path)))
        self.same(lambda storage: storage.same_filesystem(self.root, self.at(path)))
        if not self.real.is_directory(self.at(path)):
            self.same(lambda storage: storage.size(self.at(path)))

    @invariant()
    def the_same_is_there(self):
        if hasattr(self, "root"):
            names = sorted(self.real.tree(self.root))
            assert names == sorted(self.simulated.tree(self.root))
            seen = self.simulated.contents()
            for name in names:
                with open(self.at(name), "rb") as file:
                    assert seen[self.at(name)] == file.read()


BothStorages.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestBothStorages = BothStorages.TestCase


@pytest.fixture(params=[Storage, SimulatedStorage])
def storage(request):
    return request.param()


def test_locks(storage, tmp_path):
    """One law for both: one holder, and a LOCK file that was taken away is noticed."""
    path = str(tmp_path / "LOCK")
    storage.make_directory(str(tmp_path))
    lock = storage.lock(path)
    lock.check()
    with pytest.raises(Held) as held:
        storage.lock(path)
    assert held.value.pid is not None
    assert held.value.since is not None
    storage.unlink(path)
    with pytest.raises(OSError, match="deleted or replaced") as stale:
        lock.check()
    assert stale.value.errno == errno.ESTALE
    other = storage.lock(path)
    with pytest.raises(OSError, match="deleted or replaced"):
        lock.check()
    other.release()
    other.release()
    with pytest.raises(ValueError, match="is closed"):
        other.check()
    storage.lock(path).release()
    with pytest.raises(IsADirectoryError):
        storage.lock(str(tmp_path))


def test_paths(storage, tmp_path):
    root = str(tmp_path)
    storage.make_directory(root)
    storage.make_directory(f"{root}/a//b/")
    with storage.create(f"{root}/a/./f") as file:
        assert file.path == f"{root}/a/./f"
    assert storage.list(f"{root}/a/") == ["b", "f"]
    assert storage.resolve(f"{root}/a/../x") == f"{root}/x"
    assert storage.is_directory("/")
    with pytest.raises(FileNotFoundError) as missing:
        storage.rename(f"{root}/no", f"{root}/where")
    assert (missing.value.filename, missing.value.filename2) == (f"{root}/no", f"{root}/where")
    with pytest.raises(FileExistsError) as there:
        storage.create(f"{root}/a/f")
    assert there.value.filename == os.path.join(root, "a", "f")


def test_a_file_without_a_name_goes_on(storage, tmp_path):
    root = str(tmp_path)
    storage.make_directory(root)
    with storage.create(f"{root}/f") as file, storage.open(f"{root}/f") as reader:
        storage.rename(f"{root}/f", f"{root}/g")
        storage.unlink(f"{root}/g")
        assert file.append(b"abc") == 3
        assert reader.pread(3, 0) == b"abc"
        file.sync()
