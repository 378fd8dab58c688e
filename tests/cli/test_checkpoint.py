"""``engine checkpoint``: what it tells of a state, that it finds every flipped bit, and that it changes nothing."""

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import engine
from engine._core.crc32c import crc32c
from engine.background import Job
from engine.checkpoint.inspection import inspect, state_directories, verify
from engine.checkpoint.manifest import Commit
from engine.checkpoint.store import StateDirectory
from engine.cli.main import main
from engine.errors import CorruptState, StateError
from engine.sinks import call, parquet
from engine.sources import memory
from engine.stages.key_window import KeyWindow
from engine.storage import Storage

FINGERPRINT = {"sources": ["memory(a)"], "stages": [], "sink": "parquet(out)"}


class Inline:
    """A background that does everything at once."""

    def submit(self, steps, *, priority):
        job = Job(steps, priority)
        self.wait(job)
        return job

    def wait(self, job):
        while not job.done:
            job.take_step()


def fill_window(directory, seed, text):
    """A window with an id log, sealed runs and a log of keys; gives its state."""
    window = KeyWindow(
        [0],
        memory_bytes=24_000,
        storage=Storage(),
        directory=directory,
        seed=seed,
        durable=True,
        background=Inline(),
        exact="bytes",
        chunk_ids=16,
    )
    for first in range(0, 600, 50):
        keys = pa.array([f"{text} of more than sixteen bytes: {number}" for number in range(first, first + 50)])
        window.probe_batch(pa.record_batch({"key": keys}))
    state = window.snapshot()
    window.release(state)
    window.close()
    return state


def make_state(path, *, final=True):
    """A pipeline's directory whose last commit names files of all three kinds, in two partitions."""
    with StateDirectory.open(Storage(), str(path), fingerprint=FINGERPRINT) as state:
        for epoch in (1, 2):
            states = {}
            if epoch == 2:
                directories = [state.stage_directory("dedup key", partition) for partition in (0, 1)]
                states = {
                    "dedup key": [
                        fill_window(path, state.seed, f"key {number}") for number, path in enumerate(directories)
                    ]
                }
            counters = {"rows_in": 2_400, "rows_out": 2_400}
            handles = [{"epoch": epoch, "files": []}]
            state.append_commit(
                Commit(epoch, state.incarnation, state.term, FINGERPRINT, {"a": {"rows": 5}}, states, handles, counters)
            )
            if final or epoch == 1:
                state.append_final(epoch)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_state(tmp_path_factory.mktemp("made") / "orders")


@pytest.fixture
def command(capsys):
    def run(*arguments):
        code = main(["checkpoint", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def everything(path):
    """Names, bytes, modes and times of all files and directories."""
    found = {}
    for folder, directories, names in os.walk(path):
        for name in [*directories, *names]:
            full = os.path.join(folder, name)
            status = os.stat(full)
            content = b"" if name in directories else Path(full).read_bytes()
            found[full] = (content, status.st_mode, status.st_mtime_ns, status.st_ctime_ns)
    return found


def test_ls(made, command):
    code, stdout, stderr = command("ls", made.parent)
    assert (code, stderr) == (0, "")
    head, row = stdout.splitlines()
    assert head.split() == ["pipeline", "epoch", "commit", "term", "rows", "in", "rows", "out", "state", "owner"]
    assert row.startswith("orders    2      FINAL   ")
    assert "2,400" in row
    assert row.endswith("nobody")
    assert command("ls", made)[1] == stdout


def test_show(made, command):
    code, stdout, stderr = command("show", made.parent)
    assert (code, stderr) == (0, "")
    assert stdout.startswith("orders: committed through epoch 2 (published, FINAL)\n")
    for wanted in (
        'a  {"rows": 5}',
        "rows_in  2,400",
        "dedup key, partition 1",
        "ids-00",
        "run-00",
        "keys-00",
        "sources",
    ):
        assert wanted in stdout
    code, stdout, _ = command("show", made, "--format", "json")
    shown = json.loads(stdout)
    assert (code, shown["pipeline"], shown["final"], shown["owner"]) == (0, "orders", True, None)
    assert shown["commit"]["offsets"] == {"a": {"rows": 5}}
    assert shown["commit"]["fingerprint"] == FINGERPRINT
    assert shown["commit"]["handles"] == [{"epoch": 2, "files": []}]
    assert len(shown["commit"]["states"]["dedup key"]) == 2
    with StateDirectory.open(Storage(), str(copied(made)), fingerprint=FINGERPRINT) as state:
        assert state.seed.hex() not in stdout


def copied(made, name="copy"):
    target = made.parent.parent / name / "orders"
    shutil.rmtree(target.parent, ignore_errors=True)
    shutil.copytree(made, target)
    return target


def test_a_commit_that_is_not_final(tmp_path, command):
    make_state(tmp_path / "orders", final=False)
    assert "not yet FINAL" in command("ls", tmp_path)[1]
    assert "the next run publishes it again" in command("show", tmp_path)[1]
    assert command("verify", tmp_path)[0] == 0


def test_verify_reads_every_kind_of_file(made, command):
    code, stdout, stderr = command("verify", made)
    assert (code, stderr) == (0, "")
    kinds = Counter(os.path.basename(line.split()[1])[:3] for line in stdout.splitlines() if "sound" in line)
    assert set(kinds) == {"man", "ids", "run", "key"}
    assert kinds["man"] == 1
    assert all(kinds[kind] >= 2 for kind in ("ids", "run", "key"))


def test_nothing_changes_on_disk(made, tmp_path, command):
    for torn in (False, True):
        path = copied(made, f"unchanged-{torn}")
        if torn:
            for file in path.rglob("*"):
                if file.suffix == ".log" or file.name.startswith("manifest"):
                    with file.open("ab") as opened:
                        opened.write(b"never committed")
        before = everything(path)
        for arguments in (["ls"], ["show"], ["show", "--format", "json"], ["verify"]):
            assert command(arguments[0], path, *arguments[1:])[0] == 0
        assert everything(path) == before
        assert len(before) > 10
    stdout = command("verify", path)[1]
    assert "15 bytes from byte" in stdout
    assert "were never acknowledged" in stdout


def test_every_flipped_bit_is_reported(made, generator):
    """In every file, at every place at or below what is committed; beyond that, none is."""
    path = copied(made, "flipped")
    storage = Storage()
    committed = {file.path: file.size_bytes for file in verify(storage, str(path)).files}
    manifest = inspect(storage, str(path)).manifest
    content = Path(manifest).read_bytes()
    committed[manifest] = content.rindex(b"\xabREC")  # the FINAL behind the last COMMIT could still be torn
    flips = Counter()
    for file, size in committed.items():
        content = Path(file).read_bytes()
        stride = max(1, size // 50)
        for place in range(generator.randrange(stride), size, stride):
            damaged = bytearray(content)
            damaged[place] ^= 1 << generator.randrange(8)
            Path(file).write_bytes(damaged)
            check_reported(storage, str(path), file, place)
            flips[os.path.basename(file)[:3]] += 1
        Path(file).write_bytes(content)
    assert verify(storage, str(path)).damaged == ()
    print("flips:", flips)
    assert sum(flips.values()) > 500, flips
    assert all(flips[kind] >= 45 for kind in ("man", "ids", "run", "key")), flips


def check_reported(storage, path, file, place):
    try:
        damaged = [(each.path, each.offset) for each in verify(storage, path).damaged]
    except CorruptState as error:
        damaged = [(error.path, error.offset)]
    assert [name for name, _ in damaged] == [file], (file, place)
    [(_, offset)] = damaged
    assert offset is not None, (file, place)
    # What is told begins at the flipped byte or before it.
    assert offset <= place, (file, place, offset)


def test_bits_beyond_what_is_committed_are_of_no_account(made):
    path = copied(made, "beyond")
    storage = Storage()
    files = [file for file in verify(storage, str(path)).files if file.path.endswith(".log")]
    for file in files:
        with open(file.path, "ab") as opened:
            opened.write(b"\xff" * 100)
    assert files
    assert verify(storage, str(path)).damaged == ()


@pytest.mark.parametrize("kind", ["ids", "run", "keys"])
@pytest.mark.parametrize("harm", ["flipped", "missing", "short", "of another"])
def test_damage_ends_with_exit_code_1(made, command, kind, harm):
    path = copied(made, "harmed")
    victim = sorted(path.rglob(f"{kind}-*"))[0]
    content = victim.read_bytes()
    if harm == "missing":
        victim.unlink()
    elif harm == "of another":
        victim.write_bytes(sorted(path.rglob(f"{kind}-*"))[1].read_bytes())
    else:
        victim.write_bytes(content[:-1] if harm == "short" else bytes([content[0] ^ 1]) + content[1:])
    assert not victim.exists() or victim.read_bytes() != content
    before = everything(path)
    code, stdout, stderr = command("verify", path.parent)
    assert code == 1
    assert [line for line in stdout.splitlines() if line.startswith("  damaged  ") and str(victim) in line]
    assert sum("  damaged  " in line for line in stdout.splitlines()) == 1
    assert stderr.startswith(f"CorruptState: {path.parent}: damaged: 1 of ")
    assert everything(path) == before


def test_a_damaged_manifest(made, command):
    path = copied(made, "manifest")
    (manifest,) = path.glob("manifest-*")
    content = bytearray(manifest.read_bytes())
    content[200] ^= 4
    manifest.write_bytes(content)
    for name in ("verify", "show", "ls"):
        code, stdout, stderr = command(name, path)
        assert code == 1
        assert "CorruptState" in stderr
        assert "is damaged at byte" in stderr + stdout
        assert str(manifest) in stderr
    manifest.unlink()
    assert "the manifest is gone" in command("ls", path)[2]


def test_a_pipeline_beside_a_damaged_one_is_listed(made, command):
    path = copied(made, "beside")
    shutil.copytree(path, path.parent / "bills")
    (manifest,) = path.glob("manifest-*")
    manifest.write_bytes(b"x" + manifest.read_bytes()[1:])
    code, stdout, stderr = command("ls", path.parent)
    assert code == 1
    assert stdout.splitlines()[1].startswith("bills     2      FINAL")
    assert "orders" in stderr
    code, stdout, stderr = command("verify", path.parent)
    assert code == 1
    assert "bills: committed through epoch 2" in stdout
    assert "damaged: 1 of " in stderr
    assert "holds 2 pipelines" in command("show", path.parent)[2]


def test_what_is_no_state(made, tmp_path, command):
    for name in ("ls", "show", "verify"):
        code, stdout, stderr = command(name, tmp_path / "nowhere")
        assert (code, stdout) == (1, "")
        assert "nowhere: cannot be read: No such file or directory" in stderr
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert (
            "empty: holds no state of a pipeline.\n  Give what was passed as state=."
            in command(name, tmp_path / "empty")[2]
        )
        (tmp_path / "file").write_text("text")
        assert "file: cannot be read: Not a directory" in command(name, tmp_path / "file")[2]
        (tmp_path / "begun").mkdir(exist_ok=True)
        (tmp_path / "begun" / "LOCK").touch()
        assert "no run has begun in it yet" in command(name, tmp_path / "begun")[2]
    path = copied(made, "newer")
    (manifest,) = path.glob("manifest-*")
    content = bytearray(manifest.read_bytes())
    struct.pack_into("<I", content, 8, 2)
    struct.pack_into("<I", content, 12, crc32c(bytes(content[:12])))
    manifest.write_bytes(content)
    for name in ("ls", "show", "verify"):
        code, _, stderr = command(name, path)
        assert code == 1
        assert "was written by a later release: format version 2" in stderr
    assert sorted(os.listdir(tmp_path)) == ["begun", "empty", "file"]


def test_beside_a_run(tmp_path, command):
    """While a run commits, and deletes what it needs no more: everything is sound each time, and the run goes on."""
    state = tmp_path / "state"
    seen = Counter()

    def look(rows, token):
        for name in ("ls", "show", "verify"):
            code, stdout, stderr = command(name, state)
            assert (code, stderr) == (0, ""), stderr
            assert "damaged" not in stdout
            if name == "ls":
                row = stdout.splitlines()[1]
                assert f"pid {os.getpid()} on host {socket.gethostname()} since " in row
                seen["commits"] += " FINAL " in row
            seen[name] += 1

    table = pa.table({"id": range(60_000), "text": ["text"] * 60_000})
    pipeline = (
        engine.Pipeline("looked-at")
        .read(memory(table.to_batches(max_chunksize=1_000), id="rows"))
        .dedup("id")
        .write(call(look))
    )
    report = engine.run(pipeline, state=state, commit_every_bytes=20_000)
    assert report.total.rows_out == 60_000
    assert report.epochs > 10
    assert seen["verify"] == seen["ls"] > 10
    assert seen["commits"] > 5
    assert "nobody" in command("ls", state)[1]


def test_files_that_vanish_with_a_new_commit_are_no_damage(tmp_path, made):
    """The run behind the directory commits, and removes old files, while they are read."""
    path = copied(made, "vanishing")

    class Going(Storage):
        moves = 0

        def open(self, name, *, write=False):
            if not self.moves and name.endswith(".ids"):
                self.moves += 1
                with StateDirectory.open(Storage(), str(path), fingerprint=FINGERPRINT) as state:
                    shutil.rmtree(path / "stages")
                    epoch = state.next_epoch
                    state.append_commit(Commit(epoch, state.incarnation, state.term, FINGERPRINT, {}, {}, [], {}))
                    state.append_final(epoch)
            return super().open(name, write=write)

    storage = Going()
    verification = verify(storage, str(path))
    assert storage.moves == 1
    assert verification.damaged == ()
    assert verification.inspection.last_commit.epoch > 2


def test_the_owner_that_is_gone_is_nobody(made, tmp_path, command):
    path = copied(made, "owner")
    lock = {"host": socket.gethostname(), "since": "2026-01-01T00:00:00+00:00"}
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (path / "LOCK").write_text(json.dumps(lock | {"pid": child.pid}))
    assert command("ls", path)[1].rstrip().endswith("nobody")  # it runs, and has not opened the file
    child.communicate(b"\n")
    assert command("ls", path)[1].rstrip().endswith("nobody")
    (path / "LOCK").write_text(json.dumps(lock | {"pid": 1, "host": "elsewhere"}))
    assert "pid 1 on host elsewhere since 2026-01-01" in command("ls", path)[1]
    assert "if it still runs" in command("ls", path)[1]
    (path / "LOCK").write_bytes(b"")
    assert command("ls", path)[1].rstrip().endswith("nobody")


def test_a_real_run(tmp_path, command):
    pq.write_table(pa.table({"id": [1, 2, 2, 3]}), tmp_path / "in.parquet")
    source = engine.sources.parquet(str(tmp_path / "in.parquet"))
    pipeline = engine.Pipeline("small").read(source).dedup("id").write(parquet(tmp_path / "out"))
    engine.run(pipeline, state=tmp_path / "state")
    before = everything(tmp_path)
    assert command("verify", tmp_path / "state")[0] == 0
    shown = json.loads(command("show", tmp_path / "state", "--format", "json")[1])
    assert shown["commit"]["counters"]["duplicates"] == 1
    assert everything(tmp_path) == before
    assert state_directories(Storage(), str(tmp_path / "state")) == [str(tmp_path / "state" / "small")]


def test_beside_a_run_in_another_process(tmp_path):
    """It commits and deletes while its files are read, again and again: no sound file is called damaged."""
    job = (
        "import engine, sys; from engine import sinks, sources; from engine.testing.workload import generate;"
        "source = sources.memory(lambda: generate(400_000, seed=3), id='rows');"
        "pipeline = engine.Pipeline('other').read(source).dedup('event_id').write(sinks.parquet('out'));"
        "engine.run(pipeline, state='state', memory='48MiB', commit_every_bytes=1_000_000)"
    )
    (tmp_path / "state").mkdir()
    child = subprocess.Popen([sys.executable, "-P", "-c", job], cwd=tmp_path)
    storage, path = Storage(), str(tmp_path / "state" / "other")
    owners, epochs, files = Counter(), set(), 0
    while child.poll() is None:
        try:
            verification = verify(storage, path)
        except StateError:
            if epochs:
                raise
            continue  # it has not begun
        assert verification.damaged == ()
        commit = verification.inspection.last_commit
        epochs.add(None if commit is None else commit.epoch)
        files += len(verification.files)
        if verification.inspection.owned:
            owners[verification.inspection.owner.pid] += 1
    assert child.returncode == 0
    assert list(owners) == [child.pid]
    assert len(epochs) > 3
    assert files > 10
