"""``engine simulate``: prints what fired, and the seeds that fail with how to repeat one."""

import textwrap

import pytest

from engine.cli.main import main
from engine.stages.key_window import KeyWindow


@pytest.fixture
def reference(tmp_path, monkeypatch) -> str:
    (tmp_path / "simulated_jobs.py").write_text(
        textwrap.dedent(
            """
            import pyarrow as pa
            from engine import Pipeline, sinks, sources

            ROWS = [pa.record_batch({"id": [n % 90 for n in range(s, s + 20)]}) for s in range(0, 400, 20)]


            def pipeline():
                return Pipeline("job").read(sources.memory(ROWS, id="rows")).dedup("id").write(sinks.log("/log"))


            def called():
                return Pipeline("job").read(sources.memory(ROWS, id="rows")).write(sinks.call(print))
            """
        )
    )
    monkeypatch.chdir(tmp_path)
    return "simulated_jobs:pipeline"


def test_seeds_that_pass(reference, capsys):
    assert main(["simulate", reference, "--seeds", "6", "--first", "40"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("6 seeds, ")
    assert "0 failed" in out
    assert "power cut" in out


def test_seeds_that_fail_are_named(reference, capsys, monkeypatch):
    monkeypatch.setattr(KeyWindow, "restore", lambda self, state: None)
    assert main(["simulate", reference, "--seeds", "12"]) == 1
    out, err = capsys.readouterr()
    assert "not expected" in out
    assert "Repeat one with --first" in err
    failed = [line.split(":")[0].split()[1] for line in out.splitlines() if line.startswith("seed ")]
    assert failed
    for seed in failed:
        assert f"  again: engine simulate {reference} --first {seed} --seeds 1\n" in out
    capsys.readouterr()
    assert main(["simulate", reference, "--first", failed[0], "--seeds", "1"]) == 1
    assert capsys.readouterr().out.startswith(f"seed {failed[0]}: ")


def test_what_cannot_be_simulated(reference, capsys):
    assert main(["simulate", "simulated_jobs:called"]) == 1
    assert "call(print) cannot be simulated" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "number"), [("--seeds", "0"), ("--seeds", "-5"), ("--first", "-1")])
def test_a_command_that_tries_nothing(reference, capsys, option, number):
    assert main(["simulate", reference, option, number]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert option in err
    assert "Traceback" not in err
