"""``engine bench``: the benchmarks that it finds, what it shows, and that nobody is measured on wrong work."""

import json
import os
import shutil
import subprocess
import textwrap

import pytest
from cli.commands_run import ENGINE

from engine.cli.bench import session
from engine.cli.bench.session import BenchmarkError, benchmark_names, run_benchmarks
from engine.cli.main import main

BENCH = [*ENGINE, "bench"]

MADE_UP = """
    import time
    from contest import Contender

    def bench_turns(contest, peer, tmp_path_factory):
        order = []

        def contender(name, answer):
            return Contender(name, lambda: order.append(name), lambda nothing: answer)

        assert peer("no_such_library") is None
        contenders = [contender(name, 42) for name in ("engine", "other", "third")]
        contest.hold("turns", contenders, items=10, expected=42, unit="thing", rounds=3)
        assert order == ["engine", "other", "third", "other", "third", "engine", "third", "engine", "other"]

    def bench_wrong(contest):
        right = Contender("engine", lambda: 1, int)
        wrong = Contender("other", lambda: 2, int)
        contest.hold("wrong", [right, wrong], items=10, expected=1)

    def bench_prepared(contest):
        class Prepared:
            used = False

        def run(prepared):
            assert not prepared.used
            prepared.used = True
            return 7

        ours = Contender("engine", run, int, Prepared, lambda result: f"a note of {result}")
        contest.hold("prepared", [ours], items=10, expected=7, rounds=2)
"""

CHILD = """
    from child import ChildContender

    def bench_child(contest):
        size = {"size_bytes": 100_000_000}
        hungry = ChildContender("engine", "made_up_jobs:hungry", size, environment={"WORD": "two"})
        contest.hold("child", [hungry], items=10, expected=[100_000_000, "two"])

    def bench_failing_child(contest):
        contest.hold("failing", [ChildContender("engine", "made_up_jobs:failing", {})], items=10, expected=None)
"""

JOBS = """
    import os
    from contest import Contender

    def hungry(size_bytes):
        def run():
            print("what a library prints is not taken for an answer")
            return bytearray(b"x") * size_bytes

        return Contender("", run, lambda held: (len(held), os.environ["WORD"]), note=lambda held: "hungry")

    def failing():
        return Contender("", lambda: 1 / 0, int)
"""


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """A folder with the real harness and made-up benchmarks, which is found instead of the real one."""
    folder = tmp_path / "benchmarks"
    shutil.copytree(session._folder(), folder, ignore=shutil.ignore_patterns("bench_*.py", "jobs_*.py", "__pycache__"))
    for name, text in (("bench_made_up", MADE_UP), ("bench_child", CHILD), ("made_up_jobs", JOBS)):
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.setattr(session, "_folder", lambda: folder)
    return folder


def measured_in(file):
    return {(one["group"], one["name"]): one for one in json.loads(file.read_text())["benchmarks"]}


def test_it_measures_shows_and_draws(tmp_path):
    command = [*BENCH, "crc32c", "lru", "--size", "small", "--json", "m.json", "--plot", "p.svg"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    heading, *lines = done.stdout.splitlines()
    assert " ".join(heading.split()) == "contest contender ns each each/s ratio memory CPU s answer and notes"
    assert [line.split("  ")[0] for line in lines if not line.startswith(" ")] == [
        "crc32c, 64 KiB, 65,536 bytes",
        "crc32c, 64 MiB, 67,108,864 bytes",
        "recent keys, 200,000 ids",
    ]
    assert "bench_lru.py" in done.stderr
    measured = measured_in(tmp_path / "m.json")
    assert {name for _, name in measured} == {"engine", "engine, portable code", "zlib crc32", "OrderedDict"}
    assert all(one["stats"]["rounds"] >= 1 and one["stats"]["median"] > 0 for one in measured.values())
    assert (tmp_path / "p.svg").read_text().startswith("<svg ")
    assert sorted(os.listdir(tmp_path)) == ["m.json", "p.svg"]


def test_contenders_take_turns_and_a_wrong_answer_is_no_measurement(made_up, tmp_path, capfd):
    with pytest.raises(BenchmarkError, match="some benchmarks failed, or answered wrongly"):
        run_benchmarks(["made_up"], size="small", json_file=tmp_path / "m.json", plot_file=None)
    table, told = capfd.readouterr()
    assert "wrong: other answers 2, not 1" in told
    assert "bench_turns PASSED" in told
    measured = measured_in(tmp_path / "m.json")
    assert set(measured) == {("turns", "engine"), ("turns", "other"), ("turns", "third"), ("prepared", "engine")}
    assert len(measured["turns", "other"]["stats"]["data"]) == 3
    hashes = {one["extra_info"]["hash"] for (group, _), one in measured.items() if group == "turns"}
    assert len(hashes) == 1
    lines = table.splitlines()
    assert lines[1].startswith("turns, 10 things")
    assert lines[1].endswith(f"hash {hashes.pop()}")
    assert lines[4].split() == ["no_such_library", "absent"]
    assert lines[5].endswith("a note of 7")


def test_a_child_is_measured_from_outside(made_up, tmp_path, capfd):
    with pytest.raises(BenchmarkError):
        run_benchmarks(["child"], size="small", json_file=tmp_path / "m.json", plot_file=None)
    table, told = capfd.readouterr()
    assert "ZeroDivisionError" in told
    assert "expected 'done' of the child" in told
    (one,) = measured_in(tmp_path / "m.json").values()
    facts = one["extra_info"]
    assert facts["note"] == "hungry"
    assert 100_000_000 < facts["memory_bytes"] < 300_000_000
    assert facts["cpu_s"] > 0
    assert table.splitlines()[1].startswith("child, 10 rows")


def test_without_pytest_benchmark_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr(session, "find_spec", lambda name: None)
    assert main(["bench", "crc32c"]) == 1
    assert capsys.readouterr().err == (
        "BenchmarkError: bench: pytest-benchmark is not installed: "
        "pip install 'ingest-engine[bench]' brings it, and the peers.\n"
    )


def test_without_benchmarks_it_says_where_they_live(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(session, "__file__", str(tmp_path / "engine" / "cli" / "bench" / "session.py"))
    assert main(["bench"]) == 1
    assert "They are in the wheel and in the folder benchmarks/ of the sources" in capsys.readouterr().err


def test_an_unknown_name_is_told_with_those_there_are(capsys):
    assert main(["bench", "crc32c", "crc23c"]) == 2
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert 'There is no benchmark "crc23c"; there are arrow_c, ' in told


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_place_that_is_not_there_is_told_before_the_work(option, tmp_path, capsys):
    assert main(["bench", "crc32c", option, str(tmp_path / "no" / "file")]) == 1
    assert f"no directory {tmp_path / 'no'} for file" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--json", "--plot"])
@pytest.mark.parametrize(
    ("place", "message"),
    [(".", ". is there and no file"), ("/proc/x.svg", "/proc/x.svg cannot be written")],
)
def test_a_place_that_cannot_be_written_is_told_before_the_work(option, place, message, monkeypatch, capsys):
    monkeypatch.setattr(session.subprocess, "run", lambda *arguments, **options: pytest.fail("has measured"))
    assert main(["bench", "crc32c", option, place]) == 1
    assert message in capsys.readouterr().err


def test_what_is_interrupted_leaves_the_earlier_files(tmp_path, monkeypatch):
    def interrupted(command, **options):
        raise KeyboardInterrupt

    files = {name: tmp_path / name for name in ("m.json", "p.svg")}
    for name, file in files.items():
        file.write_text(f"earlier {name}")
    monkeypatch.setattr(session.subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_benchmarks(["crc32c"], size="small", json_file=files["m.json"], plot_file=files["p.svg"])
    assert {name: file.read_text() for name, file in files.items()} == {name: f"earlier {name}" for name in files}
    assert sorted(os.listdir(tmp_path)) == ["m.json", "p.svg"]


def test_every_kernel_and_the_whole_job_have_a_benchmark():
    assert {"ingest", "partition", "hash", "dedup", "bloom", "lru", "crc32c", "pool", "ring"} <= set(benchmark_names())
