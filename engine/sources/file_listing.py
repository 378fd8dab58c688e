"""Which files a path stands for, in which order, and what tells one state of a file from another.

Laws
    - Files are ordered by their path relative to the directory that was given; that path is their name in offsets, so a
      directory may move together with the state that points into it.
    - Names that begin with "." or "_", at any depth below a directory or a pattern's fixed part, are not input.
    - The checksum of a file never raises on its content: a damaged file merely has another checksum.
"""

import fnmatch
import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import unquote

import pyarrow as pa

from engine._core.crc32c import crc32c
from engine.errors import InputError, PipelineError, SourceError
from engine.path_argument import path_fault
from engine.storage import file_size, list_files, open_input

__all__ = [
    "FileSet",
    "Identity",
    "InputFile",
    "PathArgument",
    "describe",
    "edge_checksum",
    "footer_checksum",
    "identity_of",
]

PathArgument: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]"

EDGE_BYTES = 64 << 10
"""How much of a file's head and tail stands for the whole of it."""

PROBED_DEPTH = 4
"""How many ``name=value`` directories deep an output is taken to write, when it is compared with a pattern."""

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of a source."""

    name: str
    """Its path below the source's directory, with "/": how offsets call it."""

    path: str
    location: str
    """What people see: the path, relative to the working directory where it lies below that."""

    partitions: tuple[tuple[str, str | None], ...]
    """Names and values of the ``name=value`` directories between the given directory and the file."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What must stay the same for a file to be the one that was read before."""

    size_bytes: int
    checksum: str


@dataclass(frozen=True, slots=True)
class FileSet:
    """A file, a directory, a pattern, or a sequence of these, with the extensions that count below directories."""

    paths: tuple[str, ...]
    extensions: tuple[str, ...]

    @classmethod
    def of(cls, path: PathArgument, extensions: Sequence[str]) -> "FileSet":
        """Take what a user gave as ``path``. Raises PipelineError where it is not a path."""
        given: Sequence[Any] = [path] if isinstance(path, str | os.PathLike) else path
        if not isinstance(given, Sequence) or isinstance(given, bytes | bytearray):
            raise PipelineError(f"read: expected a path or a sequence of paths, found {type(path).__name__}")
        paths = []
        for each in given:
            if path_fault(each) is not None:
                raise PipelineError(f"read: expected a path, found {each!r}")
            paths.append(os.fspath(each).rstrip("/") or "/")
        if not paths:
            raise PipelineError("read: expected at least one path, found an empty sequence")
        return cls(tuple(paths), tuple(extensions))

    def __str__(self) -> str:
        if len(self.paths) <= 3:
            return ", ".join(self.paths)
        rest = crc32c("\0".join(self.paths).encode("utf-8", "surrogateescape"))
        return f"{self.paths[0]}, {self.paths[1]}, … {len(self.paths)} paths #{rest:08x}"

    def files(self) -> list[InputFile]:
        """The files there are now, in order; at least one. Raises InputError, SourceError."""
        files = self.files_or_none()
        if files:
            return files
        raise InputError(
            f"{self}: found no file to read; looked for names that end with {' '.join(self.extensions)} "
            'and do not begin with "." or "_".\n  Check the path, or write the first file and run again.'
        )

    def files_or_none(self) -> list[InputFile]:
        """The files there are now, in order; perhaps none. Raises InputError where a path does not exist."""
        roots = [_root_of(path) for path in self.paths]
        base = roots[0] if len(roots) == 1 else os.path.commonpath([os.path.abspath(root) for root in roots])
        found: dict[str, InputFile] = {}
        for pattern, root in zip(self.paths, roots, strict=True):
            for path in self._listed(pattern, root):
                name = os.path.relpath(path, base)
                found.setdefault(name, InputFile(_printable(name), path, _location(path), _partitions(path, root)))
        return [found[name] for name in sorted(found)]

    def covers(self, directory: str) -> bool:
        """Whether a file that is written somewhere below ``directory`` could be input here."""
        target = os.path.realpath(directory)
        return any(self._covers(path, target) for path in self.paths)

    def _covers(self, path: str, target: str) -> bool:
        root = os.path.realpath(_root_of(path))
        if os.path.isfile(path):
            return os.path.realpath(path).startswith(os.path.join(target, ""))
        if target != root and os.path.commonpath([root, target]) not in (root, target):
            return False
        if os.path.commonpath([root, target]) != root:
            return True
        if _is_hidden(os.path.relpath(target, root)):
            return False
        if not _is_pattern(path):
            return True
        pattern = os.path.join(root, os.path.relpath(path, _root_of(path)))
        names = [f"part-00000-00000001-00{extension}" for extension in self.extensions]
        depths = [os.path.join(target, *["name=value"] * depth) for depth in range(PROBED_DEPTH)]
        probes = [target, *(os.path.join(depth, name) for depth in depths for name in names)]
        return any(_matches(pattern, probe) for probe in probes)

    def _listed(self, path: str, root: str) -> Iterator[str]:
        try:
            if not _is_pattern(path):
                os.stat(path)
            listed = list_files(path)
        except FileNotFoundError as error:
            raise InputError(f"{path}: does not exist.\n  Check the path, or put the input there.") from error
        except OSError as error:
            raise SourceError(f"{path}: cannot be listed: {error.strerror or error}.") from error
        for each in listed:
            if each == path or self._is_input(path, root, each):
                yield each

    def _is_input(self, path: str, root: str, each: str) -> bool:
        if _is_hidden(os.path.relpath(each, root)):
            return False
        if each.endswith(self.extensions):
            return True
        return _is_pattern(path) and os.path.basename(path).strip("*") != "" and _matches(path, each)


def _is_hidden(below: str) -> bool:
    """Whether one of the names of a relative path says that it is not data."""
    return any(part.startswith(("_", ".")) and part != "." for part in below.split(os.sep))


def _is_pattern(path: str) -> bool:
    return glob.has_magic(path) and not os.path.lexists(path)


def _root_of(path: str) -> str:
    """The directory that names are relative to: the path itself, a file's directory, a pattern's fixed part."""
    if _is_pattern(path):
        fixed = []
        for part in path.split("/")[:-1]:
            if glob.has_magic(part):
                break
            fixed.append(part)
        return "/".join(fixed) or ("/" if path.startswith("/") else ".")
    return (os.path.dirname(path) or ".") if os.path.isfile(path) else path


def _matches(pattern: str, path: str) -> bool:
    return _matches_parts(pattern.split("/"), path.split("/"))


def _matches_parts(pattern: list[str], parts: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches_parts(pattern[1:], parts[skipped:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches_parts(pattern[1:], parts[1:])


def _printable(name: str) -> str:
    """A file's name as text that JSON can hold, also where its bytes are not UTF-8."""
    return os.fsencode(name.replace(os.sep, "/")).decode("utf-8", "backslashreplace")


def _location(path: str) -> str:
    below = os.path.relpath(path) if os.path.isabs(path) else path
    return _printable(path if below.startswith("..") else below)


def _partitions(path: str, root: str) -> tuple[tuple[str, str | None], ...]:
    pairs = []
    for part in os.path.relpath(path, root).split(os.sep)[:-1]:
        name, separator, value = part.partition("=")
        if separator and name:
            pairs.append((unquote(name), None if value == HIVE_NULL else unquote(value)))
    return tuple(pairs)


Checksum: TypeAlias = Callable[[pa.NativeFile, int], str]


def identity_of(file: InputFile, checksum: Checksum) -> Identity:
    """Size and checksum of a file as it is now. Raises OSError."""
    with open_input(file.path) as handle:
        size = file_size(file.path)
        return Identity(size, checksum(handle, size))


def edge_checksum(handle: pa.NativeFile, size: int) -> str:
    """CRC-32C of the first and last 64 KiB, after Castagnoli et al. 1993."""
    head = _read_at(handle, 0, min(size, EDGE_BYTES))
    tail_start = max(len(head), size - EDGE_BYTES)
    return f"{crc32c(_read_at(handle, tail_start, size - tail_start), crc32c(head)):08x}"


def footer_checksum(magic: bytes) -> Checksum:
    """The checksum of files that end with a footer, its length in four bytes, and ``magic``: it covers the footer."""

    def checksum(handle: pa.NativeFile, size: int) -> str:
        end = _read_at(handle, max(0, size - 4 - len(magic)), 4 + len(magic))
        length = int.from_bytes(end[:4], "little", signed=True) + len(end)
        if end[4:] != magic or not len(end) < length <= size:
            return edge_checksum(handle, size)
        return f"{crc32c(_read_at(handle, size - length, length)):08x}"

    return checksum


def _read_at(handle: pa.NativeFile, start: int, size: int) -> bytes:
    handle.seek(start)
    return bytes(handle.read(size))


def describe(head: bytes, size: int) -> str:
    """What a file that is not what it should be looks like, for messages; never its content."""
    if size == 0:
        return "an empty file"
    for magic, title in _SIGNATURES:
        if head.startswith(magic):
            return title
    if re.fullmatch(rb"[\x09\x0a\x0d\x20-\x7e\x80-\xff]*", head):
        return f"{size:,} bytes of text"
    return f"{size:,} bytes that begin with {head[:8].hex(' ')}"


_SIGNATURES = (
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow IPC file"),
    (b"\xff\xff\xff\xff", "an Arrow IPC stream"),
    (b"FEA1", "a Feather V1 file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"PK\x03\x04", "a zip file"),
    (b"Obj\x01", "an Avro file"),
    (b"ORC", "an ORC file"),
)
