"""The hash and the identity of a key, computed naively from raw values, with Python's integers only.

Written from the description of the formats, not from the kernel's code.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from arrays import Raw, Unscaled

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_NUMBER, _BYTES = 0x243F6A8885A308D3, 0x13198A2E03707344
_LOW, _END, _SIZE = 0xA4093822299F31D0, 0x082EFA98EC4E6C89, 0x452821E638D01377
_NULL = 0xBE5466CF34E90C6C


def mix(x: int) -> int:
    x ^= x >> 33
    x = x * 0xFF51AFD7ED558CCD & _MASK
    x ^= x >> 33
    x = x * 0xC4CEB9FE1A85EC53 & _MASK
    return x ^ x >> 33


def fold(x: int, y: int) -> int:
    product = x * y
    return product & _MASK ^ product >> 64


def number_of(raw: bool | int | float) -> int:
    if isinstance(raw, float):
        raw = math.nan if math.isnan(raw) else raw if raw else 0.0
        return 0x7FF8000000000000 if math.isnan(raw) else struct.unpack("<Q", struct.pack("<d", raw))[0]
    return int(raw) & _MASK


def bytes_of(raw: bytes | Unscaled) -> bytes:
    return raw if isinstance(raw, bytes) else raw.value.to_bytes(raw.size_bytes, "little", signed=True)


def blocks_of(data: bytes) -> list[tuple[int, int]]:
    padded = data + b"\0" * (-len(data) % 16)
    return [struct.unpack_from("<QQ", padded, at) for at in range(0, len(padded), 16)]


def hash_value(raw: Raw) -> int:
    if raw is None:
        return _NULL
    if not isinstance(raw, bytes | Unscaled):
        return mix(number_of(raw) ^ _NUMBER)
    data = bytes_of(raw)
    state = _BYTES
    for a, b in blocks_of(data):
        state = fold(a ^ _LOW, b ^ state)
    return fold(state ^ _END, len(data) ^ _SIZE)


def hash_row(row: Sequence[Raw]) -> int:
    state = hash_value(row[0])
    for raw in row[1:]:
        state = mix((state * _GOLDEN + hash_value(raw)) & _MASK)
    return state


def expand_seed(seed: bytes) -> list[int]:
    first, second = struct.unpack("<QQ", seed)
    steps = [(i + 1) * _GOLDEN & _MASK for i in range(8)]
    return [mix((first + step) & _MASK) ^ mix(second ^ mix(step)) for step in steps]


def safe_fold(x: int, y: int) -> int:
    return fold(x, y) ^ x ^ ((y << 32 | y >> 32) & _MASK)


def fingerprint(row: Sequence[Raw], seed: bytes) -> bytes:
    k = expand_seed(seed)
    s = t = 0
    for ordinal, raw in enumerate(row):
        assert raw is not None
        data = bytes_of(raw) if isinstance(raw, bytes | Unscaled) else struct.pack("<Q", number_of(raw))
        for a, b in [*blocks_of(data), (len(data), ordinal)]:
            s, t = safe_fold(a ^ k[0] ^ s, b ^ k[1] ^ t), safe_fold(a ^ k[2] ^ t, b ^ k[3] ^ s)
    return struct.pack("<QQ", safe_fold(s ^ k[4], t ^ k[5]), safe_fold(t ^ k[6], s ^ k[7]))


def packed(row: Sequence[Raw]) -> bytes | None:
    """The key's canonical bytes, padded to 16, or None when it is not of fixed width or too long."""
    parts = []
    for raw in row:
        if isinstance(raw, bytes):
            return None
        if isinstance(raw, bool):
            parts.append(bytes([raw]))
        elif isinstance(raw, Unscaled):
            parts.append(bytes_of(raw))
        else:
            assert raw is not None
            parts.append(struct.pack("<Q", number_of(raw)))
    whole = b"".join(parts)
    return whole.ljust(16, b"\0") if len(whole) <= 16 else None


def key_id(row: Sequence[Raw], seed: bytes) -> bytes | None:
    """The identity of a key; None where a component is null."""
    if any(raw is None for raw in row):
        return None
    if len(row) == 1 and isinstance(row[0], bytes) and len(row[0]) == 16:
        return row[0]
    whole = packed(row)
    return fingerprint(row, seed) if whole is None else whole
