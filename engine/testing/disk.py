"""A disk in memory, as a program sees it and as a loss of power may leave it. Pure: changes in, images out.

Laws
    - What a program sees is the cache. Of it the disk surely has what was synced since it was changed: the bytes of a
      file by the sync of the file, a name by the sync of its directory, and neither by the other.
    - After a loss of power each sector holds any one of the contents that it had since the last sync, whatever became
      of its neighbours; a file has any one of the lengths that it had, whatever became of its bytes. Where it is longer
      than its bytes, they are zeros, noise, or what a removed file left there.
    - Of the changes of names since the syncs of their directories any set was kept, in their order. A rename is one
      change. It is durable when either of its directories is synced, and with it what was done to its names before.
    - After a failed sync the bytes stay in the cache, and no later sync writes them; the length is still written.
    - All freedom is in ``choices``, how many ways there are for each thing that is open, and ``image`` takes one of
      them for each: 0 is what is durable, the last is what the cache holds. So all images of a small disk can be
      counted, and images of a large one drawn.

Not modelled: owners, modes and times; symbolic and hard links; an unlinked file that a crash brings back half removed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from random import Random
from typing import TypeAlias

__all__ = ["ROOT", "Change", "Disk", "DropDirty", "Entry", "Flip", "Naming", "Resize", "Sync", "SyncNames", "Write"]

ROOT = 0
"""The number of the directory that is always there."""

FILLERS = 3
"""Zeros, what a removed file left, noise."""

Entry: TypeAlias = tuple[int, str]
"""A name in a directory, which is known by its number."""


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes of a file, from an offset on."""

    file: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Resize:
    """A file is cut, or filled with zeros."""

    file: int
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """The bytes and the length of a file become durable."""

    file: int


@dataclass(frozen=True, slots=True)
class DropDirty:
    """A sync of a file failed: what it should have written never will be."""

    file: int


@dataclass(frozen=True, slots=True)
class Flip:
    """One bit of a file turns over, in the cache and on the disk."""

    file: int
    bit: int


@dataclass(frozen=True, slots=True)
class Naming:
    """Names that mean another file or directory (None: nothing) from here on, all at once.

    ``made`` is the number of what is new with it: a file, or a ``directory``.
    """

    entries: tuple[tuple[Entry, int | None], ...]
    made: int | None = None
    directory: bool = False


@dataclass(frozen=True, slots=True)
class SyncNames:
    """The names in a directory become durable."""

    directory: int


Change: TypeAlias = Write | Resize | Sync | DropDirty | Flip | Naming | SyncNames


@dataclass
class _Contents:
    """The bytes of a file: in the cache, on the disk, and what the disk may hold instead."""

    cached: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    sizes: list[int] = field(default_factory=lambda: [0])
    sectors: dict[int, list[bytes]] = field(default_factory=dict)

    @property
    def dirty(self) -> bool:
        return len(self.sizes) > 1 or bool(self.sectors)

    def copy(self) -> "_Contents":
        sectors = {number: list(versions) for number, versions in self.sectors.items()}
        return _Contents(bytearray(self.cached), bytearray(self.durable), list(self.sizes), sectors)


class Disk:
    """Files and directories by number; ``names`` is what programs see of the directories."""

    def __init__(self, *, sector_bytes: int = 512) -> None:
        self.sector_bytes = sector_bytes
        self.names: dict[int, dict[str, int]] = {ROOT: {}}
        self._durable: dict[int, dict[str, int]] = {ROOT: {}}
        self._pending: list[Naming] = []
        self._files: dict[int, _Contents] = {}
        self._shared: set[int] = set()  # files whose contents another disk holds too: copied before they change
        self._removed = b""
        self._next = ROOT + 1

    def copy(self) -> "Disk":
        """A disk of its own in the same state."""
        made = Disk(sector_bytes=self.sector_bytes)
        made.names = {number: dict(names) for number, names in self.names.items()}
        made._durable = {number: dict(names) for number, names in self._durable.items()}
        made._pending = list(self._pending)
        made._files = dict(self._files)
        self._shared, made._shared = set(self._files), set(self._files)
        made._removed, made._next = self._removed, self._next
        return made

    def new_number(self) -> int:
        """A number that no file or directory has or had, for the next ``Naming``."""
        return self._next

    def read(self, file: int) -> bytearray:
        """What the cache holds of a file. Not to be changed."""
        return self._files[file].cached

    def used_bytes(self) -> int:
        """Bytes of all files that have a name."""
        return sum(len(self._files[number].cached) for _, number in self.walk() if number in self._files)

    def is_file(self, number: int) -> bool:
        """Whether the number is a file's, not a directory's."""
        return number in self._files

    # -- changes --

    def apply(self, change: Change) -> None:
        """Let a change happen to the cache, or to the disk where it is a sync."""
        match change:
            case Write(file, offset, data):
                self._write(self._own(file), offset, data)
            case Resize(file, size):
                self._resize(self._own(file), size)
            case Sync(file):
                self._sync(self._own(file))
            case DropDirty(file):
                self._own(file).sectors.clear()
            case Flip(file, bit):
                self._flip(self._own(file), bit)
            case Naming():
                self._name(change)
            case SyncNames(directory):
                self._sync_names(directory)

    def _own(self, file: int) -> _Contents:
        """The contents of a file, to be changed."""
        if file in self._shared:
            self._shared.discard(file)
            self._files[file] = self._files[file].copy()
        return self._files[file]

    def _write(self, contents: _Contents, offset: int, data: bytes) -> None:
        begin = min(offset, len(contents.cached))
        contents.cached[begin:offset] = bytes(offset - begin)
        contents.cached[offset : offset + len(data)] = data
        self._note(contents, begin, offset + len(data))

    def _resize(self, contents: _Contents, size: int) -> None:
        before = len(contents.cached)
        if size > before:
            self._write(contents, before, bytes(size - before))
            return
        del contents.cached[size:]
        self._note(contents, size, size + (size % self.sector_bytes > 0 and before > size))

    def _note(self, contents: _Contents, begin: int, stop: int) -> None:
        """The cache changed between these offsets, perhaps the length too."""
        width = self.sector_bytes
        for sector in range(begin // width, -(-stop // width)):
            versions = contents.sectors.setdefault(sector, [])
            now = bytes(contents.cached[sector * width : (sector + 1) * width])
            if not versions or versions[-1] != now:
                versions.append(now)
        if contents.sizes[-1] != len(contents.cached):
            contents.sizes.append(len(contents.cached))

    def _sync(self, contents: _Contents) -> None:
        width, size = self.sector_bytes, len(contents.cached)
        del contents.durable[size:]
        contents.durable.extend(bytes(size - len(contents.durable)))
        for sector in contents.sectors:
            contents.durable[sector * width : (sector + 1) * width] = contents.cached[
                sector * width : (sector + 1) * width
            ]
        contents.sectors.clear()
        contents.sizes = [size]

    def _name(self, naming: Naming) -> None:
        if naming.made is not None:
            self._next = naming.made + 1
        if naming.made is not None and naming.directory:
            self.names[naming.made] = {}
            self._durable[naming.made] = {}
        elif naming.made is not None:
            self._files[naming.made] = _Contents()
        kept = {number for _, number in naming.entries}
        for (directory, name), _ in naming.entries:
            lost = self.names[directory].get(name)
            if lost in self._files and lost not in kept:
                data = self._files[lost].cached
                self._removed = bytes(data.ljust(-(-len(data) // self.sector_bytes) * self.sector_bytes, b"\0"))
        _rename(self.names, naming)
        self._pending.append(naming)

    def _sync_names(self, directory: int) -> None:
        """What touches the directory is durable, and what was done before to the same names."""
        names: set[Entry] = set()
        durable: list[Naming] = []
        for naming in reversed(self._pending):
            touched = {entry for entry, _ in naming.entries}
            if names & touched or any(place == directory for place, _ in touched):
                names |= touched
                durable.append(naming)
        for naming in reversed(durable):
            self._pending.remove(naming)
            _rename(self._durable, naming)

    def _flip(self, contents: _Contents, bit: int) -> None:
        byte, shift = divmod(bit, 8)
        sector, within = divmod(byte, self.sector_bytes)
        contents.cached[byte] ^= 1 << shift
        if byte < len(contents.durable):
            contents.durable[byte] ^= 1 << shift
        versions = contents.sectors.get(sector, [])
        for number, version in enumerate(versions):
            if within < len(version):
                versions[number] = version[:within] + bytes([version[within] ^ 1 << shift]) + version[within + 1 :]

    # -- what a loss of power may leave --

    def choices(self) -> list[int]:
        """How many ways there are for each thing that is not durable; empty where all is."""
        dirty = list(self._dirty())
        ways = [2] * len(self._pending)
        for contents in dirty:
            ways.append(len(contents.sizes))
            ways += [1 + len(contents.sectors[sector]) for sector in sorted(contents.sectors)]
        return [*ways, FILLERS] if any(len(contents.sizes) > 1 for contents in dirty) else ways

    def _dirty(self) -> Iterator[_Contents]:
        """Files that are not durable and may be found by some name."""
        named = {number for names in self._durable.values() for number in names.values()}
        named |= {number for naming in self._pending for _, number in naming.entries if number is not None}
        return (self._files[n] for n in sorted(named) if n in self._files and self._files[n].dirty)

    def image(self, choice: Sequence[int], noise: Random) -> "Disk":
        """The disk that is found after the loss, with all that is on it durable: one of ``choices`` for each thing."""
        chosen = iter(choice)
        found = Disk(sector_bytes=self.sector_bytes)
        found._next = self._next
        found._durable = {number: dict(names) for number, names in self._durable.items()}
        for naming in self._pending:
            if next(chosen):
                _rename(found._durable, naming)
        taken = {id(contents): list(_taken(contents, chosen)) for contents in self._dirty()}
        filler = next(chosen, 0)
        for number, contents in self._files.items():
            data = contents.durable
            if id(contents) in taken:
                size, *versions = taken[id(contents)]
                data = self._survivor(contents, contents.sizes[size], versions, self._filler(filler, noise))
            elif not contents.dirty and contents.cached == data:
                self._shared.add(number)
                found._shared.add(number)
                found._files[number] = contents
                continue
            found._files[number] = _Contents(bytearray(data), bytearray(data), [len(data)])
        found._forget_unreachable()
        found.names = {number: dict(names) for number, names in found._durable.items()}
        return found

    def _filler(self, way: int, noise: Random) -> bytes:
        if way == 0:
            return b"\0"
        return self._removed if way == 1 and self._removed else noise.randbytes(8 * self.sector_bytes)

    def _survivor(self, contents: _Contents, size: int, versions: list[int], filler: bytes) -> bytearray:
        width = self.sector_bytes
        data = contents.durable[:size]
        data.extend(bytes(min(-len(data) % width, size - len(data))))
        start, missing = len(data) % len(filler), size - len(data)
        data.extend((filler * (2 + missing // len(filler)))[start : start + missing])
        for sector, version in zip(sorted(contents.sectors), versions, strict=True):
            if version:
                piece = contents.sectors[sector][version - 1].ljust(width, b"\0")
                data[sector * width : (sector + 1) * width] = piece[: max(0, size - sector * width)]
        return data

    def _forget_unreachable(self) -> None:
        reached, pending = {ROOT}, [ROOT]
        while pending:
            for number in self._durable.get(pending.pop(), {}).values():
                if number not in reached:
                    reached.add(number)
                    pending.append(number)
        self._durable = {number: names for number, names in self._durable.items() if number in reached}
        self._files = {number: contents for number, contents in self._files.items() if number in reached}

    def walk(self, directory: int = ROOT) -> Iterator[tuple[str, int]]:
        """Path below the directory and number of all that programs see, in order of names."""
        pending = [("", directory)]
        while pending:
            path, number = pending.pop()
            if path:
                yield path, number
            below = self.names.get(number, {})
            pending += [(f"{path}/{name}" if path else name, below[name]) for name in sorted(below, reverse=True)]

    def digest(self) -> bytes:
        """The same for disks on which programs see the same."""
        digest = blake2b(digest_size=16)
        for path, number in self.walk():
            data = self._files[number].cached if number in self._files else None
            digest.update(repr((path, None if data is None else len(data))).encode() + (data or b""))
        return digest.digest()


def _rename(directories: Mapping[int, dict[str, int]], naming: Naming) -> None:
    for (directory, name), number in naming.entries:
        if number is None:
            directories[directory].pop(name, None)
        else:
            directories[directory][name] = number


def _taken(contents: _Contents, chosen: Iterator[int]) -> Iterator[int]:
    """The choices for the length and for each sector of a file."""
    yield next(chosen)
    for _ in contents.sectors:
        yield next(chosen)
