"""Any single bit of a durable file is turned over: segments, manifests, the files of windows.

Verified: at or below what is durable the damage is told, with the file, and nothing is changed; above it, what was not
acknowledged is kept aside and reported, and no acknowledged row is missing. Never a wrong answer, never another error.
Without the comparison of checksums the same checks fail.
Not verified here: several bits, other damage (``log/test_damage``).
"""

import random
import time
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from types import ModuleType

import pytest
from crash.flipped_subjects import SAME, SUBJECTS, TOLD, TORN, Subject

from engine.checkpoint import manifest
from engine.log import body, document, segment

SHARE_OF_OWNERS = 1 / 4
"""Of the flips that a reader was told of; the owner meets all others."""


def flips(subject: Subject, most: int, chance: random.Random) -> Iterator[tuple[str, int]]:
    """(path, bit): all of the subject's bits, or every so many-th of them."""
    contents = subject.found.contents()
    sizes = [(path, 8 * len(contents[path] or b"")) for path in subject.guarded]
    total = sum(bits for _, bits in sizes)
    stride = max(1, total // most) if most else 1
    place = chance.randrange(stride)
    for path, bits in sizes:
        yield from ((path, bit) for bit in range(place, bits, stride))
        place = (place - bits) % stride


def examined(subject: Subject, path: str, bit: int, chance: random.Random) -> tuple[bool, str]:
    """Whether the bit is guarded, and what became of it. Raises whatever is wrong."""
    damaged = subject.found.copy()
    damaged.flip_bit(path, bit)
    guarded = any(bit // 8 in places for places in subject.guarded[path])
    verdict = subject.examine(damaged, path, owner=chance.random() < SHARE_OF_OWNERS)
    assert verdict == TOLD or not guarded, "a bit that is durable is another one, and nobody says so"
    assert damaged.fired["bit flip"] == 1
    return guarded, verdict


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_flipped_bit(name: str, bit_flip_count: int, generator: random.Random) -> None:
    made = SUBJECTS[name]
    subject = made.make()
    most = bit_flip_count * made.weight // sum(other.weight for other in SUBJECTS.values())
    began, verdicts = time.process_time(), Counter[tuple[bool, str]]()
    for path, bit in flips(subject, most, generator):
        try:
            verdicts[examined(subject, path, bit, generator)] += 1
        except Exception as error:
            error.add_note(f"bit {bit} of {path}")
            raise
    total, took_s = sum(verdicts.values()), time.process_time() - began
    parts = {f"{'guarded' if guarded else 'beyond'}, {verdict}": n for (guarded, verdict), n in verdicts.items()}
    print(f"{total} flips, {total / took_s:.0f} a second, {took_s:.1f} s: {parts}")
    assert verdicts[True, TOLD] >= total * made.told
    assert set(verdicts) <= {(True, TOLD), (False, TOLD), (False, TORN), (False, SAME)}
    if "half" in name or "only written" in name:
        assert verdicts[False, TORN] > 0


MUTANTS: dict[str, tuple[str, tuple[ModuleType, ...], str]] = {
    "bodies": ("log", (body, segment), "*.seg"),
    "documents": ("log", (document,), "*/readers"),
    "records": ("manifest", (manifest,), "*/manifest-*"),
}
"""The subject, the modules that compare no checksums, and the files that are no longer guarded by them."""


@pytest.mark.parametrize("mutant", MUTANTS)
def test_without_checksums_flips_are_found(
    mutant: str, generator: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every checksum of the mutant is the same, when it is written and when it is compared."""
    name, modules, pattern = MUTANTS[mutant]
    for module in modules:
        monkeypatch.setattr(module, "crc32c", lambda data, crc=0: 0)
    subject = SUBJECTS[name].make()
    subject.guarded = {path: places for path, places in subject.guarded.items() if fnmatchcase(path, pattern)}
    assert subject.guarded
    found = 0
    for path, bit in flips(subject, 300, generator):
        try:
            examined(subject, path, bit, generator)
        except Exception:
            found += 1
    print(f"{found} found")
    assert found > 10
