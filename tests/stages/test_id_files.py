"""Damage to the files of a window: always noticed, never answered from, nothing changed; a lost filter is rebuilt."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from window_model import SEED, Killed, MortalStorage, ids_of, probe, small_window

from engine.errors import CorruptState, StateError
from engine.stages.id_log import IdLog
from engine.stages.sealed_run import SealedRun
from engine.storage import Storage


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """A closed window with runs and a log: its directory, its state, what its files hold."""
    directory = tmp_path_factory.mktemp("sealed")
    window = small_window(directory, within=None)
    for first in range(0, 1_000, 50):
        probe(window, range(first, first + 50))
    state = window.snapshot()
    window.release(state)
    window.close()
    return directory, state, {path.name: path.read_bytes() for path in directory.iterdir()}


def restored(directory, state):
    window = small_window(directory, within=None)
    window.restore(state)
    return window


def test_all_is_well_without_damage(sealed):
    directory, state, files = sealed
    window = restored(directory, state)
    assert state["runs"]
    assert not any(window.probe_ids(ids_of(range(1_000)), 1_000)[1].selection)
    window.close()
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == files


def ask_restored(directory, state):
    """What a restored window says about 1,200 ids of which it saw the first 1,000, or the error."""
    try:
        return restored(directory, state).probe_ids(ids_of(range(1_200)), 1_200)[1].selection, None
    except StateError as error:
        return None, error


@settings(max_examples=150)
@given(st.data())
def test_a_flipped_bit_is_noticed_or_harmless(sealed, tmp_path_factory, data):
    _, state, files = sealed
    directory = tmp_path_factory.mktemp("flipped")
    name = data.draw(st.sampled_from(sorted(files)))
    bit = data.draw(st.integers(0, len(files[name]) * 8 - 1))
    damaged = bytearray(files[name])
    damaged[bit // 8] ^= 1 << bit % 8
    for other, content in files.items():
        (directory / other).write_bytes(damaged if other == name else content)
    answers, error = ask_restored(directory, state)
    if error is None:
        assert answers == bytes(1_000) + b"\1" * 200
        assert name.startswith("run-")  # its filter or index, built again
    else:
        assert name in str(error)
        assert (directory / name).read_bytes() == damaged


@pytest.mark.parametrize("kind", ["segments", "runs"])
@pytest.mark.parametrize("kept", [0, 1, 40, 64, 100, 1_000, -130, -1])
def test_a_short_file_is_noticed(sealed, tmp_path, kind, kept):
    _, state, files = sealed
    name = state[kind][-1]["file"]
    for other, content in files.items():
        (tmp_path / other).write_bytes(content[:kept] if other == name else content)
    with pytest.raises(CorruptState, match=r"short|committed|footer|length") as caught:
        restored(tmp_path, state)
    assert caught.value.path.endswith(name)


@pytest.mark.parametrize("kind", ["segments", "runs"])
def test_a_missing_file_is_noticed(sealed, tmp_path, kind):
    _, state, files = sealed
    for other, content in files.items():
        if other != state[kind][0]["file"]:
            (tmp_path / other).write_bytes(content)
    with pytest.raises(CorruptState, match="missing"):
        restored(tmp_path, state)


def test_a_run_of_another_window_is_refused(sealed, tmp_path):
    directory, state, files = sealed
    with pytest.raises(StateError, match="another state"):
        SealedRun.open(Storage(), str(directory), state["runs"][0]["file"], bytes(16))
    for other, content in files.items():
        (tmp_path / other).write_bytes(content)
    if len(state["runs"]) > 1:
        (tmp_path / state["runs"][0]["file"]).write_bytes(files[state["runs"][1]["file"]])
        with pytest.raises(CorruptState, match="not the id run"):
            restored(tmp_path, state)


def test_bytes_beyond_the_committed_length_are_cut_off(sealed, tmp_path):
    _, state, files = sealed
    for other, content in files.items():
        (tmp_path / other).write_bytes(content + b"torn" if other == state["segments"][-1]["file"] else content)
    window = restored(tmp_path, state)
    assert probe(window, range(990, 1_010)) == bytes(10) + b"\1" * 10
    again = window.snapshot()
    assert again["segments"][-1]["stop"] == 1_020
    window.close()
    window = restored(tmp_path, again)
    assert probe(window, range(1_000, 1_020)) == bytes(10) + b"\1" * 10
    window.close()


def logged(log, state, start=0):
    return [(first, bytes(ids)) for first, ids in log.restore(state, start)]


def test_the_log_rolls_into_segments_and_gives_back_what_it_took(tmp_path):
    log = IdLog(Storage(), str(tmp_path), SEED, segment_bytes=1_000)
    for first in range(0, 300, 10):
        log.append(first, ids_of(range(first, first + 10)))
    state = log.sync()
    log.close()
    assert [(entry["first"], entry["stop"]) for entry in state] == [(i, i + 50) for i in range(0, 300, 50)]
    frames = [(first, ids_of(range(first, first + 10))) for first in range(0, 300, 10)]
    log = IdLog(Storage(), str(tmp_path), SEED)
    assert logged(log, state) == frames
    log.append(300, ids_of([300]))
    log.drop_below(125)
    later = log.sync()
    log.release(later)
    log.close()
    assert sorted(os.listdir(tmp_path)) == [entry["file"] for entry in later]
    log = IdLog(Storage(), str(tmp_path), SEED)
    assert logged(log, later, 125) == [(125, ids_of(range(125, 130))), *frames[13:], (300, ids_of([300]))]
    log.close()


def test_a_log_of_another_state_is_refused(tmp_path):
    log = IdLog(Storage(), str(tmp_path), SEED)
    log.append(0, ids_of([1]))
    state = log.sync()
    log.close()
    with pytest.raises(StateError, match="another state"):
        logged(IdLog(Storage(), str(tmp_path), bytes(16)), state)


def test_a_killed_seal_leaves_only_an_unfinished_file(tmp_path):
    window = small_window(tmp_path, within=None, storage=MortalStorage(24), durable=False)

    def fill():
        for first in range(0, 5_000, 50):
            probe(window, range(first, first + 50))

    with pytest.raises(Killed):
        fill()
    window.close()
    assert all(name.endswith(".tmp") for name in os.listdir(tmp_path))
