"""The contract of an instrument: it is told of every event worth counting, and can do nothing about it.

Events are few (per epoch, per sealed run, never per batch) and named ``noun.verb``; tests use the same events to stop
the process at an exact point.
"""

from typing import Protocol

__all__ = ["SILENT", "Instrument"]


class Instrument(Protocol):
    """Called on any thread; must not block for long and must not raise."""

    def __call__(self, event: str, /, **fields: object) -> None:
        """``event`` happened."""


def SILENT(event: str, /, **fields: object) -> None:  # noqa: N802 - a constant that happens to be callable
    """The instrument that ignores everything."""
