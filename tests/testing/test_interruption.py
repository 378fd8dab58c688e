"""Interrupting a call: at every place once, never in a destructor or an import, and nothing of it stays behind."""

import _imp
import gc
import sys
import weakref

import pytest

from engine.testing.interruption import Interrupted, count_calls, interrupt


class Steps:
    """Writes down how far it came."""

    def __init__(self):
        self.done = []

    def step(self, number):
        self.done.append(number)

    def all(self):
        for number in range(5):
            self.step(number)


def test_every_place_is_reached_once():
    calls = count_calls(Steps().all)
    assert calls == 11  # all itself, and five times step and append
    ends = []
    for place in range(calls):
        steps = Steps()
        assert interrupt(steps.all, place)
        ends.append(len(steps.done))
    assert ends == [0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    steps = Steps()
    assert not interrupt(steps.all, calls)
    assert steps.done == [0, 1, 2, 3, 4]


def test_what_catches_errors_does_not_catch_it():
    caught = []

    def attempt():
        try:
            len("")
        except Exception as error:
            caught.append(error)

    assert interrupt(attempt, 1)
    assert caught == []
    assert not issubclass(Interrupted, Exception)


def test_an_error_that_it_was_turned_into_is_the_interruption():
    def foreign():
        try:
            len("")
        except BaseException as error:
            raise OSError("the callback failed") from error

    assert interrupt(foreign, 1)

    def failing():
        len("")
        raise OSError("of its own")

    with pytest.raises(OSError, match="of its own"):
        interrupt(failing, 5)


def test_destructors_and_weak_references_come_to_their_end():
    ended = []

    class Thing:
        def __del__(self):
            ended.append(len("destroyed"))

    def work():
        things = weakref.WeakSet()
        thing = Thing()
        things.add(thing)
        del thing
        len("behind")

    calls = count_calls(work)
    before = len(ended)
    assert before == 1
    for place in range(calls):
        assert interrupt(work, place)
    assert len(ended) > before


def test_imports_come_to_their_end_and_let_go_of_their_lock():
    def work():
        sys.modules.pop("colorsys", None)
        import colorsys

        colorsys.rgb_to_hls(0, 0, 0)

    calls = count_calls(work)
    for place in range(calls):
        assert interrupt(work, place)
        assert not _imp.lock_held(), place
    assert calls < 10  # pop, rgb_to_hls, and what it calls itself


def test_no_garbage_is_collected_meanwhile():
    during = []
    count_calls(lambda: during.append(gc.isenabled()))
    assert during == [False]
    assert gc.isenabled()
    assert interrupt(Steps().all, 3)
    assert gc.isenabled()


def test_the_profiler_before_is_back():
    assert sys.getprofile() is None

    def other(frame, event, argument):
        return None

    sys.setprofile(other)
    try:
        interrupt(Steps().all, 3)
        found = sys.getprofile()
    finally:
        sys.setprofile(None)
    assert found is other
