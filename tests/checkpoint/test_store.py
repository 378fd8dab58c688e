"""The state directory as its owner and others see it: refusals, identities, rolling, failures, golden files."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from engine.checkpoint import store
from engine.checkpoint.manifest import Commit
from engine.checkpoint.protocol import CommitProtocol, Step
from engine.checkpoint.store import StateDirectory
from engine.errors import CorruptState, StateError
from engine.nature import wall_clock
from engine.progress import Token
from engine.storage import File, Held, Storage

FINGERPRINT = {"sources": ["parquet(events/)"], "dedup": {"keys": ["id"], "within": 5}, "partitions": 8, "sink": "out"}
GOLDEN = Path(__file__).parent / "golden"


def opened(path: Path | str, storage: Storage | None = None, **options) -> StateDirectory:
    return StateDirectory.open(storage or Storage(), str(path), **{"fingerprint": FINGERPRINT, **options})


def commit(state: StateDirectory, epoch: int, **changes) -> Commit:
    made = Commit(epoch, state.incarnation, state.term, FINGERPRINT, {"a": epoch}, {}, [], {"rows_in": epoch})
    return replace(made, **changes)


def run(path: Path, commits: int, storage: Storage | None = None, **options) -> tuple[str, int]:
    """One attempt that ends well; gives its term and its last epoch."""
    with opened(path, storage, **options) as state:
        if state.publish_again:
            state.append_final(state.last_commit.epoch)
        for epoch in range(state.next_epoch, state.next_epoch + commits):
            state.append_commit(commit(state, epoch))
            state.append_final(epoch)
        return state.term, state.last_commit.epoch if state.last_commit else 0


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.name != "LOCK"}


def manifest_of(path: Path) -> Path:
    return max(path.glob("manifest-????????"))


def test_a_new_directory(tmp_path):
    with opened(tmp_path / "state" / "orders") as state:
        assert re.fullmatch(r"[0-9a-f]{32}", state.incarnation)
        assert re.fullmatch(r"[0-9a-f]{16}", state.term)
        assert len(state.seed) == 16
        assert (state.last_commit, state.publish_again, state.next_epoch, state.torn) == (None, False, 1, None)
    path = tmp_path / "state" / "orders"
    assert path.stat().st_mode & 0o777 == 0o700
    assert sorted(os.listdir(path)) == ["LOCK", "manifest-00000001"]
    assert (path / "manifest-00000001").stat().st_mode & 0o777 == 0o600


def test_a_job_of_three_attempts(tmp_path):
    with opened(tmp_path) as state:
        first = (state.incarnation, state.seed, state.term)
        state.append_commit(commit(state, 1))
        state.append_final(1)
        state.append_commit(commit(state, 2, offsets={"a": [["f", 7]]}, handles=[{"files": []}]))
    with opened(tmp_path) as state:
        assert (state.incarnation, state.seed) == first[:2]
        assert state.term != first[2]
        assert state.last_commit is not None
        assert (state.last_commit.epoch, state.last_commit.term) == (2, first[2])
        assert state.last_commit.offsets == {"a": [["f", 7]]}
        assert state.publish_again
        assert state.next_epoch == 5
        assert CommitProtocol(state.recovery).position(2) is Step.PUBLISH
        state.append_final(2)
        assert not state.publish_again
        state.append_commit(commit(state, 5))
        state.append_final(5)
    with opened(tmp_path) as state:
        assert state.last_commit is not None
        assert (state.last_commit.epoch, state.publish_again, state.next_epoch) == (5, False, 8)


def test_tokens(tmp_path):
    term, _ = run(tmp_path, 1)
    with opened(tmp_path) as state:
        assert state.token(1, "out") == Token(state.incarnation, 1, term, "out")
        assert state.token(4, "out") == Token(state.incarnation, 4, state.term, "out")
        with pytest.raises(ValueError, match="before the last commit"):
            state.token(0, "out")
        state.append_commit(commit(state, 4))
        assert state.token(4, "out").term == state.term


def test_stage_directories_are_safe_and_never_shared(tmp_path):
    names = ["dedup", "Dedup", "map add_tax", "../../etc", "/etc/passwd", "a\0b", "CON", "", ".", "é", "%2e", "\udc80"]
    names += ["x" * 119, "x" * 121, "x" * 122, "é" * 90, "a-00001"]
    with opened(tmp_path) as state:
        paths = [state.stage_directory(name, partition) for name in names for partition in (0, 1, 1023)]
    assert len({path.lower() for path in paths}) == len(paths)
    for path in paths:
        assert os.path.dirname(path) == str(tmp_path / "stages")
        assert re.fullmatch(r"[a-z0-9_%-]{6,130}", os.path.basename(path))
    assert paths[2] == str(tmp_path / "stages" / "dedup-01023")


def test_a_directory_in_use_names_its_holder(tmp_path, monkeypatch):
    with opened(tmp_path), pytest.raises(StateError) as caught:
        opened(tmp_path)
    host = os.uname().nodename
    assert re.fullmatch(
        rf"{re.escape(str(tmp_path))} is in use by pid {os.getpid()} on host {re.escape(host)} since \d\d:\d\d\.\n"
        r"  Stop it, or give this process its own state=\.",
        str(caught.value),
    )
    assert isinstance(caught.value.__cause__, Held)
    tomorrow = wall_clock() + timedelta(days=1)
    monkeypatch.setattr(store, "wall_clock", lambda: tomorrow)
    with opened(tmp_path), pytest.raises(StateError, match=r"since \d{4}-\d\d-\d\d \d\d:\d\d\."):
        opened(tmp_path)
    opened(tmp_path).close()


def program(text: str, *arguments: object) -> str:
    """What a Python program of its own prints."""
    command = [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_second_process_is_refused(tmp_path):
    with opened(tmp_path):
        before = contents(tmp_path)
        said = program(
            """
            import sys
            from engine.checkpoint.store import StateDirectory
            from engine.errors import StateError
            from engine.storage import Storage
            try:
                StateDirectory.open(Storage(), sys.argv[1], fingerprint={})
            except StateError as error:
                print(error)
            """,
            tmp_path,
        )
        assert f"is in use by pid {os.getpid()} on host" in said
        assert contents(tmp_path) == before


def test_a_forked_child_writes_nothing(tmp_path):
    said = program(
        """
        import os, sys
        from engine.checkpoint.manifest import Commit
        from engine.checkpoint.store import StateDirectory
        from engine.errors import StateError
        from engine.storage import Storage
        state = StateDirectory.open(Storage(), sys.argv[1], fingerprint={})
        commit = Commit(1, state.incarnation, state.term, {}, {}, {}, [], {})
        child = os.fork()
        if child == 0:
            try:
                state.append_commit(commit)
            except StateError as error:
                print("child:", repr(error.__cause__), flush=True)
            state.close()
            os._exit(0)
        os.waitpid(child, 0)
        state.append_commit(commit)
        print("parent wrote", flush=True)
        """,
        tmp_path,
    )
    child, parent = said.splitlines()
    assert child.startswith("child: ForkedError")
    assert parent == "parent wrote"
    with opened(tmp_path, fingerprint={}) as state:
        assert (state.torn, state.publish_again, state.next_epoch) == (None, True, 4)


def test_another_graph_is_refused_naming_old_and_new(tmp_path):
    run(tmp_path, 1)
    before = contents(tmp_path)
    other = {**FINGERPRINT, "dedup": {"keys": ("id",), "within": 6}, "partitions": 4}
    with pytest.raises(StateError) as caught:
        opened(tmp_path, fingerprint=other)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tmp_path} is the state of another pipeline:"
    assert lines[1:3] == ["  dedup.within: was 5, now 6", "  partitions: was 8, now 4"]
    assert contents(tmp_path) == before
    opened(tmp_path, fingerprint={**FINGERPRINT, "sources": ("parquet(events/)",)}).close()


def test_before_the_first_commit_the_graph_may_change(tmp_path):
    run(tmp_path, 0)
    opened(tmp_path, fingerprint={"sources": []}).close()


def test_the_manifest_is_rolled_and_says_the_same(tmp_path):
    with opened(tmp_path, roll_at_bytes=1_000) as state:
        for epoch in range(1, 40):
            state.append_commit(commit(state, epoch))
            state.append_final(epoch)
            assert len(list(tmp_path.glob("manifest-*"))) == 1
        assert manifest_of(tmp_path).name > "manifest-00000008"
        assert manifest_of(tmp_path).stat().st_size < 2_000
        state.append_commit(commit(state, 40))
        last, term = state.last_commit, state.term
    with opened(tmp_path) as state:
        assert (state.last_commit, state.publish_again, state.next_epoch) == (last, True, 43)
        assert last is not None
        assert state.token(40, "out").term == last.term == term


class Failing(Storage):
    """Files whose ``failing`` method raises an OSError while ``broken`` is set."""

    def __init__(self, failing: str) -> None:
        self.failing = failing
        self.broken = False

    def open(self, path: str, *, write: bool = False) -> File:
        return self.wrapped(super().open(path, write=write))

    def create(self, path: str, *, mode: int = 0o600) -> File:
        return self.wrapped(super().create(path, mode=mode))

    def wrapped(self, file: File) -> File:
        whole = getattr(file, self.failing)

        def fail(*arguments: object) -> object:
            if self.broken:
                raise OSError(28, "No space left on device", file.path)
            return whole(*arguments)

        setattr(file, self.failing, fail)
        return file


@pytest.mark.parametrize("failing", ["append", "sync"])
def test_after_a_failed_write_nothing_is_written(tmp_path, failing):
    storage = Failing(failing)
    with opened(tmp_path, storage) as state:
        state.append_commit(commit(state, 1))
        state.append_final(1)
        storage.broken = True
        with pytest.raises(StateError, match=r"the COMMIT of epoch 2 could not be written: .*No space left") as caught:
            state.append_commit(commit(state, 2))
        assert isinstance(caught.value.__cause__, OSError)
        assert state.last_commit is not None
        assert state.last_commit.epoch == 1
        storage.broken = False
        before = contents(tmp_path)
        for _ in range(2):
            with pytest.raises(StateError, match=r"cannot be written: .*No space left"):
                state.append_commit(commit(state, 2))
            with pytest.raises(StateError, match="FINAL of epoch 2 cannot be written"):
                state._append(store.Final(2), "FINAL of epoch 2")
        assert contents(tmp_path) == before
    with opened(tmp_path, storage) as state:
        assert state.last_commit is not None
        assert state.last_commit.epoch == (2 if failing == "sync" else 1)
        assert state.next_epoch == (5 if failing == "sync" else 4)


@pytest.mark.parametrize("failing", ["append", "sync"])
def test_a_disk_that_is_full_at_the_start_changes_nothing(tmp_path, failing):
    run(tmp_path, 2)
    before = contents(tmp_path)
    storage = Failing(failing)
    storage.broken = True
    with pytest.raises(StateError, match="No space left on device"):
        opened(tmp_path, storage)
    after = contents(tmp_path)
    assert {name: data for name, data in after.items() if not name.endswith(".tmp")} == before
    storage.broken = False
    assert run(tmp_path, 1, storage)[1] == 5
    assert list(tmp_path.glob("*.tmp")) == []


@pytest.mark.parametrize("replacement", [None, b""])
def test_a_lock_that_was_taken_away_stops_the_owner(tmp_path, replacement):
    with opened(tmp_path) as state:
        (tmp_path / "LOCK").unlink()
        if replacement is not None:
            (tmp_path / "LOCK").write_bytes(replacement)
        before = contents(tmp_path)
        with pytest.raises(StateError, match="deleted or replaced"):
            state.append_commit(commit(state, 1))
        assert contents(tmp_path) == before


def test_a_directory_that_vanished_stops_the_owner(tmp_path):
    with opened(tmp_path / "state") as state:
        shutil.rmtree(tmp_path / "state")
        with pytest.raises(StateError) as caught:
            state.append_commit(commit(state, 1))
        assert isinstance(caught.value.__cause__, OSError)


def test_a_path_that_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "state"):
        with pytest.raises(StateError, match="cannot be opened") as caught:
            opened(path)
        assert isinstance(caught.value.__cause__, OSError)
    assert (tmp_path / "file").read_text() == "x"


def test_a_directory_that_cannot_be_written(tmp_path):
    class ReadOnly(Storage):
        def create(self, path: str, *, mode: int = 0o600) -> File:
            raise PermissionError(13, "Permission denied", path)

    with pytest.raises(StateError, match="Permission denied") as caught:
        opened(tmp_path, ReadOnly())
    assert isinstance(caught.value.__cause__, PermissionError)
    opened(tmp_path).close()


def test_a_closed_state_directory_refuses_everything(tmp_path):
    state = opened(tmp_path)
    state.close()
    state.close()
    with pytest.raises(StateError, match="it is closed"):
        state.append_commit(commit(state, 1))


def test_what_the_protocol_forbids_is_not_written(tmp_path):
    with opened(tmp_path) as state:
        before = contents(tmp_path)
        with pytest.raises(RuntimeError, match="COMMIT of epoch 2 stands where that of 1 should"):
            state.append_commit(commit(state, 2))
        with pytest.raises(RuntimeError, match="is of term x"):
            state.append_commit(commit(state, 1, term="x"))
        with pytest.raises(RuntimeError, match="is of incarnation x"):
            state.append_commit(commit(state, 1, incarnation="x"))
        with pytest.raises(RuntimeError, match="FINAL of epoch 1 without its COMMIT"):
            state.append_final(1)
        assert contents(tmp_path) == before
        state.append_commit(commit(state, 1))
        with pytest.raises(RuntimeError, match="follows one without FINAL"):
            state.append_commit(commit(state, 2))


def test_a_torn_tail_is_put_aside_and_reported(tmp_path):
    run(tmp_path, 1)
    with opened(tmp_path) as state:
        whole = manifest_of(tmp_path).stat().st_size
        state.append_commit(commit(state, 4))
    manifest = manifest_of(tmp_path)
    torn = manifest.read_bytes()[:-3]
    manifest.write_bytes(torn)
    with opened(tmp_path) as state:
        assert state.last_commit is not None
        assert (state.last_commit.epoch, state.next_epoch) == (1, 6)
        assert state.torn is not None
        assert state.torn.path == f"{manifest}.torn-{state.term}"
        assert (state.torn.offset, state.torn.size_bytes) == (whole, len(torn) - whole)
        assert Path(state.torn.path).read_bytes() == torn[whole:]
    with opened(tmp_path) as state:
        assert state.torn is None
        assert len(list(tmp_path.glob("*.torn-*"))) == 1


@pytest.mark.parametrize("at", [0, 3, 9, 20, 70, 100, -300, -80])
def test_damage_stops_everything_and_changes_nothing(tmp_path, at):
    run(tmp_path, 2)
    manifest = manifest_of(tmp_path)
    data = bytearray(manifest.read_bytes())
    at %= len(data)
    data[at] ^= 0x10
    manifest.write_bytes(data)
    before = contents(tmp_path)
    with pytest.raises(CorruptState, match=f"{manifest.name} is damaged at byte") as caught:
        opened(tmp_path)
    assert caught.value.path == str(manifest)
    assert caught.value.offset is not None
    assert caught.value.offset <= at
    assert contents(tmp_path) == before
    opened(tmp_path / "other").close()


def test_records_in_an_impossible_order_are_damage(tmp_path):
    with opened(tmp_path) as state:
        frame, _ = store.manifest.encode(store.Final(8), state._tail)
    with manifest_of(tmp_path).open("ab") as file:
        offset = file.tell()
        file.write(frame)
    with pytest.raises(CorruptState, match="FINAL of epoch 8 without its COMMIT") as caught:
        opened(tmp_path)
    assert caught.value.offset == offset


def test_a_manifest_under_another_name_is_damage(tmp_path):
    run(tmp_path, 1)
    manifest_of(tmp_path).rename(tmp_path / "manifest-00000009")
    with pytest.raises(CorruptState, match="written under another name"):
        opened(tmp_path)


@pytest.mark.parametrize("trace", ["stages", "manifest-00000001.torn-0123456789abcdef"])
def test_a_manifest_that_is_gone_is_not_a_new_directory(tmp_path, trace):
    run(tmp_path, 1)
    manifest_of(tmp_path).unlink()
    (tmp_path / trace).mkdir()
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(CorruptState, match="the manifest is gone"):
        opened(tmp_path)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_later_format_is_refused_untouched(tmp_path):
    run(tmp_path, 1)
    manifest = manifest_of(tmp_path)
    data = manifest.read_bytes()
    opening = data[:8] + (2).to_bytes(4, "little")
    manifest.write_bytes(opening + store.manifest.crc32c(opening).to_bytes(4, "little") + data[16:])
    before = contents(tmp_path)
    with pytest.raises(StateError, match="written by a later release: format version 2") as caught:
        opened(tmp_path)
    assert not isinstance(caught.value, CorruptState)
    assert contents(tmp_path) == before


def test_files_of_others_are_left_alone_and_our_leftovers_go(tmp_path):
    run(tmp_path, 1)
    foreign = ["notes.txt", "x.tmp", "manifest-1", "manifest-00000001.bak", ".hidden"]
    for name in [*foreign, "manifest-00000007.tmp", "manifest-00000000"]:
        (tmp_path / name).write_bytes(b"x")
    assert run(tmp_path, 1)[1] == 4
    assert sorted(os.listdir(tmp_path)) == sorted([*foreign, "LOCK", "manifest-00000002"])


def test_an_old_manifest_that_cannot_be_deleted_only_stays(tmp_path):
    class Sticky(Storage):
        def unlink(self, path: str) -> None:
            raise PermissionError(13, "Permission denied", path)

    run(tmp_path, 1)
    assert run(tmp_path, 1, Sticky())[1] == 4
    assert run(tmp_path, 1)[1] == 7
    assert [file.name for file in tmp_path.glob("manifest-*")] == ["manifest-00000003"]


@pytest.mark.parametrize("version", ["v1"])
def test_the_state_of_earlier_releases_opens(tmp_path, version):
    """A commit without FINAL, then a start that ended at once, then half a frame."""
    shutil.copytree(GOLDEN / version, tmp_path / "state")
    with opened(tmp_path / "state") as state:
        assert state.incarnation == "000102030405060708090a0b0c0d0e0f"
        assert state.seed == bytes(range(16, 32))
        assert state.publish_again
        assert state.next_epoch == 7
        assert state.torn is not None
        assert state.torn.size_bytes == 17
        assert state.last_commit == Commit(
            epoch=2,
            incarnation=state.incarnation,
            term="00000000000000aa",
            fingerprint=FINGERPRINT,
            offsets={"parquet(events/)": {"files": [["événement.parquet", 12345, "0badcafe", 70000]]}},
            states={"dedup": [{"runs": ["run-00000001"], "crc32c": 7}, None]},
            handles=[{"files": [["part-00000-00000002-00.parquet", 4096, 99]]}],
            counters={"rows_in": 70000, "duplicates": 1},
        )
        state.append_final(2)
        state.append_commit(commit(state, 7))
        assert os.path.isdir(state.stage_directory("dedup", 0))


def test_a_file_that_cannot_be_closed_keeps_nobody_out(tmp_path, monkeypatch):
    state = opened(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(state._file, "close", lambda: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            state.close()
    opened(tmp_path).close()
