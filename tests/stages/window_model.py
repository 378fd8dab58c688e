"""What tests of the key window share: the plain meaning of dedup, a small window, backgrounds, a mortal storage."""

import os

from engine.background import Job
from engine.stages.key_window import KeyWindow
from engine.storage import File, Storage

SEED = bytes(range(16))


def id_of(number):
    return number.to_bytes(16, "big")


def ids_of(numbers):
    return b"".join(map(id_of, numbers))


class History:
    """Dedup over the last ``within`` rows as a dictionary of last positions."""

    def __init__(self, within):
        self.within = within
        self.last = {}
        self.position = 0

    def probe(self, numbers):
        mask = bytearray()
        for number in numbers:
            seen = self.last.get(number)
            fresh = seen is None or (self.within is not None and seen < self.position - self.within)
            mask.append(fresh)
            self.last[number] = self.position
            self.position += 1
        return mask

    def copy(self):
        other = History(self.within)
        other.last = dict(self.last)
        other.position = self.position
        return other


class Inline:
    """A background that does everything at once."""

    def submit(self, steps, *, priority):
        job = Job(steps, priority)
        self.wait(job)
        return job

    def wait(self, job):
        while not job.done:
            job.take_step()

    def cancel(self, job):
        job.drop()


class Deferred(Inline):
    """A background that takes steps when the test says so, the most urgent work first, as a thread would."""

    def __init__(self):
        self.jobs = []
        self.steps = 0

    def submit(self, steps, *, priority):
        job = Job(steps, priority)
        self.jobs.append(job)
        return job

    def take_steps(self, count):
        """Some steps, as far as there is work."""
        for _ in range(count):
            self.jobs = [job for job in self.jobs if not job.done]
            if not self.jobs:
                return
            min(self.jobs, key=lambda job: job.priority).take_step()
            self.steps += 1

    def cancel(self, job):
        self.jobs = [other for other in self.jobs if other is not job]
        job.drop()


def small_window(directory, *, within, storage=None, durable=True, memory_bytes=4_000, background=None, **options):
    """A window that seals after a hundred keys or so."""
    return KeyWindow(
        [0],
        within=within,
        memory_bytes=memory_bytes,
        storage=storage or Storage(),
        directory=str(directory),
        seed=SEED,
        durable=durable,
        background=background or Inline(),
        chunk_ids=options.pop("chunk_ids", 16),
        **options,
    )


def probe(window, numbers):
    """Mark and commit; the mask."""
    token, found = window.probe_ids(ids_of(numbers), len(numbers))
    window.commit(token)
    assert found.fresh + found.duplicates == len(numbers)
    assert sum(found.selection) == found.fresh == found.selected
    return found.selection


class Killed(BaseException):
    """The process is gone: no handler of the code under test may take it for an error."""


class MortalFile(File):
    """A file whose changes count, and of which the deadly one is half done."""

    life: "MortalStorage"

    def append(self, *buffers):
        whole = b"".join(map(bytes, buffers))
        half = whole[: len(whole) // 2]
        if self.life.last_breath():
            super().append(half)
        self.life.breathe((self.path, half))
        return super().append(*buffers)

    def truncate(self, size):
        self.life.breathe()
        super().truncate(size)

    def sync(self):
        self.life.breathe()  # a killed process loses nothing that the system has: the disk may wait


class MortalStorage(Storage):
    """Dies before its ``breaths``-th change of a file or directory; after that nothing works any more."""

    def __init__(self, breaths=10**9):
        self.breaths = breaths
        self.taken = 0

    def last_breath(self):
        return self.taken + 1 == self.breaths

    def breathe(self, half_done=None):
        self.taken += 1
        if self.taken >= self.breaths:
            raise Killed

    def create(self, path, **options):
        self.breathe()
        return self._mortal(super().create(path, **options))

    def open(self, path, *, write=False):
        return self._mortal(super().open(path, write=write))

    def _mortal(self, file):
        file.__class__ = MortalFile
        file.life = self
        return file

    def make_directory(self, path, **options):
        self.breathe()
        os.makedirs(path, exist_ok=True)

    def rename(self, source, target):
        self.breathe()
        super().rename(source, target)

    def unlink(self, path):
        self.breathe()
        super().unlink(path)

    def sync_directory(self, path):
        self.breathe()


class WatchedStorage(MortalStorage):
    """Never dies: ``deaths`` are what each death would have left below a directory, and what was committed then; those
    that leave the same are one.
    """

    def __init__(self, directory, committed):
        super().__init__()
        self.deaths = []
        self._directory = directory
        self._committed = committed

    def breathe(self, half_done=None):
        super().breathe()
        files = {path.name: path.read_bytes() for path in self._directory.glob("*")}
        if half_done is not None:
            path, half = half_done
            files[os.path.basename(path)] += half
        if not self.deaths or self.deaths[-1] != (files, self._committed[0]):
            self.deaths.append((files, self._committed[0]))


def left_by(files, directory):
    """Write what a death left."""
    directory.mkdir()
    for name, data in files.items():
        (directory / name).write_bytes(data)
