"""The durable offset for other processes: what could not be published is published later, and never sooner than it is
true.
"""

import errno

import pyarrow as pa
import pytest

from engine import Log
from engine.storage import File, Storage


class FailingFile(File):
    def __init__(self, storage, file):
        super().__init__(file.path, file._descriptor, writable=True)
        file._descriptor = -1
        self._failing_storage = storage

    def append(self, *buffers):
        if self._failing_storage.failing:
            self._failing_storage.failed += 1
            raise OSError(errno.EIO, "injected", self.path)
        return super().append(*buffers)


class Failing(Storage):
    """Nothing can be written to the files of durable offsets while it is ``failing``."""

    def __init__(self):
        self.failing = False
        self.failed = 0

    def create(self, path, **options):
        file = super().create(path, **options)
        return FailingFile(self, file) if path.endswith("/durable.tmp") else file


@pytest.mark.parametrize("more", [False, True])
def test_an_offset_that_could_not_be_published(tmp_path, more):
    storage = Failing()
    writer = Log(tmp_path / "log", storage=storage)
    writer.append(pa.table({"n": [1, 2]}))
    with Log(tmp_path / "log", write=False) as reader:
        assert reader.end() == 2
        storage.failing = True
        assert writer.append(pa.table({"n": [3]})) == 3
        assert reader.end() == 2
        storage.failing = False
        if more:
            writer.append(pa.table({"n": [4]}))
            assert reader.end() == 4
        writer.close()
        assert reader.end() == (4 if more else 3)
    assert storage.failed == 1
