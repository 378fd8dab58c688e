"""Standard output that cannot take what commands write: full disks, readers that leave, encodings without letters."""

import json
import os
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc as ipc
import pytest
from cli.commands_run import ENGINE

from engine import Log, Pipeline, run, sinks, sources

TEXTS = ["plain", "grün …", "日本", "\U0001f600", 'a "quote" \\ \n']
FULL = Path("/dev/full")
NOWHERE = (FULL, "wb", "No space left on device") if FULL.exists() else (os.devnull, "rb", "Bad file descriptor")
"""What takes nothing: its path, how it is opened, and what the system says."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """A log that fills many buffers, and the state of a pipeline; both with letters beyond ASCII."""
    path = tmp_path_factory.mktemp("output")
    with Log(path / "log") as log:
        log.append(pa.table({"text": TEXTS * 20_000}))
    (path / "grün.py").write_text("raise OSError(28, 'the user ran out of space')\n", encoding="utf-8")
    rows = pa.table({"n": range(10)})
    run(
        Pipeline("job").read(sources.memory(rows, id="…")).write(sinks.parquet(path / ("o" * 200))),
        state=path / "grün",
    )
    return path


def started(directory: Path, *arguments: str, stdout, unbuffered: bool = False, **environment: str):
    """The command as a shell starts it: (exit code, stdout, stderr)."""
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONUNBUFFERED", "PYTHONUTF8")}
    variables |= {"PYTHONUNBUFFERED": "1"} if unbuffered else {}
    done = subprocess.run(
        [*ENGINE, *arguments],
        cwd=directory,
        env=variables | environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr.decode("utf-8", "replace")


WRITING = [
    "log replay log",
    "log replay log --stop 3",
    "log replay log --format arrow",
    "log verify log",
    "checkpoint show grün",
    "--help",
    "--version",
]
"""Tables, rows as text and as bytes, more and less than a buffer holds, and what argparse prints."""


@pytest.mark.parametrize(
    ("command", "unbuffered"),
    [*((command, False) for command in WRITING), (WRITING[0], True), ("--help", True)],
)
def test_a_full_disk_is_told_in_one_line(directory, command, unbuffered):
    path, mode, reason = NOWHERE
    with open(path, mode) as full:
        code, _, stderr = started(directory, *command.split(), stdout=full, unbuffered=unbuffered)
    assert (code, stderr) == (1, f"engine: standard output cannot be written: {reason}\n")


def test_an_error_of_the_users_module_is_not_that_of_the_output(directory):
    code, stdout, stderr = started(directory, "validate", "grün:pipeline", stdout=subprocess.PIPE)
    assert (code, stdout) == (1, b"")
    assert stderr.startswith("Traceback")
    assert "the user ran out of space" in stderr


@pytest.mark.parametrize("form", ["json", "arrow"])
def test_a_reader_that_leaves_is_told_nothing(directory, form):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        code, _, stderr = started(directory, "log", "replay", "log", "--format", form, stdout=writing)
    finally:
        os.close(writing)
    assert (code, stderr) == (1, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_rows_are_json_in_every_encoding(directory, encoding):
    command = ("log", "replay", "log", "--stop", str(len(TEXTS)))
    code, stdout, stderr = started(directory, *command, stdout=subprocess.PIPE, PYTHONIOENCODING=encoding)
    assert (code, stderr) == (0, "")
    assert [json.loads(line)["text"] for line in stdout.decode(encoding).splitlines()] == TEXTS
    assert ("grün" in stdout.decode(encoding)) is (encoding != "ascii")


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "\\u2026 ("), ("utf-8", "… (")])
def test_text_that_the_encoding_does_not_have_is_escaped(directory, encoding, shown):
    command = ("checkpoint", "show", "grün")
    code, stdout, stderr = started(directory, *command, stdout=subprocess.PIPE, PYTHONIOENCODING=encoding)
    assert (code, stderr) == (0, "")
    assert shown in stdout.decode(encoding)
    assert ("gr\\u00fcn/job" if encoding == "ascii" else "grün/job") in stdout.decode(encoding)


def test_bytes_are_not_touched(directory):
    command = ("log", "replay", "log", "--format", "arrow")
    code, stdout, stderr = started(directory, *command, stdout=subprocess.PIPE, PYTHONIOENCODING="ascii")
    assert (code, stderr) == (0, "")
    with ipc.open_stream(stdout) as reader:
        assert reader.read_all().column("text").to_pylist() == TEXTS * 20_000
