"""What a failure of the operating system or of an encoder means to the user of a sink."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from engine.errors import SinkError

__all__ = ["sink_failure"]

ADVICE = {
    errno.ENOSPC: "Free space and run again",
    errno.EDQUOT: "Raise the quota or free space, and run again",
    errno.EROFS: "Mount it writable and run again",
    errno.EACCES: "Give this user the right to write there and run again",
    errno.EPERM: "Give this user the right to write there and run again",
    errno.EMFILE: "Raise the limit of open files and run again",
    errno.ENAMETOOLONG: "Choose a shorter path and run again",
}


@contextmanager
def sink_failure(doing: str, *, sink: str, partition: int | None = None) -> Iterator[None]:
    """Turn OSError, Arrow's errors and ValueError, by which encoders refuse rows, into a SinkError that begins with
    ``doing``; theirs is its ``__cause__``.
    """
    try:
        yield
    except (OSError, pa.ArrowException, ValueError, MemoryError) as error:
        raise SinkError(_message(doing, error), sink=sink, partition=partition) from error


def _message(doing: str, error: BaseException) -> str:
    code = error.errno if isinstance(error, OSError) else None
    if code is None:
        found = f"{type(error).__name__}: {error}".rstrip(": ")
        return f"{doing}: {found}\n  Nothing uncommitted is visible."
    path = error.filename if isinstance(error, OSError) and error.filename is not None else None
    where = f" ({path})" if path is not None else ""
    advice = ADVICE.get(code, "Mend it and run again")
    return f"{doing}: {os.strerror(code)}{where}.\n  {advice}; nothing uncommitted is visible."
