"""``engine demo``: the bundled sample with re-deliveries in, each event exactly once out; then nothing left to do."""

import re
import subprocess
from importlib import resources

import pyarrow.compute as pc
import pyarrow.parquet as pq
from cli.commands_run import ENGINE

from engine.cli.demo import demo_pipeline, prepare_input
from engine.cli.main import main

DEMO = [*ENGINE, "demo"]
SAMPLE = resources.files("engine.cli") / "sample" / "git_file_events.parquet"


def demo(directory):
    done = subprocess.run(DEMO, cwd=directory, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


def figures(report, name):
    return [
        int(figure.replace(",", "")) for figure in re.search(rf"^{name} +([\d,]+) +([\d,]+)", report, re.M).groups()
    ]


def test_the_sample_is_small_real_and_has_no_duplicates():
    with resources.as_file(SAMPLE) as path:
        assert path.stat().st_size <= 2_000_000
        table = pq.read_table(path)
    assert table.num_rows == 32_768
    assert len(table["event_id"].unique()) == table.num_rows
    assert (resources.files("engine.cli") / "sample" / "README.md").is_file()


def test_the_demo_and_once_more(tmp_path):
    first = demo(tmp_path)
    with resources.as_file(SAMPLE) as path:
        sample = pq.read_table(path)
    files = sorted((tmp_path / "engine-demo" / "input").iterdir())
    total = sum(pq.read_metadata(file).num_rows for file in files)
    assert total > sample.num_rows
    assert figures(first.stdout, "rows in") == [total, total]
    assert figures(first.stdout, "rows out") == [sample.num_rows, sample.num_rows]
    assert figures(first.stdout, "duplicates") == [total - sample.num_rows] * 2

    output = sorted((tmp_path / "engine-demo" / "output").iterdir())
    rows = pq.read_table(tmp_path / "engine-demo" / "output")
    assert sorted(rows["event_id"].to_pylist()) == sorted(sample["event_id"].to_pylist())
    assert set(rows["delivery"].to_pylist()) == {0}
    assert rows["delay_s"].null_count == 0
    following = {}
    for key, seq in zip(rows["key"].to_pylist(), rows["seq"].to_pylist(), strict=True):
        assert seq == following.get(key, 0)
        following[key] = seq + 1

    second = demo(tmp_path)
    assert "as before" in second.stderr
    assert figures(second.stdout, "rows in") == [0, total]
    assert figures(second.stdout, "rows out") == [0, sample.num_rows]
    assert sorted((tmp_path / "engine-demo" / "output").iterdir()) == output


def test_another_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--directory", "elsewhere"]) == 0
    assert "elsewhere/output" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == {"input", "output", "state"}


def test_preparing_begins_anew_after_it_was_cut_short(tmp_path):
    unfinished = tmp_path / "input.unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "events-00.parquet").write_bytes(b"PAR1 cut sho")
    assert "wrote" in prepare_input(tmp_path)
    assert not unfinished.exists()
    files = sorted((tmp_path / "input").iterdir())
    assert len(files) == 8
    assert {name for file in files for name in pq.read_schema(file).names} >= {"event_id", "delivery"}
    assert pc.max(pq.read_table(tmp_path / "input")["delivery"]).as_py() >= 1
    demo_pipeline(tmp_path).validate()
