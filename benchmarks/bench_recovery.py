"""Recovery after a crash: the newest segment of a log is read whole, and a window of sealed runs is brought back.

Together they are what a start waits for before its first row: a tail of 256 MiB and 1 GiB of state at the large size.
"""

import os

import numpy as np
import pyarrow as pa
from contest import Contender

from engine import Log
from engine.background import BackgroundThread
from engine.stages.key_window import KeyWindow, chunk_ids_of
from engine.storage import Storage

BATCH_IDS = 1 << 16
ID_BYTES = 16
LARGE_FROM_ROWS = 1_000_000


def window(directory, state_bytes, background):
    memory_bytes = max(4 << 20, state_bytes // 8)
    return KeyWindow(
        [0], memory_bytes=memory_bytes, storage=Storage(), directory=directory, seed=bytes(range(16)), durable=True,
        background=background, chunk_ids=chunk_ids_of(memory_bytes),
    )  # fmt: skip


def write_log(directory, tail_bytes):
    rows = pa.record_batch({"value": np.random.default_rng(1).integers(0, 1 << 62, size=(1 << 20) // 8)})
    with Log(directory, segment_bytes=2 * tail_bytes) as log:
        for _ in range(tail_bytes // rows.nbytes):
            log.append(rows)
        return log.end()


def write_state(directory, state_bytes, background):
    chance = np.random.default_rng(2)
    seen = window(directory, state_bytes, background)
    for _ in range(state_bytes // (BATCH_IDS * ID_BYTES)):
        token, _ = seen.probe_ids(chance.bytes(BATCH_IDS * ID_BYTES), BATCH_IDS)
        seen.commit(token)
    snapshot = seen.snapshot()
    seen.close()
    return snapshot


def bench_recovery(contest, size, tmp_path):
    tail_bytes, state_bytes = (256 << 20, 1 << 30) if size.rows >= LARGE_FROM_ROWS else (4 << 20, 8 << 20)
    background = BackgroundThread("recovery")
    log, state = os.fspath(tmp_path / "log"), os.fspath(tmp_path / "state")
    end, snapshot = write_log(log, tail_bytes), write_state(state, state_bytes, background)

    def recover():
        seen = window(state, state_bytes, background)
        seen.restore(snapshot)
        seen.close()
        with Log(log) as opened:
            return opened.end(), seen.describe()["tail"]

    title = f"recovery, {tail_bytes >> 20} MiB of a log and {state_bytes >> 20} MiB of state"
    expected = (end, state_bytes // ID_BYTES)
    contest.hold(title, [Contender("engine", recover, tuple)], items=1, expected=expected, unit="recovery")
    background.join()
