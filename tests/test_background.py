"""Background jobs: urgent ones first, step by step; cancelling ends between steps; failures stay with the owner."""

import threading

import pytest

from engine.background import BackgroundThread
from engine.errors import EngineError


def counting(log, name, steps):
    for step in range(steps):
        log.append((name, step))
        yield
    return name


def test_the_most_urgent_work_takes_the_next_step():
    background = BackgroundThread("test")
    log = []
    gate = threading.Event()

    def slow():
        log.append("begun")
        gate.wait()
        yield
        log.append("ended")

    first = background.submit(slow(), priority=9)
    late = background.submit(counting(log, "late", 2), priority=5)
    urgent = background.submit(counting(log, "urgent", 2), priority=1)
    equal = background.submit(counting(log, "equal", 1), priority=5)
    gate.set()
    for job in (first, late, urgent, equal):
        background.wait(job)
    work = [entry for entry in log if entry not in ("begun", "ended")]
    assert work == [("urgent", 0), ("urgent", 1), ("late", 0), ("late", 1), ("equal", 0)]
    assert log[-1] == "ended"
    assert (late.result(), urgent.result(), first.value) == ("late", "urgent", None)
    background.join()


def test_a_failure_is_raised_where_the_result_is_asked_for():
    background = BackgroundThread("test")

    def failing():
        yield
        raise OSError(28, "No space left on device")

    job = background.submit(failing(), priority=1)
    after = background.submit(counting([], "after", 1), priority=2)
    background.wait(after)
    assert job.done
    with pytest.raises(OSError, match="No space"):
        job.result()
    background.join()


def test_a_cancelled_job_cleans_up_and_takes_no_further_step():
    background = BackgroundThread("test")
    begun, gate, log = threading.Event(), threading.Event(), []

    def long():
        try:
            while True:
                log.append("step")
                begun.set()
                gate.wait()
                yield
        finally:
            log.append("cleaned up")

    job = background.submit(long(), priority=1)
    waiting = background.submit(counting(log, "never", 1), priority=2)
    begun.wait()
    background.cancel(waiting)
    canceller = threading.Thread(target=background.cancel, args=(job,))
    canceller.start()
    gate.set()
    canceller.join()
    assert log.count("cleaned up") == 1
    assert log[-1] == "cleaned up"
    assert ("never", 0) not in log
    background.cancel(job)  # once more is harmless
    background.join()


def test_the_thread_ends_with_the_work_and_comes_back():
    background = BackgroundThread("engine-test-background")

    def threads():
        return [thread for thread in threading.enumerate() if thread.name == "engine-test-background"]

    for _ in range(3):
        job = background.submit(counting([], "work", 3), priority=1)
        background.wait(job)
        assert job.result() == "work"
        background.join()
        assert threads() == []


def test_no_thread_can_be_had(monkeypatch):
    def refused(thread):
        raise RuntimeError("can't start new thread")

    background, log = BackgroundThread("test"), []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        with pytest.raises(EngineError, match="test cannot be started: can't start new thread"):
            background.submit(counting(log, "refused", 1), priority=0)
    job = background.submit(counting(log, "later", 1), priority=1)
    background.wait(job)
    background.join()
    assert log == [("later", 0)]
