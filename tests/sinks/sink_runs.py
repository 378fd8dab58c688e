"""Runs of a sink without an engine around it: tokens, a commit log that survives kills, and storage that dies."""

import os
from dataclasses import dataclass, field

import pyarrow as pa

from engine.batch import Origin
from engine.progress import Token
from engine.storage import File, Storage

INCARNATION = "0123456789abcdef" * 2
OTHER = "fedcba9876543210" * 2


def token(epoch, sink, *, incarnation=INCARNATION, term="00000000deadbeef"):
    return Token(incarnation, epoch, term, sink.name)


def origin(start=0, stop=1, location="in.parquet"):
    return Origin("source", location, start, stop)


def opened(sink, schema, *, epoch=0, partitions=2, memory_bytes=1 << 20, incarnation=INCARNATION):
    sink.open(
        schema, token=token(epoch, sink, incarnation=incarnation), partitions=partitions, memory_bytes=memory_bytes
    )
    return sink


def staged(sink, batches, *, epoch=1, partition=0, incarnation=INCARNATION):
    """The handle of a prepared epoch of one partition."""
    if isinstance(batches, pa.RecordBatch | pa.Table):
        batches = [batches]
    writer = sink.writer(partition, token(epoch, sink, incarnation=incarnation))
    for batch in batches:
        for piece in batch.to_batches() if isinstance(batch, pa.Table) else [batch]:
            writer.write(piece, origin=origin())
    return writer.prepare()


def written(sink, rows, *, epoch=1, partition=0):
    """Everything at once: open, write, commit. Gives the handle."""
    handle = staged(opened(sink, rows.schema, epoch=epoch - 1), rows, epoch=epoch, partition=partition)
    sink.commit([handle])
    return handle


def files_below(path):
    """Everything under a directory, as sorted relative paths."""
    return sorted(
        os.path.relpath(os.path.join(folder, name), path) for folder, _, names in os.walk(path) for name in names
    )


def staging_directories(path):
    parent = os.path.dirname(os.path.realpath(path))
    return [name for name in os.listdir(parent) if ".staging-" in name]


class Killed(BaseException):
    """The process is gone."""


class DyingStorage(Storage):
    """Lets ``calls`` operations pass that change anything; at the next one the process dies, and nothing works then."""

    def __init__(self, calls):
        self.calls = calls
        self.dead = False

    def step(self):
        if self.dead or self.calls == 0:
            self.dead = True
            raise Killed
        self.calls -= 1

    def create(self, path, *, mode=0o600):
        self.step()
        return DyingFile(self, path, os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode))

    def make_directory(self, path, *, mode=0o700):
        self.step()
        super().make_directory(path, mode=mode)

    def rename(self, source, target):
        self.step()
        super().rename(source, target)

    def unlink(self, path):
        self.step()
        super().unlink(path)

    def remove_directory(self, path):
        self.step()
        super().remove_directory(path)

    def sync_directory(self, path):
        self.step()  # what a killed process wrote stays in the page cache: no need to wait for the disk


class DyingFile(File):
    def __init__(self, store, path, descriptor):
        super().__init__(path, descriptor, writable=True)
        self.store = store

    def append(self, *buffers):
        if self.store.dead:  # an encoder's destructor, which a killed process never runs
            return self.size
        if self.size:  # one torn write a file is enough: what is staged counts only when it is synced
            return super().append(*buffers)
        try:
            self.store.step()
        except Killed:
            half = b"".join(buffers)
            super().append(half[: len(half) // 2])
            raise
        return super().append(*buffers)

    def sync(self):
        self.store.step()


@dataclass
class CommitLog:
    """What a state directory holds: it outlives every kill."""

    commits: list = field(default_factory=list)  # (epoch, chunk of the input, handles)
    final: int = 0
    epochs_begun: int = 0


def drive(sink, log, chunks, partitions=2):
    """Recover as the protocol says, then run a sink over ``chunks``: each is an epoch, a list of rows by partition."""
    last = log.commits[-1][0] if log.commits else 0
    opened(sink, chunks[0][0].schema, epoch=last, partitions=partitions)
    if last > log.final:
        sink.commit(log.commits[-1][2])
        log.final = last
    sink.discard_after(token(last, sink))
    for number in range(len(log.commits), len(chunks)):
        log.epochs_begun = epoch = log.epochs_begun + 1
        handles = [staged(sink, rows, epoch=epoch, partition=index) for index, rows in enumerate(chunks[number])]
        log.commits.append((epoch, number, handles))
        sink.commit(handles)
        log.final = epoch
    sink.discard_after(token(log.final, sink))
