"""The process's pool of recycled, 64-byte aligned buffers. Thread-safe."""

import sys

if sys.version_info >= (3, 12):
    from collections.abc import Buffer as _BufferProtocol
else:
    from typing_extensions import Buffer as _BufferProtocol

class Buffer(_BufferProtocol):
    """Bytes in pooled memory; its contents are undefined at first. ValueError for a negative size, MemoryError."""

    def __init__(self, size: int) -> None: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def readonly(self) -> bool: ...

def set_limit(limit_bytes: int) -> None:
    """Bounds the idle bytes that the pool retains. ValueError for a negative limit."""

def trim() -> int:
    """Gives all idle bytes back to the system and returns how many they were."""

def statistics() -> dict[str, int]:
    """Counters: in_use_bytes, idle_bytes, and the hits and misses of recycled sizes."""
