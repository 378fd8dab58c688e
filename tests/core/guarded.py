"""Arrow arrays whose buffers end at the end of a page, followed by a page that may not be touched.

A kernel that reads one byte past a foreign buffer's end dies with SIGSEGV here, and nowhere else.
"""

from __future__ import annotations

import ctypes
import mmap

import pyarrow as pa

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_NO_ACCESS = 0


class Guarded:
    """Copies of buffers at the very end of their pages; alive as long as the pyarrow buffers that were made of it."""

    def __init__(self, data: bytes) -> None:
        pages = -(-len(data) // mmap.PAGESIZE) + 1
        self._map = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        guard = start + pages * mmap.PAGESIZE
        self.address = guard - len(data)
        ctypes.memmove(self.address, data, len(data))
        if _LIBC.mprotect(guard, mmap.PAGESIZE, _NO_ACCESS) != 0:
            raise OSError(ctypes.get_errno(), "mprotect failed")


def exact_sizes(array: pa.Array) -> list[int | None]:
    """The bytes of each buffer that the array's own rows prove readable; `array` has no offset."""
    rows = len(array)
    sizes: list[int | None] = [-(-rows // 8)]
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return [*sizes, 4 * (rows + 1), None]
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        return [*sizes, 8 * (rows + 1), None]
    if kind in (pa.string_view(), pa.binary_view()):
        return [*sizes, 16 * rows, *[None] * (len(array.buffers()) - 2)]
    return [*sizes, -(-rows * kind.bit_width // 8)]


def guarded(array: pa.Array) -> pa.Array:
    """The same array in guarded memory; `array` is freshly made, without offset, and not nested."""
    buffers = []
    for buffer, size in zip(array.buffers(), exact_sizes(array), strict=True):
        if buffer is None:
            buffers.append(None)
            continue
        data = buffer.to_pybytes()[:size]
        owner = Guarded(data)
        buffers.append(pa.foreign_buffer(owner.address, len(data), owner))
    return pa.Array.from_buffers(array.type, len(array), buffers)
