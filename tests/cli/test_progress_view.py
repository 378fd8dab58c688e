"""The progress line: a pure formatter, and two writers on streams, on a pseudo-terminal, and on a closed pipe."""

import fcntl
import io
import os
import pty
import re
import struct
import termios
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cli.progress_view import PlainView, TerminalView, format_count, format_line, view_on
from engine.report import Statistics

MIB = 2**20
NOW = Statistics(
    pipeline="orders",
    rows_in=41_200_000,
    rows_out=37_080_000,
    duplicates=4_120_000,
    null_keys=0,
    rows_per_s=4_100_000.0,
    epoch=37,
    seconds_since_commit=1.2,
    memory_bytes=312 * MIB,
    memory_limit_bytes=512 * MIB,
    waiting="sink",
    elapsed_s=10.0,
)
LINE = "orders  41.2M rows  4.1M/s  10.0% duplicates  epoch 37 (1.2 s ago)  312/512 MiB  waiting: sink"


def test_the_whole_line():
    assert format_line(NOW) == LINE
    assert format_line(NOW, len(LINE)) == LINE


def test_what_is_not_known_is_not_shown():
    young = replace(NOW, rows_in=0, rows_per_s=0.0, duplicates=0, epoch=0, seconds_since_commit=None, waiting="")
    assert format_line(young) == "orders  0 rows  0/s  312/512 MiB"
    assert "epoch 1  " in format_line(replace(NOW, epoch=1, seconds_since_commit=None))


@pytest.mark.parametrize(
    ("room", "line"),
    [
        (1, "orders  41.2M rows  4.1M/s  10.0% duplicates  epoch 37 (1.2 s ago)  waiting: sink"),
        (20, "orders  41.2M rows  4.1M/s  epoch 37 (1.2 s ago)  waiting: sink"),
        (40, "orders  41.2M rows  4.1M/s  epoch 37 (1.2 s ago)"),
        (55, "orders  41.2M rows  4.1M/s"),
        (70, "orders  41.2M rows"),
        (80, "orders  41.2M "),
    ],
)
def test_the_least_important_part_goes_first(room, line):
    assert format_line(NOW, len(LINE) - room) == line


@given(
    st.builds(
        Statistics,
        pipeline=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True),
        rows_in=st.integers(0, 10**15),
        rows_out=st.integers(0, 10**15),
        duplicates=st.integers(0, 10**15),
        null_keys=st.integers(0, 10**15),
        rows_per_s=st.floats(0, 1e12),
        epoch=st.integers(0, 10**9),
        seconds_since_commit=st.none() | st.floats(0, 1e7),
        memory_bytes=st.integers(0, 10**13),
        memory_limit_bytes=st.integers(1, 10**13),
        waiting=st.text("abcdefghijklmnopqrstuvwxyz ", max_size=60),
        elapsed_s=st.floats(0, 1e7),
    ),
    st.integers(0, 300),
)
def test_never_wider_than_the_terminal(statistics, width):
    line = format_line(statistics, width)
    assert len(line) <= width
    assert "\n" not in line


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1_000, "1.0k"),
        (36_409, "36.4k"),
        (99_949, "99.9k"),
        (99_960, "100k"),
        (999_499, "999k"),
        (999_600, "1.0M"),
        (41_200_000, "41.2M"),
        (4.1e9, "4.1G"),
        (4.1e12, "4100G"),
    ],
)
def test_counts_have_at_most_four_figures(count, text):
    assert format_count(count) == text


def test_plain_lines_come_every_few_seconds_and_at_the_end():
    stream = io.StringIO()
    with view_on(stream) as view:
        assert isinstance(view, PlainView)
        for tenths in range(0, 131, 2):
            view(replace(NOW, elapsed_s=tenths / 10, rows_in=tenths * 1_000))
    lines = stream.getvalue().splitlines()
    assert [re.search(r"(\S+) rows", line)[1] for line in lines] == ["50.0k", "100k", "130k"]
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_the_last_plain_line_is_not_written_twice():
    stream = io.StringIO()
    with view_on(stream) as view:
        view(replace(NOW, elapsed_s=6.0))
    assert stream.getvalue() == LINE + "\n"
    with view_on(stream):
        pass
    assert stream.getvalue() == LINE + "\n"


def test_on_a_terminal_one_line_is_rewritten():
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 47, 0, 0))  # the first line has 47
    with os.fdopen(slave, "w", encoding="utf-8") as stream:
        with view_on(stream) as view:
            assert isinstance(view, TerminalView)
            for rows in (1_000, 2_000_000, 999):
                view(replace(NOW, rows_in=rows))
        raw = b""
        while not raw.endswith(b"\n"):  # a terminal gives what it has, piece by piece
            raw += os.read(master, 4096)
        shown = raw.decode()
    os.close(master)
    assert shown.count("\n") == 1
    assert shown.endswith("\n")
    drawn = re.findall(r"\r([^\r\n]*)\x1b\[K", shown)
    assert [line.split()[1] for line in drawn] == ["1.0k", "2.0M", "999"]
    assert all(len(line) < 47 for line in drawn)


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream, view_on(stream) as view:
        assert isinstance(view, PlainView)
    os.close(master)


@pytest.mark.parametrize("kind", [PlainView, TerminalView])
def test_a_stream_that_fails_silences_the_view(kind):
    read, write = os.pipe()
    os.close(read)
    stream = io.TextIOWrapper(io.FileIO(write, "w"), write_through=True)
    view = kind(stream)
    for second in (6, 12, 18):
        view(replace(NOW, elapsed_s=second))
    view.close()
    stream.detach().close()
