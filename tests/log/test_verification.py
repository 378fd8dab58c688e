"""Verification tells of every damaged segment of every partition, wherever the damage is; and changes nothing."""

import errno
import random
from collections import Counter
from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pytest

from engine import Log
from engine.cli.main import main
from engine.errors import CorruptLog
from engine.log.format import HEADER_BYTES
from engine.log.verification import verify
from engine.storage import Storage

HEADER, BODY = 20, 200
"""A byte of a segment's header, and one of its first rows."""


@pytest.fixture(params=["closed", "as a crash leaves it"])
def path(request, tmp_path) -> Path:
    """Two partitions of three segments each; in the newest ones one append proves the one before it."""
    log = Log(tmp_path / "log", partitions=2)
    for partition in range(2):
        for number in range(4):
            log.append(pa.table({"n": range(number * 10, number * 10 + 10)}), partition=partition)
            if number < 2:
                log.roll()
    files = contents(tmp_path / "log")
    log.close()
    if request.param != "closed":
        for name, data in files.items():
            (tmp_path / "log" / name).write_bytes(data)
        for name in (tmp_path / "log").rglob("durable"):
            name.unlink()
    return tmp_path / "log"


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def segments(path: Path) -> list[Path]:
    found = sorted(path.rglob("*.seg"))
    assert len(found) == 6
    return found


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(bytes(data))


def damaged(path: Path) -> set[tuple[int, str]]:
    with Log(path, write=False) as log:
        return {(found.partition, found.path) for found in verify(log, Storage()) if found.damage is not None}


def place(file: Path) -> tuple[int, str]:
    return int(file.parent.name.split("-")[1]), file.name


@pytest.mark.parametrize("position", [HEADER, BODY])
def test_every_damaged_segment_is_told_of(path, position):
    assert HEADER < HEADER_BYTES < BODY
    assert damaged(path) == set()
    whole = segments(path)
    for count in (1, 2, 6):
        for chosen in combinations(whole, count):
            for file in chosen:
                flip(file, position)
            before = contents(path)
            assert damaged(path) == {place(file) for file in chosen}
            assert contents(path) == before
            for file in chosen:
                flip(file, position)
    assert damaged(path) == set()


def test_the_newest_is_judged_behind_damage_that_hides_it(path, generator: random.Random):
    """An older segment without a header keeps the newest from being read: what it proves of itself must do."""
    older, newest = segments(path)[0], segments(path)[2]
    flip(older, HEADER)
    verdicts = Counter()
    for position in generator.sample(range(HEADER_BYTES, newest.stat().st_size // 3), 40):
        flip(newest, position)
        hidden = place(newest) in damaged(path)
        flip(older, HEADER)
        alone = place(newest) in damaged(path)
        flip(older, HEADER)
        flip(newest, position)
        assert hidden == alone
        verdicts[alone] += 1
    print(verdicts)
    assert verdicts[True]


def test_segments_that_are_gone_or_of_another_log(path, tmp_path):
    with Log(tmp_path / "other", partitions=2) as other:
        for partition in range(2):
            other.append(pa.table({"n": range(10)}), partition=partition)
    first, second, third, *rest = segments(path)
    third.write_bytes(next((tmp_path / "other" / "partition-00000").glob("*.seg")).read_bytes())
    assert damaged(path) == {place(third)}  # its name is another one's
    second.unlink()
    assert damaged(path) == {place(first), place(third)}
    for file in rest:
        file.unlink()
    listed = damaged(path)
    assert {place(first), place(third)} <= listed
    with Log(path, write=False) as log:
        try:
            log.end(partition=1)
        except CorruptLog:
            assert (1, "partition-00001") in listed


def test_a_segment_that_the_disk_does_not_give_is_told_of(path, monkeypatch):
    victim, opened = segments(path)[1], Storage.open

    def refusing(self, name, **options):
        if name == str(victim):
            raise OSError(errno.EIO, "Input/output error", name)
        return opened(self, name, **options)

    with Log(path, write=False) as log:
        monkeypatch.setattr(Storage, "open", refusing)
        found = [each for each in verify(log, Storage()) if each.damage is not None]
    assert [(each.path, each.damage) for each in found] == [(victim.name, "it cannot be read: Input/output error")]


def test_a_damaged_group_hides_no_segment(path, capsys):
    with Log(path) as log:
        log.groups["billing"].commit(15)
    [group] = [file for file in (path / "groups").iterdir() if file.suffix != ".lock"]
    flip(group, 12)
    assert damaged(path) == {(0, "billing")}
    assert main(["log", "verify", str(path)]) == 1
    assert "partition 0 billing: rows 0 to 0 DAMAGED" in capsys.readouterr().out
    flip(sorted((path / "partition-00000").glob("*.seg"))[1], BODY)
    flip(sorted((path / "partition-00001").glob("*.seg"))[0], BODY)
    assert len(damaged(path)) == 3


def test_the_command_lists_them_all(path, capsys):
    whole = segments(path)
    for file in (whole[0], whole[2], whole[5]):
        flip(file, BODY)
    assert main(["log", "verify", str(path)]) == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [("DAMAGED at byte" in line, line.split()[2].rstrip(":")) for line in lines] == [
        (file in (whole[0], whole[2], whole[5]), file.name) for file in whole
    ]
    assert err == f"LogError: {path}: 3 damaged segments; nothing was changed.\n"
