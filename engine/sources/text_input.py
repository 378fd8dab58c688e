"""Text files, plain or compressed, as bytes to parse."""

from typing import Literal

import pyarrow as pa

from engine.errors import InputError
from engine.sources.file_listing import InputFile, describe
from engine.storage import open_input

__all__ = ["check_text", "is_packed", "open_text"]

PACKED: dict[str, tuple[bytes, Literal["gzip", "zstd"]]] = {
    ".gz": (b"\x1f\x8b", "gzip"),
    ".zst": (b"\x28\xb5\x2f\xfd", "zstd"),
}
"""By extension: the first bytes, and pyarrow's name of the codec."""

BINARY = (b"PAR1", b"ARROW1", b"\xff\xff\xff\xff", b"PK\x03\x04", *(magic for magic, _ in PACKED.values()))


def check_text(handle: pa.NativeFile, file: InputFile, title: str) -> None:
    """Raise InputError where the file is empty or is plainly something else."""
    head = bytes(handle.read(16))
    magic = next((magic for end, (magic, _) in PACKED.items() if file.path.endswith(end)), None)
    wrong = not head.startswith(magic) if magic is not None else head.startswith(BINARY)
    if not head or wrong:
        found = describe(head, handle.size())
        packed = "compressed " if magic is not None else ""
        raise InputError(
            f"{file.location}: expected {packed}{title}, found {found}.\n"
            "  Nothing from it was committed. Remove it, or write it again."
        )


def is_packed(file: InputFile) -> bool:
    """Whether the file's name says that it is compressed."""
    return file.path.endswith(tuple(PACKED))


def open_text(file: InputFile) -> pa.NativeFile:
    """The file's text; ``.gz`` and ``.zst`` files are decompressed on the way. Raises OSError."""
    for end, (_, codec) in PACKED.items():
        if file.path.endswith(end):
            return pa.CompressedInputStream(open_input(file.path), codec)
    return open_input(file.path)
