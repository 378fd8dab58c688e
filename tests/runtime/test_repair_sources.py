"""Repair reads again exactly what was committed: from sources of every kind, and from several.

The model is a run on a copy of the same state, to which nothing happened. Verified: offsets within a batch; files and
rows that came between two runs; logs of several partitions, of groups, and such as have forgotten; sources that are
refused change nothing.
"""

import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runtime.damaged_states import (
    INPUT,
    OPTIONS,
    ROWS,
    STOP,
    Foreign,
    batches,
    everything,
    harm,
    options,
    pipeline,
    rows_of,
    stopped,
    victims,
)

from engine import Log, run, sources
from engine._runtime.repair import repair
from engine.checkpoint.inspection import inspect
from engine.errors import InputError, StageError, StateError
from engine.storage import Storage

TABLE = pa.Table.from_batches(INPUT)
HALF = ROWS // 2


def offset_of(path, source):
    return inspect(Storage(), str(path / "state" / "repaired")).last_commit.offsets[source.name]


def check_repaired(path, *, again=None, **choices):
    """Let a run go on without damage; then the same from a repaired state: its output is the same."""
    shutil.copytree(path, path.with_name("saved"))
    run(pipeline(path / "out", **choices), state=path / "state", **OPTIONS)
    expected = rows_of(path / "out")
    shutil.rmtree(path)
    path.with_name("saved").rename(path)
    harm(victims(path, "ids")[0], "flipped")
    repaired = repair(pipeline(path / "out", **choices | (again or {})), options(path))
    assert repaired.damaged
    run(pipeline(path / "out", **choices), state=path / "state", **OPTIONS)
    assert rows_of(path / "out") == expected
    assert len(expected) > 1_000
    return repaired


def check_refused(path, error, *messages, **choices):
    harm(victims(path, "ids")[0], "flipped")
    before = everything(path)
    with pytest.raises(error) as caught:
        repair(pipeline(path / "out", **choices), options(path))
    assert all(message in str(caught.value) for message in messages), caught.value
    assert everything(path) == before


@pytest.mark.parametrize("kind", ["parquet", "log"])
def test_sources_on_disk_read_in_two_runs(tmp_path, kind):
    """A window of rows, so that the order counts; the second run began in the middle."""
    if kind == "parquet":
        for first in range(0, ROWS, 6_500):
            pq.write_table(TABLE.slice(first, 6_500), tmp_path / f"in-{first:05}.parquet")
        read = sources.parquet(str(tmp_path / "in-*.parquet"))
    else:
        with Log(tmp_path / "log", partitions=2) as log:
            for number, rows in enumerate(INPUT):
                log.append(rows, partition=number % 2)
        read = sources.log(tmp_path / "log")
    choices = {"read": read, "within": 5_000}
    run(pipeline(tmp_path / "undisturbed", **choices), state=tmp_path / "other", **OPTIONS)
    for stop in (STOP // 2, STOP):
        with pytest.raises(StageError, match="stop here"):
            run(pipeline(tmp_path / "out", stop=stop, **choices), state=tmp_path / "state", **OPTIONS)
    harm(victims(tmp_path, "ids")[0], "flipped")
    assert repair(pipeline(tmp_path / "out", **choices), options(tmp_path)).damaged
    run(pipeline(tmp_path / "out", **choices), state=tmp_path / "state", **OPTIONS)
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "undisturbed")


def test_a_merge_of_sources_is_known_only_where_it_does_not_count(tmp_path):
    """A window of rows over two sources depends on their merge; keys for ever do not."""
    read = [sources.memory(INPUT, id="rows"), sources.memory(batches(24_000, "b "), id="more")]
    for within, name in ((9_000, "windowed"), (None, "for-ever")):
        path = tmp_path / name
        stopped(path, read=read, within=within)
        harm(victims(path, "ids")[0], "flipped")
        if within is not None:
            with pytest.raises(StateError, match="2 sources were merged"):
                repair(pipeline(path / "out", read=read, within=within), options(path))
            continue
        assert repair(pipeline(path / "out", read=read), options(path)).damaged
        run(pipeline(path / "out", read=read), state=path / "state", **OPTIONS)
        found = [row["id"] for row in pq.read_table(path / "out").to_pylist()]
        known = {key for source in (INPUT, batches(24_000, "b ")) for rows in source for key in rows["id"].to_pylist()}
        assert sorted(found) == sorted(known)


def test_several_sources_whose_offsets_fall_within_a_batch(tmp_path):
    """The rows of one come again in other batches; the log has more rows now."""
    more, logged = pa.Table.from_batches(batches(24_000, "b ")), pa.Table.from_batches(batches(24_000, "c "))
    pq.write_table(more, tmp_path / "more.parquet", row_group_size=5_000)
    with Log(tmp_path / "log") as log:
        log.append(logged.slice(0, 7_000))
    path = tmp_path / "work"
    kept = [sources.parquet(str(tmp_path / "more.parquet")), sources.log(tmp_path / "log")]
    first = [sources.memory(INPUT, id="rows"), *kept]
    stopped(path, read=first)
    with Log(tmp_path / "log") as log:
        log.append(logged.slice(7_000))
    committed = offset_of(path, first[0])["rows"]
    [(*_, rows)] = offset_of(path, kept[0])["files"]
    assert committed % 711
    assert rows is None or rows % 5_000 == 0
    again = [sources.memory(TABLE.combine_chunks().to_batches(max_chunksize=711), id="rows"), *kept]
    repaired = check_repaired(path, read=first, again={"read": again})
    assert repaired.rows > committed


def test_several_sources_of_users_end_only_where_a_read_does(tmp_path):
    """Nobody counted the rows of each: what cannot be told is refused."""
    more = sources.memory(batches(24_000, "b "), id="more")
    path = tmp_path / "work"
    stopped(path, read=[Foreign(sources.memory(INPUT, id="rows")), Foreign(more)])
    again = Foreign(sources.memory(TABLE.combine_chunks().to_batches(max_chunksize=711), id="rows"))
    check_refused(path, StateError, "memory(rows): the offset of the last commit", read=[again, Foreign(more)])
    read = [Foreign(sources.memory(INPUT, id="rows")), Foreign(more)]
    assert repair(pipeline(path / "out", read=read), options(path)).damaged


def test_a_file_that_sorts_before_those_that_were_read(tmp_path):
    """It came later: its rows are the later ones in the window."""
    read = sources.parquet(str(tmp_path / "in-*.parquet"))
    path = tmp_path / "work"
    choices = {"read": read, "within": 5_000}
    pq.write_table(TABLE.slice(0, 12_000), tmp_path / "in-b.parquet")
    run(pipeline(path / "out", **choices), state=path / "state", **OPTIONS)
    for first in range(12_000, ROWS, 6_000):
        pq.write_table(TABLE.slice(first, 6_000), tmp_path / f"in-a{first}.parquet")
    stopped(path, **choices)
    names = [name for name, *_ in offset_of(path, read)["files"]]
    assert names[:2] == ["in-b.parquet", "in-a12000.parquet"]
    check_repaired(path, **choices)


def grown_log(path, *, in_turn):
    """A log of two partitions, of one length or not: then the shorter one may get rows whose turn had been before."""
    with Log(path / "log", partitions=2) as log:
        for number, rows in enumerate(INPUT[:20]):
            log.append(rows, partition=number % 2 if in_turn else int(number >= 4))
    return sources.log(path / "log")


def grow(path, *, in_turn):
    with Log(path / "log") as log:
        for number, rows in enumerate(INPUT[20:]):
            log.append(rows, partition=number % 2 if in_turn else 0)


@pytest.mark.parametrize(("within", "in_turn"), [(None, False), (None, True), (5_000, True), (5_000, False)])
def test_a_log_that_grew_between_two_runs(tmp_path, within, in_turn):
    """Its rows up to the offset are read again, in the order in which they came, or, where that counts, not at all."""
    read = grown_log(tmp_path, in_turn=in_turn)
    path = tmp_path / "work"
    run(pipeline(path / "out", read=read, within=within), state=path / "state", **OPTIONS)
    grow(tmp_path, in_turn=in_turn)
    stopped(path, read=read, within=within)
    assert (offset_of(path, read)["turn"] is not None) == in_turn
    if within is not None and not in_turn:
        check_refused(path, StateError, read.name, "several runs read the partitions", read=read, within=within)
        return
    check_repaired(path, read=read, within=within)


def test_a_log_is_read_again_from_where_its_group_began(tmp_path):
    """The group has committed since then: it does not begin there any more."""
    with Log(tmp_path / "log", partitions=2) as log:
        for number, rows in enumerate(INPUT):
            log.append(rows, partition=number % 2)
        log.groups["readers"].commit(3_000, partition=1)
    read = sources.log(tmp_path / "log", group="readers")
    path = tmp_path / "work"
    stopped(path, read=read, within=5_000)
    offsets = offset_of(path, read)["offsets"]
    with Log(tmp_path / "log", write=False) as log:
        taken = log.groups["readers"].offsets()
        assert min(taken) > 3_000
    repaired = check_repaired(path, read=read, within=5_000)
    assert repaired.rows == sum(offsets) - 3_000
    with Log(tmp_path / "log", write=False) as log:
        assert log.groups["readers"].offsets() == (HALF, HALF)


@pytest.mark.parametrize("group", [None, "readers"])
def test_a_log_that_has_forgotten_what_is_to_be_read_again(tmp_path, group):
    read = sources.log(tmp_path / "log", group=group)
    path = tmp_path / "work"
    with Log(tmp_path / "log", partitions=2, segment_bytes=100_000) as log:
        for number, rows in enumerate(INPUT):
            log.append(rows, partition=number % 2)
        kept_bytes = sum(os.path.getsize(segment) for _, segment in log.bounds(partition=1))
    stopped(path, read=read)
    with Log(tmp_path / "log", segment_bytes=100_000, retain_bytes=kept_bytes * 3 // 4) as log:
        for number in range(3):
            log.append(INPUT[number], partition=1)
        oldest = log.start(partition=0)
        assert oldest > 0
    check_refused(
        path, InputError, read.name, "row 0 of partition 0", f"the oldest that is kept is {oldest:,}", read=read
    )


def test_an_older_copy_of_the_log(tmp_path):
    read = sources.log(tmp_path / "log")
    path = tmp_path / "work"
    with Log(tmp_path / "log") as log:
        for rows in INPUT[:5]:
            log.append(rows)
    shutil.copytree(tmp_path / "log", tmp_path / "older")
    with Log(tmp_path / "log") as log:
        for rows in INPUT[5:]:
            log.append(rows)
    stopped(path, read=read)
    shutil.rmtree(tmp_path / "log")
    (tmp_path / "older").rename(tmp_path / "log")
    check_refused(path, InputError, read.name, "is committed; the log ends at 5,000", read=read)


def test_another_log_in_the_place_of_the_one_that_was_read(tmp_path):
    read = sources.log(tmp_path / "log")
    path = tmp_path / "work"
    for _ in range(2):
        with Log(tmp_path / "log") as log:
            for rows in INPUT:
                log.append(rows)
        if not path.exists():
            stopped(path, read=read)
            shutil.rmtree(tmp_path / "log")
    check_refused(path, InputError, read.name, "It is another log in its place", read=read)
