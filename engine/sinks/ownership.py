"""Whose a data file is: a mark inside the file, and a name that sorts in the order of commits.

Laws
    - The mark decides, never the name: a copied or renamed file stays recognisable, a look-alike name proves nothing.
    - Names of one partition sort in the order in which their rows were committed: epoch first, then the part.
      Parts 0 to 89 have two digits, later ones six (``900000`` is part 90), so that they sort behind.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from engine.progress import Token

__all__ = ["FileMark", "file_name", "looks_like_ours", "staged_epoch", "staged_name"]

PREFIX = "engine."
SHORT_PARTS = 90
NAME = re.compile(r"part-\d{5,}-\d{8,}-(?:[0-8]\d|9\d{5})(?:-[0-9a-zA-Z]{1,16})?\.\w+")
STAGED = re.compile(r"\d{5,}-(\d{8,})-\d{6,}\.\w+")


@dataclass(frozen=True, slots=True)
class FileMark:
    """What a data file says of itself: which commit of which sink it belongs to."""

    incarnation: str
    epoch: int
    term: str
    sink: str
    partition: int

    @classmethod
    def of(cls, token: Token, partition: int) -> Self:
        """The mark of the files of one partition under a token."""
        return cls(token.incarnation, token.epoch, token.term, token.sink, partition)

    @classmethod
    def from_handle(cls, handle: Mapping[str, Any]) -> Self:
        """The mark that a handle of a COMMIT holds."""
        return cls(**{field.name: handle[field.name] for field in fields(cls)})

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes] | None) -> Self | None:
        """The mark in a file's metadata; None where there is none or it is not whole."""
        found = {name: (metadata or {}).get(f"{PREFIX}{name}".encode()) for name in cls.__slots__}
        texts = {name: value.decode("utf-8", "replace") for name, value in found.items() if value is not None}
        if len(texts) != len(found) or not (texts["epoch"].isdecimal() and texts["partition"].isdecimal()):
            return None
        return cls(texts["incarnation"], int(texts["epoch"]), texts["term"], texts["sink"], int(texts["partition"]))

    def to_metadata(self) -> dict[str, str]:
        """The mark as key-value metadata for a file's footer."""
        return {f"{PREFIX}{name}": str(value) for name, value in asdict(self).items()}


def file_name(mark: FileMark, part: int, extension: str, *, shared: bool) -> str:
    """The published name; in a ``shared`` directory with the incarnation, as others may use such names there."""
    number = f"{part:02}" if part < SHORT_PARTS else f"9{part - SHORT_PARTS:05}"
    owner = f"-{short(mark.incarnation)}" if shared else ""
    return f"part-{mark.partition:05}-{mark.epoch:08}-{number}{owner}.{extension}"


def staged_name(mark: FileMark, sequence: int, extension: str) -> str:
    """The name in the staging directory."""
    return f"{mark.partition:05}-{mark.epoch:08}-{sequence:06}.{extension}"


def staged_epoch(name: str) -> int | None:
    """The epoch of a staged file by its name; None for a name that is not ours."""
    match = STAGED.fullmatch(name)
    return int(match[1]) if match else None


def looks_like_ours(name: str) -> bool:
    """Whether it is worth reading the file's mark."""
    return NAME.fullmatch(name) is not None


def short(incarnation: str) -> str:
    """The part of an incarnation that goes into names: 64 of its bits."""
    return "".join(character for character in incarnation if character.isalnum())[:16]
