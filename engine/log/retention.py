"""Which segments of a partition may go: whole ones, the oldest first, that no group needs.

    <partition>/floor   a document: {"number": …}, the oldest segment that is kept

Laws
    - The floor is durable before a segment goes: one that is missing above it is damage, not retention.
    - The newest segment stays.
    - What is below the floor goes when the log is opened for writing, if a crash left it: a reader finds no gap.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

from engine.log.document import read_document, write_document
from engine.log.groups import Groups
from engine.log.partition import Partition, microseconds
from engine.log.reader import first_time_us
from engine.log.segment import Segment, segment_names
from engine.nature import wall_clock
from engine.storage import Storage

__all__ = ["Retention"]


@dataclass(frozen=True, slots=True)
class Retention:
    """How much is kept; None keeps all."""

    retain_bytes: int | None
    retain_age_s: float | None

    @staticmethod
    def floor(storage: Storage, directory: str) -> int:
        """The number of the oldest segment that was kept. Raises CorruptLog, OSError."""
        document = read_document(storage, os.path.join(directory, "floor"))
        return 0 if document is None else int(document["number"])

    def finish(self, storage: Storage, directory: str) -> None:
        """Remove what a crash left below the floor. Raises CorruptLog, OSError."""
        floor = self.floor(storage, directory)
        for number, name in segment_names(storage.list(directory)):
            if number < floor:
                storage.unlink(os.path.join(directory, name))

    def due(self, writer: Partition) -> bool:
        """Whether it is worth looking: a segment was ended since the last time, or there is too much."""
        return self._limited and writer.rolled

    def apply(self, storage: Storage, writer: Partition, groups: Groups) -> bool:
        """Remove what need not be kept; say whether there still is too much, because of a group. Raises OSError."""
        if not self._limited:
            return False
        with writer.retaining:
            writer.rolled = False
            segments = list(writer.segments)
            count, full = self._count_to_remove(storage, segments, groups.lowest(writer.number))
            if count:
                floor = {"number": segments[count].header.number}
                write_document(storage, os.path.join(writer.directory, "floor"), floor)
                for segment in segments[:count]:
                    # One that could not be removed is tried again: a reader must not find a gap behind it.
                    with suppress(FileNotFoundError):
                        storage.unlink(segment.path)
                    writer.forget_oldest(1)
            writer.rolled |= full
            return full

    @property
    def _limited(self) -> bool:
        return self.retain_bytes is not None or self.retain_age_s is not None

    def _count_to_remove(self, storage: Storage, segments: list[Segment], taken: int | None) -> tuple[int, bool]:
        """How many of the oldest, and whether a group alone keeps the next one."""
        left = sum(storage.size(segment.path) for segment in segments)
        for index, (segment, following) in enumerate(pairwise(segments)):
            too_much = self.retain_bytes is not None and left > self.retain_bytes
            if not too_much and not self._expired(storage, following.path):
                return index, False
            if taken is not None and following.header.base > taken:
                return index, too_much
            left -= storage.size(segment.path)
        return max(0, len(segments) - 1), False

    def _expired(self, storage: Storage, following: str) -> bool:
        """Whether all rows before the segment ``following`` are too old: its first ones are."""
        if self.retain_age_s is None:
            return False
        first_us = first_time_us(storage, following)
        return first_us is not None and first_us < microseconds(wall_clock()) - int(self.retain_age_s * 1e6)
