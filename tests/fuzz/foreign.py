"""Batches as a foreign producer may hand them over: C structs made by hand, sound or broken in their structure.

Every buffer is exactly as long as its column needs, in memory of its own, so that the address sanitizer sees a read of
one byte more. Contents (offsets, indices, views) are always sound: a producer promises them. What is broken is what
the interface lets a consumer check: counts, lengths, pointers that are missing, formats, structs already released.
"""

from __future__ import annotations

import ctypes
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from choices import Choices

_RELEASE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_NEW_CAPSULE = ctypes.pythonapi.PyCapsule_New
_NEW_CAPSULE.restype, _NEW_CAPSULE.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class CSchema(ctypes.Structure):
    _fields_ = (
        ("format", ctypes.c_char_p),
        ("name", ctypes.c_char_p),
        ("metadata", ctypes.c_char_p),
        ("flags", ctypes.c_int64),
        ("n_children", ctypes.c_int64),
        ("children", ctypes.c_void_p),
        ("dictionary", ctypes.c_void_p),
        ("release", ctypes.c_void_p),
        ("private_data", ctypes.c_void_p),
    )


class CArray(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")),
        *((name, ctypes.c_void_p) for name in ("buffers", "children", "dictionary", "release", "private_data")),
    )


@_RELEASE
def _release_schema(address: int) -> None:
    CSchema.from_address(address).release = None


@_RELEASE
def _release_array(address: int) -> None:
    CArray.from_address(address).release = None


@dataclass
class Node:
    """One array and its schema; `raw` are its values, in the canonical bytes that equal keys share, None for null."""

    format: bytes
    length: int
    buffers: list[bytes | None]
    raw: list[object] = field(default_factory=list)
    offset: int = 0
    null_count: int = -1
    children: list[Node] = field(default_factory=list)
    dictionary: Node | None = None


FIXED: dict[bytes, str] = {
    b"c": "b", b"C": "B", b"s": "h", b"S": "H", b"i": "i", b"I": "I", b"l": "q", b"L": "Q", b"f": "f", b"g": "d",
    b"tdD": "i", b"tsu:UTC": "q", b"w:16": "16s", b"w:5": "5s",
}  # fmt: skip
"""Formats of fixed width, and how `struct` reads a slot."""

TEXT = {b"z": "i", b"Z": "q"}
"""Formats of text, and how `struct` writes an offset."""


def _validity(choices: Choices, slots: int) -> tuple[bytes | None, list[bool]]:
    if choices.often():
        return None, [True] * slots
    bits = choices.raw(-(-slots // 8))
    return bits, [bool(bits[slot >> 3] >> (slot & 7) & 1) for slot in range(slots)]


def _masked(values: list[object], valid: list[bool], offset: int) -> list[object]:
    return [value if there else None for value, there in zip(values, valid, strict=True)][offset:]


def column(
    choices: Choices, rows: int, kinds: tuple[str, ...] = ("fixed", "bits", "text", "view", "codes", "null")
) -> Node:
    """A sound column of `rows` rows, behind an offset as often as not."""
    kind = choices.one_of(kinds)
    offset = choices.one_of((0, 0, 1, 7, 9))
    slots = offset + rows
    if kind == "null":
        return Node(b"n", rows, [], [None] * rows)
    if kind == "codes":
        values = column(choices, 1 + choices.below(5), ("fixed", "text", "view"))
        validity, valid = _validity(choices, slots)
        codes = bytes(choices.below(values.length) for _ in range(slots))
        raw = _masked([values.raw[code] for code in codes], valid, offset)
        return Node(b"C", rows, [validity, codes], raw, offset, dictionary=values)
    validity, valid = _validity(choices, slots)
    if kind == "bits":
        bits = choices.raw(-(-slots // 8))
        raw = _masked([bool(bits[slot >> 3] >> (slot & 7) & 1) for slot in range(slots)], valid, offset)
        return Node(b"b", rows, [validity, bits], raw, offset)
    if kind == "fixed":
        written = choices.one_of(tuple(FIXED))
        data = choices.raw(slots * struct.calcsize(f"<{FIXED[written]}"))
        raw = _masked([value for (value,) in struct.iter_unpack(f"<{FIXED[written]}", data)], valid, offset)
        return Node(written, rows, [validity, data], raw, offset)
    texts = [choices.raw(choices.one_of((0, 1, 3, 12, 13, 16, 17, 40))) for _ in range(slots)]
    raw = _masked(list(texts), valid, offset)
    if kind == "view":
        return Node(b"vz", rows, [validity, *_views(texts)], raw, offset)
    written = choices.one_of(tuple(TEXT))
    ends = [0]
    for text in texts:
        ends.append(ends[-1] + len(text))
    return Node(
        written, rows, [validity, struct.pack(f"<{len(ends)}{TEXT[written]}", *ends), b"".join(texts)], raw, offset
    )


def _views(texts: list[bytes]) -> list[bytes | None]:
    slots, long = [], b""
    for text in texts:
        if len(text) <= 12:
            slots.append(struct.pack("<i12s", len(text), text))
        else:
            slots.append(struct.pack("<i4sii", len(text), text[:4], 0, len(long)))
            long += text
    return [b"".join(slots), long, struct.pack("<q", len(long))]


def batch(choices: Choices, max_columns: int = 3, **wanted: tuple[str, ...]) -> Node:
    """A sound struct of up to `max_columns` columns and up to 40 rows."""
    rows = choices.below(41)
    columns = [column(choices, rows, **wanted) for _ in range(1 + choices.below(max_columns))]
    return Node(b"+s", rows, [None], children=columns)


_LATEST: deque[Foreign] = deque(maxlen=16)
"""What a consumer imported may be released after the producer was dropped: in the order of a function's locals."""


class Foreign:
    """Exports a node through the PyCapsule protocol; all its memory stays until some more of them were made."""

    def __init__(self, node: Node) -> None:
        self._kept: list[object] = []
        self.root = node
        self.structs: dict[int, tuple[CSchema, CArray]] = {}
        self._build(node, b"root")
        _LATEST.append(self)

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        schema, array = self.structs[id(self.root)]
        return (
            _NEW_CAPSULE(ctypes.addressof(schema), b"arrow_schema", None),
            _NEW_CAPSULE(ctypes.addressof(array), b"arrow_array", None),
        )

    def _pointers(self, addresses: list[int | None]) -> int | None:
        if not addresses:
            return None
        table = (ctypes.c_void_p * len(addresses))(*addresses)
        self._kept.append(table)
        return ctypes.addressof(table)

    def _memory(self, data: bytes | None) -> int | None:
        if data is None:
            return None
        memory = np.frombuffer(data, np.uint8).copy()
        self._kept.append(memory)
        return int(memory.ctypes.data)

    def _build(self, node: Node, name: bytes) -> None:
        for number, child in enumerate(node.children):
            self._build(child, b"c%d" % number)
        if node.dictionary is not None:
            self._build(node.dictionary, b"values")
        below = [self.structs[id(child)] for child in node.children]
        codes = None if node.dictionary is None else self.structs[id(node.dictionary)]
        schema = CSchema(
            node.format, name, None, 2, len(below),
            self._pointers([ctypes.addressof(schema) for schema, _ in below]),
            None if codes is None else ctypes.addressof(codes[0]),
            ctypes.cast(_release_schema, ctypes.c_void_p), None,
        )  # fmt: skip
        array = CArray(
            node.length, node.null_count if node.buffers and node.buffers[0] is not None else 0, node.offset,
            len(node.buffers), len(below),
            self._pointers([self._memory(data) for data in node.buffers]),
            self._pointers([ctypes.addressof(array) for _, array in below]),
            None if codes is None else ctypes.addressof(codes[1]),
            ctypes.cast(_release_array, ctypes.c_void_p), None,
        )  # fmt: skip
        self.structs[id(node)] = schema, array


UNKNOWN_FORMATS = (
    b"",
    b"?",
    b"xyz",
    b"w:",
    b"w:-1",
    b"w:x",
    b"w:99999999999",
    b"d:",
    b"d:5",
    b"d:5,1,7",
    b"t",
    b"tx",
    b"td",
)


def _reads_text(node: Node) -> bool:
    """Whether its rows have text; there may be some in the slots before them only, which nobody reads."""
    if node.format not in TEXT or node.buffers[1] is None:
        return False
    ends = [end for (end,) in struct.iter_unpack(f"<{TEXT[node.format]}", node.buffers[1])]
    return ends[node.offset] < ends[-1]


def spoil(choices: Choices, foreign: Foreign) -> str:
    """Breaks the structure in one place, such that every kernel must refuse the batch; says how."""
    children = [child for child in foreign.root.children if child.buffers]
    if not children or choices.below(3) == 0:
        return _spoil_root(choices, foreign)
    node = choices.one_of(children)
    schema, array = foreign.structs[id(node)]
    rows = foreign.root.length
    ways: dict[str, Callable[[], None]] = {
        "buffers too few": lambda: setattr(array, "n_buffers", choices.below(2)),
        "buffers missing": lambda: setattr(array, "buffers", None),
        "negative count of buffers": lambda: setattr(array, "n_buffers", -1),
        "negative length": lambda: setattr(array, "length", -1),
        "negative offset": lambda: setattr(array, "offset", -1),
        "an offset beyond all memory": lambda: setattr(array, "offset", 2**63 - 1),
        "array released": lambda: setattr(array, "release", None),
        "schema released": lambda: setattr(schema, "release", None),
        "no format": lambda: setattr(schema, "format", None),
        "unknown format": lambda: setattr(schema, "format", choices.one_of(UNKNOWN_FORMATS)),
    }
    if node.format not in (b"vz",):
        ways["one buffer more"] = lambda: setattr(array, "n_buffers", len(node.buffers) + 1)
    if rows:
        ways["shorter than its batch"] = lambda: setattr(array, "length", rows - 1)
        if node.buffers[1]:
            ways["values missing"] = lambda: ctypes.c_void_p.from_address(array.buffers + 8).__setattr__("value", None)
        if _reads_text(node):
            ways["text missing"] = lambda: ctypes.c_void_p.from_address(array.buffers + 16).__setattr__("value", None)
    if node.dictionary is not None:
        ways["dictionary missing"] = lambda: setattr(array, "dictionary", None)
        ways["dictionary's schema missing"] = lambda: setattr(schema, "dictionary", None)
    way = choices.one_of(tuple(ways))
    ways[way]()
    return f"{way} of a column of format {node.format.decode()}"


def _spoil_root(choices: Choices, foreign: Foreign) -> str:
    schema, array = foreign.structs[id(foreign.root)]
    ways: dict[str, Callable[[], None]] = {
        "negative length": lambda: setattr(array, "length", -1),
        "negative offset": lambda: setattr(array, "offset", -1),
        "an offset beyond all memory": lambda: setattr(array, "offset", 2**63 - 1),
        "array released": lambda: setattr(array, "release", None),
        "schema released": lambda: setattr(schema, "release", None),
        "one array fewer": lambda: setattr(array, "n_children", len(foreign.root.children) - 1),
        "negative count of columns": lambda: (setattr(array, "n_children", -1), setattr(schema, "n_children", -1)),
        "columns missing": lambda: setattr(array, "children", None),
        "columns' schemas missing": lambda: setattr(schema, "children", None),
        "a column missing": lambda: ctypes.c_void_p.from_address(array.children).__setattr__("value", None),
        "a column's schema missing": lambda: ctypes.c_void_p.from_address(schema.children).__setattr__("value", None),
        "no struct": lambda: setattr(schema, "format", choices.one_of((b"l", b"u", b"+l", b"", b"+"))),
        "no format": lambda: setattr(schema, "format", None),
        "nulls without a bitmap's place": lambda: (setattr(array, "null_count", 1), setattr(array, "buffers", None)),
    }
    way = choices.one_of(tuple(ways))
    ways[way]()
    return f"{way} of the batch"
