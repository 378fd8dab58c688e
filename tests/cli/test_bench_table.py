"""What ``engine bench`` makes of pytest-benchmark's figures: the standings, the table, the picture."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from engine.cli.bench.plot import plot_svg
from engine.cli.bench.standing import Contender, Standing, standings_of
from engine.cli.bench.table import format_each_per_s, table_lines

SVG = "{http://www.w3.org/2000/svg}"

JOB = Standing(
    "job in memory",
    1_000_000,
    "row",
    "5f0c2a1b",
    (
        Contender("engine", 0.1, 600_000_000, 0.19, (0.1, 0.09, 0.0), "3 commits"),
        Contender("polars", 0.25, 900_000_000, 0.5, (0.3, 0.2)),
    ),
    ("duckdb",),
)
ALONE = Standing("bloom", 1_000, "id", "00c0ffee", (Contender("engine", 1e-6), Contender("engine, portable", 2e-6)))


def measured(group, name, median_s, **facts):
    return {
        "group": group,
        "name": name,
        "stats": {"median": median_s},
        "extra_info": {"items": 10, "unit": "row", "hash": "ab12", "absent": []} | facts,
    }


def test_a_standing_is_read_from_a_group():
    found = standings_of(
        [
            measured("hash", "engine", 1.0, note="warm", memory_bytes=5, cpu_s=0.5, thread_cpu_s=[0.4, 0.1]),
            measured("crc", "engine", 3.0, absent=["polars"]),
            measured("hash", "polars", 2.0),
        ]
    )
    assert found == [
        Standing(
            "hash",
            10,
            "row",
            "ab12",
            (Contender("engine", 1.0, 5, 0.5, (0.4, 0.1), "warm"), Contender("polars", 2.0)),
        ),
        Standing("crc", 10, "row", "ab12", (Contender("engine", 3.0),), ("polars",)),
    ]


def test_the_same_contest_of_another_size_is_another_contest():
    found = standings_of([measured("growth", "engine", 1.0, items=items) for items in (10, 100)])
    assert [(standing.title, standing.items) for standing in found] == [("growth", 10), ("growth", 100)]


def test_measurements_of_others_are_left_out():
    assert standings_of([{"group": None, "name": "other", "stats": {"median": 1.0}, "extra_info": {}}]) == []


def test_the_table():
    assert table_lines([JOB, ALONE]) == [
        "contest                        contender            ns each    each/s   ratio    memory   CPU s"
        "  answer and notes",
        "job in memory, 1,000,000 rows  engine                100.00   10.00 M   1.00x    600 MB    0.19"
        "  hash 5f0c2a1b, 3 commits, threads 0.10 + 0.09 s",
        "                               polars                250.00    4.00 M   2.50x    900 MB    0.50",
        "                               duckdb                absent",
        "bloom, 1,000 ids               engine                  1.00     1.0 G   1.00x         -       -"
        "  hash 00c0ffee",
        "                               engine, portable        2.00  500.00 M   2.00x         -       -",
    ]


def test_no_standings_no_table():
    assert table_lines([]) == []


@pytest.mark.parametrize(
    ("items", "seconds", "text"),
    [
        (1_000, 1.0, "1.00 k"),
        (99_000, 1.0, "99.00 k"),
        (100_000, 1.0, "0.10 M"),
        (5, 1e-9, "5.0 G"),
        (1, 2.0, "0.00 k"),
    ],
)
def test_items_a_second(items, seconds, text):
    assert format_each_per_s(items, seconds) == text


def texts(picture):
    return [element.text for element in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def bars(picture):
    elements = ElementTree.fromstring(picture).iter(f"{SVG}rect")
    return [(element.get("class"), float(element.get("width"))) for element in elements]


def test_a_bar_is_as_long_as_its_contender_is_fast():
    (ours, our_length), (peer, their_length) = bars(plot_svg([JOB]))
    assert (ours, peer) == ("ours", "peer")
    assert their_length == pytest.approx(our_length * 0.1 / 0.25, abs=0.1)


def test_every_figure_stands_beside_its_bar():
    shown = texts(plot_svg([JOB]))
    assert shown[0] == "job in memory, 1,000,000 rows"
    assert shown[1:-1] == [
        *("engine", "10.00 M/s, 600 MB"),
        *("polars", "4.00 M/s, 900 MB"),
        *("duckdb", "absent"),
    ]


def test_contests_without_peers_are_left_out_and_jobs_come_first():
    kernel = Standing("hash <int64>", 10, "row", "ab12", (Contender("engine", 1.0), Contender("polars & all", 2.0)))
    shown = texts(plot_svg([kernel, ALONE, JOB]))
    assert [line for line in shown if "," in line and "/s" not in line and line.endswith("s")] == [
        "job in memory, 1,000,000 rows",
        "hash <int64>, 10 rows",
    ]
    with pytest.raises(ValueError, match="no contest had a peer"):
        plot_svg([ALONE])


def test_nothing_leaves_the_picture():
    many = [Standing(f"kernel {n}", 10, "row", "ab12", JOB.contenders, ("duckdb",)) for n in range(7)]
    picture = ElementTree.fromstring(plot_svg(many))
    width, height = float(picture.get("width")), float(picture.get("height"))
    lines = list(picture.iter(f"{SVG}text"))
    assert len({line.get("x") for line in lines if "kernel" in line.text}) == 2
    assert all(0 <= float(line.get("x")) < width and 0 < float(line.get("y")) < height for line in lines)


def test_both_modes_are_answered():
    schemes = re.findall(r"prefers-color-scheme: (\w+)", plot_svg([JOB]))
    assert schemes == ["light", "dark"]
