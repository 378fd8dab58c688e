"""Several positioned reads in one call, without the GIL."""

from typing_extensions import Buffer

def pread_many(descriptor: int, offsets: Buffer, sizes: Buffer) -> bytes:
    """The pieces at these offsets and of these sizes (int64), joined. OSError, EOFError, ValueError."""
