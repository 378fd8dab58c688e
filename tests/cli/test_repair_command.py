"""``engine checkpoint repair`` as a shell sees it: what it prints, and how it ends on a signal."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
from cli.commands_run import interrupted
from runtime.damaged_states import everything, harm, stopped, victims

from engine.checkpoint.inspection import verify
from engine.cli.main import main
from engine.storage import Storage


@pytest.fixture
def copy(tmp_path):
    """A state after several commits."""
    return stopped(tmp_path)


def test_the_command(copy, monkeypatch, capsys):
    monkeypatch.chdir(copy)
    monkeypatch.syspath_prepend(str(copy))
    (copy / "mendable.py").write_text(
        f"from runtime.damaged_states import pipeline\n\ndef job():\n    return pipeline({str(copy / 'out')!r})\n"
    )
    command = ["checkpoint", "repair", "mendable:job", "--state", str(copy / "state")]
    assert main(command) == 0
    assert capsys.readouterr().out == "repaired: no file is damaged; nothing was changed\n"
    victim = victims(copy, "ids")[0]
    harm(victim, "flipped")
    assert main(["checkpoint", "verify", str(copy / "state")]) == 1
    assert "engine checkpoint repair MODULE:PIPELINE" in capsys.readouterr().err
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("repaired: rebuilt through epoch ")
    assert lines[1] == f"  damaged, kept  {victim}"
    assert lines[2].startswith(f"  rebuilt        {victim.parent}.rebuilt-")
    assert main(["checkpoint", "verify", str(copy / "state")]) == 0
    assert main(["checkpoint", "repair", "mendable:job", "--state", str(copy / "nowhere")]) == 1
    assert "StateError" in capsys.readouterr().err


SLOW = """
    import sys

    import engine
    from engine.checkpoint import inspection
    from runtime.damaged_states import INPUT, pipeline

    def waiting(where):
        print(where, flush=True)
        sys.stdin.readline()

    def check(rows):
        if where == "replaying" and rows.num_rows and not told:
            told.append(True)
            waiting("replaying")
        return rows

    told, where, open_file = [], {where!r}, engine.storage.Storage.open

    def open_slowly(self, path, **choices):
        if where == "verifying" and path.endswith(".log") and not told:
            told.append(True)
            waiting("verifying")
        return open_file(self, path, **choices)

    engine.storage.Storage.open = open_slowly

    def job():
        if where == "loading":
            waiting("loading")
        read = engine.Pipeline("repaired").read(engine.sources.memory(INPUT, id="rows")).map(check)
        return read.key_by("id", partitions=2).dedup("id", exact="bytes").write(engine.sinks.parquet({out!r}))
"""

CTRL_C, SIGTERM = (signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")


@pytest.mark.parametrize(
    ("where", "number", "code", "cause"),
    [("loading", *CTRL_C), ("verifying", *SIGTERM), ("replaying", *CTRL_C), ("replaying", *SIGTERM)],
)
def test_a_signal_ends_it_with_the_state_as_it_was(copy, where, number, code, cause):
    """It waits for a line that never comes; a map cannot be interrupted, and goes on at the end of the input."""
    (copy / "slow.py").write_text(textwrap.dedent(SLOW).format(where=where, out=str(copy / "out")))
    victim = victims(copy, "ids")[0]
    harm(victim, "flipped")
    before = everything(copy)
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = ["checkpoint", "repair", "slow:job", "--state", "state"]
    returncode, stderr = interrupted(copy, command, where, number, env=paths, stdin=subprocess.PIPE)
    assert returncode == code, stderr
    name = "engine" if where == "loading" else "repaired"
    assert f"{name}: stopped by {cause}. The state is as it was, or repaired. Run it again." in stderr
    assert "Traceback" not in stderr
    assert everything(copy) == before
    state = copy / "state" / "repaired"
    assert not (state / "repair").exists()
    assert [file.path for file in verify(Storage(), str(state)).damaged] == [str(victim)]
