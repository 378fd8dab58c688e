"""Small files that are replaced whole: one line of JSON behind its checksum.

    <8 hexadecimal digits: crc32c of the JSON> <canonical JSON> newline

Laws
    - A document is replaced by tmp, fsync, rename, fsync of the directory: a reader finds the old one or the new one.
    - One that is there and cannot be read is damage, never "not there".
"""

import json
import os
from contextlib import suppress
from typing import Any

from engine._core.crc32c import crc32c
from engine.errors import CorruptLog
from engine.storage import Storage

__all__ = ["read_document", "write_document"]


def write_document(storage: Storage, path: str, value: dict[str, Any]) -> None:
    """Make ``value`` the durable content of ``path``. Raises OSError."""
    body = json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")
    with suppress(FileNotFoundError):
        storage.unlink(f"{path}.tmp")
    with storage.create(f"{path}.tmp") as file:
        file.append(b"%08x %s\n" % (crc32c(body), body))
        file.sync()
    storage.rename(f"{path}.tmp", path)
    storage.sync_directory(os.path.dirname(path))


def read_document(storage: Storage, path: str) -> dict[str, Any] | None:
    """What ``path`` holds; None where it is not there. Raises CorruptLog, OSError."""
    try:
        with storage.open(path) as file:
            data = file.pread(file.size, 0)
    except FileNotFoundError:
        return None
    body = data[9:-1]
    if data != b"%08x %s\n" % (crc32c(body), body):
        raise CorruptLog(
            f"{path} is damaged: its checksum is wrong.\n  Nothing was changed. Bring back a whole copy.", path=path
        )
    value: dict[str, Any] = json.loads(body)
    return value
