"""How far a pipeline has come: offsets, epochs, tokens, and the mark that travels between batches.

Laws
    - An offset is the position of the *next* row; ranges are half-open. Only its source understands it.
    - An epoch number is never reused within an incarnation, not even after an attempt that was given up.
    - A barrier ends its epoch: rows before it belong to the epoch, rows behind it to a later one.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["Barrier", "Epoch", "Offset", "Token"]

Offset: TypeAlias = Any
"""The position of the next row of a source: a value that JSON can hold. ``None`` is the beginning."""

Epoch: TypeAlias = int


@dataclass(frozen=True, slots=True)
class Token:
    """Names one commit of one sink for ever: publishing twice under the same token is publishing once."""

    incarnation: str
    epoch: Epoch
    term: str
    sink: str


@dataclass(frozen=True, slots=True)
class Barrier:
    """Ends an epoch. It travels in the channels, in order, and needs no credit."""

    epoch: Epoch
