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
    - All freedom is in the ``ways`` of a ``Loss``, how many there are for each thing that is open, and ``image`` takes
      one of them for each: 0 is what is durable, the last is what the cache holds. So all images of a small disk can
      be counted, and images of a large one drawn.
    - Images share what is alike: contents are copied before they change, and digested and pieced together once.

Not modelled: owners, modes and times; symbolic and hard links; an unlinked file that a crash brings back half removed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import product
from math import prod
from typing import TypeAlias

__all__ = [
    "NOISE_BYTES",
    "ROOT",
    "Change",
    "Disk",
    "DropDirty",
    "Entry",
    "Flip",
    "Loss",
    "Naming",
    "Resize",
    "Sync",
    "SyncNames",
    "Write",
]

ROOT = 0
"""The number of the directory that is always there."""

FILLERS = 3
"""Zeros, what a removed file left, noise."""

REMEMBERED_BYTES = 4 << 20
"""Of what may be found of one file."""

NOISE_BYTES = 4096
"""Enough for the largest sector: it comes again and again where more is missing."""

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
    known_digest: bytes | None = None
    known_survivors: "dict[tuple[tuple[int, ...], bytes], _Contents]" = field(default_factory=dict)

    @property
    def dirty(self) -> bool:
        return len(self.sizes) > 1 or bool(self.sectors)

    @property
    def ways(self) -> list[int]:
        """For the length, and then for each sector."""
        return [len(self.sizes), *(1 + len(self.sectors[sector]) for sector in sorted(self.sectors))]

    def digest(self) -> bytes:
        """The same for files in which programs see the same."""
        if self.known_digest is None:
            self.known_digest = blake2b(self.cached, digest_size=16).digest()
        return self.known_digest

    def forget(self) -> None:
        """What was remembered is no longer true."""
        self.known_digest = None
        self.known_survivors = {}

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
        self._files[file].forget()
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

    def walk(self, directory: int = ROOT) -> Iterator[tuple[str, int]]:
        """Path below the directory and number of all that programs see, in order of names."""
        pending = [("", directory)]
        while pending:
            path, number = pending.pop()
            if path:
                yield path, number
            below = self.names.get(number, {})
            pending += [(f"{path}/{name}" if path else name, below[name]) for name in sorted(below, reverse=True)]

    def digests(self) -> dict[str, bytes]:
        """By path a digest of the bytes that programs see; that of a directory is empty."""
        files = self._files
        return {path: files[number].digest() if number in files else b"" for path, number in self.walk()}

    def digest(self) -> bytes:
        """The same for disks on which programs see the same."""
        return _digest_of([_piece(path, digest) for path, digest in self.digests().items()])


class Loss:
    """What a loss of power may leave of a disk, which must not change meanwhile.

    ``ways``: how many there are for each thing that is not durable; empty where all is. ``noise`` is what may stand
    where nothing was written.
    """

    def __init__(self, disk: Disk, noise: bytes) -> None:
        self._disk = disk
        self._renames = len(disk._pending)
        named = {number for names in disk._durable.values() for number in names.values()}
        named |= {number for naming in disk._pending for _, number in naming.entries if number is not None}
        self._dirty = [number for number in sorted(named) if number in disk._files and disk._files[number].dirty]
        self._fillers = [b"\0", disk._removed or noise, noise]
        self._trees: dict[tuple[int, ...], _Tree] = {}
        self._still: dict[int, _Contents] = {}
        self._digests: dict[tuple[int, tuple[int, ...], int], bytes] = {}
        self._places: dict[int, slice] = {}  # of a choice, what is about a file
        ways = [2] * self._renames
        for number in self._dirty:
            begin = len(ways)
            ways += disk._files[number].ways
            self._places[number] = slice(begin, len(ways))
        self._has_filler = any(len(disk._files[number].sizes) > 1 for number in self._dirty)
        self.ways = [*ways, FILLERS] if self._has_filler else ways

    @property
    def count(self) -> int:
        """How many choices there are."""
        return prod(self.ways)

    def choices(self) -> Iterator[tuple[int, ...]]:
        """Of the choices those that give all images; most that give an image again are left out."""
        fillers = range(FILLERS if self._has_filler else 1)
        trees: dict[tuple[tuple[str, int], ...], tuple[int, ...]] = {}
        for names in product(range(2), repeat=self._renames):
            trees.setdefault(self._tree(names).entries, names)
        for filler in fillers:
            distinct = {number: self._distinct(number, filler) for number in self._dirty}
            for names in trees.values():
                found = self._tree(names).files
                files = [distinct[n] if n in found else distinct[n][:1] for n in self._dirty]
                for taken in product(*files):
                    flat = (way for choice in taken for way in choice)
                    yield (*names, *flat, filler) if self._has_filler else (*names, *flat)

    def digest(self, choice: Sequence[int]) -> bytes:
        """That of the image of a choice, which need not be made for it."""
        tree, filler = self._tree(tuple(choice[: self._renames])), choice[-1] if self._has_filler else 0
        pieces = tree.pieces.copy()
        for position, number in tree.undecided:
            digest = self._digest_of_file(number, tuple(choice[self._places[number]]), filler)
            pieces[position] = _piece(tree.entries[position][0], digest)
        return _digest_of(pieces)

    def digests(self, choice: Sequence[int]) -> dict[str, bytes]:
        """As ``Disk.digests`` of that image."""
        tree, filler = self._tree(tuple(choice[: self._renames])), choice[-1] if self._has_filler else 0
        found = tree.digests.copy()
        for position, number in tree.undecided:
            found[tree.entries[position][0]] = self._digest_of_file(number, tuple(choice[self._places[number]]), filler)
        return found

    def _digest_of_file(self, number: int, choice: tuple[int, ...], filler: int) -> bytes:
        key = number, choice, filler
        if key not in self._digests:
            self._digests[key] = _survivor(self._disk, number, choice, self._fillers[filler]).digest()
        return self._digests[key]

    def image(self, choice: Sequence[int]) -> Disk:
        """The disk that is found after the loss, with all that is on it durable: one of ``ways`` for each thing.

        It shares its directories with other images: ``copy`` it before it changes.
        """
        tree = self._tree(tuple(choice[: self._renames]))
        filler = self._fillers[choice[-1] if self._has_filler else 0]
        found = Disk(sector_bytes=self._disk.sector_bytes)
        found._next = self._disk._next
        found.names = found._durable = tree.names
        for number in tree.files:
            if number in self._places:
                survivor = _survivor(self._disk, number, tuple(choice[self._places[number]]), filler)
                found._files[number] = survivor
            else:
                found._files[number] = self._durable(number)
        found._shared = set(found._files)
        return found

    def _tree(self, names: tuple[int, ...]) -> "_Tree":
        """The directories, where of the pending changes of names these were kept."""
        if names not in self._trees:
            directories = {number: dict(entries) for number, entries in self._disk._durable.items()}
            for naming, kept in zip(self._disk._pending, names, strict=True):
                if kept:
                    _rename(directories, naming)
            self._trees[names] = self._tree_of(directories)
        return self._trees[names]

    def _tree_of(self, directories: dict[int, dict[str, int]]) -> "_Tree":
        found = Disk()
        found.names = directories
        entries = list(found.walk())
        reached = {ROOT, *(number for _, number in entries)}
        files = frozenset(number for number in reached if self._disk.is_file(number))
        still = {number: self._durable(number).digest() for number in files if number not in self._places}
        digests = {path: still.get(number, b"") for path, number in entries}
        return _Tree(
            {number: names for number, names in directories.items() if number in reached},
            tuple(entries),
            files,
            digests,
            [_piece(path, digest) for path, digest in digests.items()],
            [(position, number) for position, (_, number) in enumerate(entries) if number in self._places],
        )

    def _distinct(self, number: int, filler: int) -> list[tuple[int, ...]]:
        """Of the choices for a file those that differ in what is found of it."""
        found: dict[bytes, tuple[int, ...]] = {}
        for choice in product(*map(range, self._disk._files[number].ways)):
            found.setdefault(self._digest_of_file(number, choice, filler), choice)
        return list(found.values())

    def _durable(self, number: int) -> _Contents:
        """A file without choices: as it is, or as it was before a sync that failed."""
        contents = self._disk._files[number]
        if number not in self._still:
            same = not contents.dirty and contents.cached == contents.durable
            self._still[number] = contents if same else _whole(contents.durable)
            self._disk._shared.add(number)
        return self._still[number]


@dataclass(frozen=True, slots=True)
class _Tree:
    """Directories that can be reached, what is found in them by path, and the numbers of the files among that.

    ``digests`` are those of what is found, and ``pieces`` what the digest of all is made of; at the positions in
    ``undecided`` is a file of that number, for which both depend on the choice.
    """

    names: dict[int, dict[str, int]]
    entries: tuple[tuple[str, int], ...]
    files: frozenset[int]
    digests: dict[str, bytes]
    pieces: list[bytes]
    undecided: list[tuple[int, int]]


def _survivor(disk: Disk, number: int, choice: tuple[int, ...], filler: bytes) -> _Contents:
    """What is found of a file when of its lengths and of the versions of its sectors these were kept."""
    contents, width = disk._files[number], disk.sector_bytes
    size, durable_bytes = contents.sizes[choice[0]], len(contents.durable)
    begin = size if size <= durable_bytes else min(size, -(-durable_bytes // width) * width)
    known = contents.known_survivors
    key = choice, filler if size > begin else b""
    if key in known:
        return known[key]
    data = contents.durable[:size]
    data.extend(bytes(begin - len(data)))
    start, missing = begin % len(filler), size - begin
    data.extend((filler * (2 + missing // len(filler)))[start : start + missing])
    for sector, version in zip(sorted(contents.sectors), choice[1:], strict=True):
        if version:
            piece = contents.sectors[sector][version - 1].ljust(width, b"\0")
            data[sector * width : (sector + 1) * width] = piece[: max(0, size - sector * width)]
    found = _whole(data)
    if size * len(known) < REMEMBERED_BYTES:
        known[key] = found
    return found


def _whole(data: bytearray) -> _Contents:
    """A file that is durable. Its two sides are one: it is copied before it changes."""
    return _Contents(data, data, [len(data)])


def _piece(path: str, digest: bytes) -> bytes:
    return b"%b\0%b" % (path.encode(errors="surrogateescape"), digest)


def _digest_of(pieces: list[bytes]) -> bytes:
    return blake2b(b"".join(pieces), digest_size=16).digest()


def _rename(directories: Mapping[int, dict[str, int]], naming: Naming) -> None:
    for (directory, name), number in naming.entries:
        if number is None:
            directories[directory].pop(name, None)
        else:
            directories[directory][name] = number
