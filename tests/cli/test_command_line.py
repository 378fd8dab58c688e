"""The commands as a shell sees them: what goes to stdout and stderr, and the exit codes."""

import re
import signal
import subprocess
import sys
import textwrap

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli.commands_run import ENGINE, interrupted

from engine.cli.main import main

JOBS = """
    import pyarrow as pa
    import engine
    from engine import sinks, sources

    def double(batch):
        return batch.set_column(1, "n", pa.compute.multiply(batch["n"], 2))

    def broken(batch):
        if batch.num_rows:
            raise ValueError("bad rate ''")
        return batch

    read = engine.Pipeline("orders").read(sources.parquet("in"))
    pipeline = read.dedup("id").key_by("id", partitions=2).map(double).write(sinks.parquet("out"))
    fails = read.map(broken).write(sinks.parquet("out"))
    faulty = read.dedup("idd").write(sinks.parquet("out"))
"""


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """A working directory with jobs and input; their modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("jobs", "broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "jobs.py").write_text(textwrap.dedent(JOBS))
    (tmp_path / "in").mkdir()
    ids = [row % 900 for row in range(1_000)]
    pq.write_table(pa.table({"id": ids, "n": list(range(1_000))}), tmp_path / "in" / "a.parquet")
    yield tmp_path
    for name in ("jobs", "broken"):
        sys.modules.pop(name, None)


@pytest.fixture
def engine(capsys):
    """Runs the command in this process: gives exit code, stdout and stderr."""

    def run(*arguments):
        code = main(arguments)
        return code, *capsys.readouterr()

    return run


def test_version(engine):
    code, stdout, stderr = engine("--version")
    assert (code, stderr) == (0, "")
    assert stdout.startswith("engine 0.")
    assert engine("run", "--version")[1] == stdout


def test_version_does_not_load_the_command_line(tmp_path):
    program = (
        "import sys; from engine.cli.main import main; main(['--version']); "
        "print(sorted({'cyclopts', 'rich', 'engine.cli.commands'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_names_every_command(tmp_path):
    # In a process of its own: here other tests may have loaded commands that help must know before they are.
    done = subprocess.run([*ENGINE, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    stdout = done.stdout
    for command in ("run", "demo", "validate", "explain", "checkpoint", "bench", "log", "simulate"):
        assert re.search(rf"^\W*{command} +\w", stdout, re.MULTILINE), f"{command} has no text"


def test_run_reports_and_then_resumes(directory):
    def run(*options):
        command = [*ENGINE, "run", "jobs:pipeline", "--state", "state", *options]
        return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)

    first = run()
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("orders: complete, exactly-once\n")
    assert first.stderr.startswith("orders  1.0k rows  ")
    written = pq.read_table(directory / "out")
    assert sorted(written["id"].to_pylist()) == list(range(900))
    second = run("--memory", "64MiB", "--commit-every-s", "0.5", "--commit-every-bytes", "1MiB")
    assert second.returncode == 0, second.stderr
    assert "resumed at epoch" in second.stdout
    assert pq.read_table(directory / "out").num_rows == 900


def test_a_standard_error_that_is_closed(directory):
    command = ["sh", "-c", '"$@" 2>&-', "sh", *ENGINE, "run", "jobs:pipeline", "--state", "state"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL, timeout=120)
    assert done.returncode == 0
    assert done.stdout.startswith("orders: complete, exactly-once\n")
    command[-3] = "jobs:fails"
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["run", "jobs:pipelin", "--state", "s"],
            2,
            'engine: module "jobs" has no "pipelin"; did you mean "pipeline"?',
        ),
        (["run", "jobs:pipeline", "--stat", "s"], 2, "--stat"),
        (["rum", "jobs:pipeline"], 2, "rum"),
        (["run", "jobs:pipeline", "--state", "s", "--commit-every-s", "often"], 2, "often"),
        (["run", "jobs:pipeline"], 1, "needs state="),
        (["run", "jobs:pipeline", "--state", "s", "--memory", "lots"], 1, "PipelineError: memory: expected a size"),
        (["run", "jobs:fails", "--state", "s"], 1, "StageError: map broken"),
        (["validate", "jobs:faulty"], 1, 'dedup: no column "idd"; did you mean "id"?'),
        (["explain", "jobs:pipeline", "--format", "dot"], 2, "dot"),
    ],
)
def test_errors_are_told_without_a_traceback(directory, engine, arguments, code, message):
    returned, stdout, stderr = engine(*arguments)
    assert returned == code, stderr
    assert message in stderr
    assert "Traceback" not in stderr
    assert stdout == ""


def test_the_users_own_error_on_import_has_its_traceback(directory, engine):
    (directory / "broken.py").write_text("1 / 0\n")
    code, _, stderr = engine("validate", "broken:pipeline")
    assert code == 1
    assert 'broken.py", line 1' in stderr
    assert stderr.rstrip().endswith("ZeroDivisionError: division by zero")


def test_validate_and_explain(directory, engine):
    assert engine("validate", "jobs:pipeline") == (0, "orders: no faults\n", "")
    code, stdout, _ = engine("explain", "jobs:pipeline")
    assert code == 0
    assert "2 partitions" in stdout
    assert engine("explain", "jobs:pipeline", "--format", "mermaid")[1].startswith("flowchart ")


SLOW = """
    import threading
    import engine
    from engine import sinks, sources

    never = threading.Event()

    def wait(batch):
        if batch.num_rows:
            print("mapping", flush=True)
            never.wait(0.02)
        return batch

    read = engine.Pipeline("slow").read(sources.parquet("many"))
    pipeline = read.map(wait, batch_rows=5_000).write(sinks.parquet("slow-out"))
"""


@pytest.mark.parametrize(
    ("number", "code", "cause"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_a_signal_drains_commits_and_exits(directory, number, code, cause):
    (directory / "slow.py").write_text(textwrap.dedent(SLOW))
    (directory / "many").mkdir()
    rows = 500_000
    for index in range(4):
        piece = pa.table({"n": range(index * rows, (index + 1) * rows)})
        pq.write_table(piece, directory / "many" / f"{index}.parquet", row_group_size=10_000)
    returncode, stderr = interrupted(directory, ["run", "slow:pipeline", "--state", "state"], "mapping", number)
    assert returncode == code, stderr
    assert f"slow: stopped by {cause}. Run it again: it resumes." in stderr
    assert "Traceback" not in stderr
    kept = pq.read_table(directory / "slow-out")["n"].to_pylist()
    # What was read is committed, in order; that is not everything, and not nothing.
    assert kept == list(range(len(kept)))
    assert 0 < len(kept) < 4 * rows


def test_sigterm_while_the_module_is_loaded(tmp_path):
    (tmp_path / "loading.py").write_text("print('loading', flush=True)\nimport threading\nthreading.Event().wait(60)\n")
    child = subprocess.Popen(
        [*ENGINE, "run", "loading:pipeline", "--state", "state"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "loading\n"
    child.terminate()
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 143
    assert "Traceback" not in stderr
