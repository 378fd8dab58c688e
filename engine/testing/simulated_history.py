"""One seed of a simulated pipeline: starts, faults, ends of all kinds, until it is done or refuses for good.

Laws
    - After so many starts with faults there are starts without: a pipeline that then still fails is a problem of its
      own, unless something was corrupted.
    - Where something was corrupted, a start without faults that fails is a refusal. It must name a file, come again
      at the next start, and have removed and changed nothing but the manifest and a log's durable offset, which note
      every start. A file that an error calls damaged is there afterwards.
    - What was corrupted and did not show is looked for once more: the power fails after the end, and the pipeline is
      started again before its rows are compared.
"""

import hashlib
import os
import re
from random import Random
from typing import TYPE_CHECKING

import pyarrow as pa

from engine.errors import CorruptLog, CorruptState, EngineError
from engine.testing.fault_draw import CORRUPTING
from engine.testing.inline_threads import Delay
from engine.testing.simulated_world import World
from engine.testing.storage import PowerLost, SimulatedStorage
from engine.testing.storage_faults import Fault

if TYPE_CHECKING:
    from engine.testing.simulate import Outcome

__all__ = ["History"]

ATTEMPTS = 20
"""After so many starts a pipeline that still does not end is a problem of its own."""

CRASHING_ATTEMPTS = 3
CORRUPTING_SHARE = 0.25

NOTED = re.compile(r"manifest-.*|durable(\.tmp)?")
"""Files that are written at every start, also at one that refuses."""


class History:
    """The history of ``outcome.seed``; ``run`` writes into ``outcome`` what became of it."""

    def __init__(self, world: World, outcome: "Outcome") -> None:
        self._world = world
        self._outcome = outcome
        self._chance = Random(outcome.seed)
        self._digest = hashlib.blake2b(digest_size=16)
        self._delay = Delay()
        self._corrupting = self._chance.random() < CORRUPTING_SHARE
        self._looked_again = False

    @property
    def _corrupted(self) -> bool:
        """Whether a fault that corrupts has fired."""
        return not CORRUPTING.isdisjoint(self._outcome.fired)

    def run(self) -> None:
        """From the first start to the comparison."""
        outcome = self._outcome
        storage = self._world.storage(self._chance.getrandbits(32), faults=self._faults(), sleep=self._delay.add)
        while True:
            storage.capacity_bytes = self._capacity_bytes(storage)
            error = self._start(storage)
            if outcome.problem is not None:
                break
            if error is None and (self._looked_again or not self._corrupted):
                self._compare(storage)
                break
            if isinstance(error, EngineError) and self._corrupted and not storage.fired:
                self._compare_stopped(self._refuse_again(storage, error))
                break
            if outcome.attempts >= ATTEMPTS:
                outcome.problem = f"after {ATTEMPTS} starts it still fails: {error}"
                break
            storage = self._end(storage, error)
        outcome.trace = self._digest.hexdigest()

    def _start(self, storage: SimulatedStorage) -> BaseException | None:
        """One attempt. Gives the error with which it ended; one that it must not end with is a problem."""
        outcome = self._outcome
        outcome.attempts += 1
        found = storage.contents().keys() if self._corrupting else frozenset[str]()
        error: BaseException | None = None
        try:
            self._world.start(self._chance.getrandbits(32), storage, self._delay)
        except PowerLost as lost:
            error = lost
        except EngineError as failed:
            error = failed
            if not storage.fired and not self._corrupted:
                outcome.problem = f"it failed without a fault: {type(failed).__name__}: {failed}"
            path = failed.path if isinstance(failed, CorruptState | CorruptLog) else ""
            if path in found and not storage.exists(path):
                outcome.problem = f"it removed what is damaged: {type(failed).__name__}: {failed}"
        except Exception as failed:
            error = failed
            outcome.problem = f"what left is no error of engine's: {type(failed).__name__}: {failed}"
        outcome.fired += storage.fired
        self._digest.update(repr(storage.trace).encode())
        return error

    def _end(self, storage: SimulatedStorage, error: BaseException | None) -> SimulatedStorage:
        """The machine or the process ends; gives what the next start finds."""
        self._looked_again = error is None
        power = error is None or isinstance(error, PowerLost) or self._chance.random() < 0.5
        self._outcome.fired["crash" if power else "kill"] += 1
        faults = () if self._looked_again else self._faults()
        return storage.crash(faults=faults) if power else storage.kill(faults=faults)

    def _faults(self) -> list[Fault]:
        outcome, draw = self._outcome, self._world.draw
        if outcome.attempts >= CRASHING_ATTEMPTS:
            return []
        if self._corrupting:
            return (
                [] if self._corrupted and outcome.attempts > 1 else draw.corrupting(self._chance, outcome.attempts + 1)
            )
        return draw.refusing(self._chance)

    def _capacity_bytes(self, storage: SimulatedStorage) -> int | None:
        """The disk may fill up in one start, and has space again in the next."""
        if self._corrupting or self._outcome.attempts >= CRASHING_ATTEMPTS:
            return None
        free_bytes = self._world.draw.free_bytes(self._chance)
        return None if free_bytes is None else storage.used_bytes() + free_bytes

    # The end.

    def _refuse_again(self, storage: SimulatedStorage, error: EngineError) -> SimulatedStorage:
        outcome = self._outcome
        before = _kept(storage)
        again = storage.kill()
        second = self._start(again)
        after = _kept(again)
        outcome.stopped = f"{type(error).__name__}: {error}"
        changed = sorted(path for path, data in before.items() if _changed(path, data, after.get(path, b""), error))
        if not any(root in str(error) for root in self._world.roots):
            outcome.problem = f"it names no file where it refuses: {outcome.stopped}"
        elif type(second) is not type(error):
            outcome.problem = f"it refused, and at the next start it did not: {outcome.stopped}; then {second!r}"
        elif changed:
            outcome.problem = f"it refused and changed {', '.join(changed)}: {outcome.stopped}"
        return again

    def _compare_stopped(self, storage: SimulatedStorage) -> None:
        try:
            rows = self._world.read(storage)
        except EngineError:  # the log itself refuses
            return
        complaints = self._world.wrong_rows(rows, stopped=True)
        self._outcome.problem = self._outcome.problem or "; ".join(complaints) or None

    def _compare(self, storage: SimulatedStorage) -> None:
        outcome, world = self._outcome, self._world
        found = storage.kill() if self._corrupted else storage.crash()
        found.capacity_bytes = None
        wrong_state: list[str] = []
        try:
            rows = world.read(found)
            last = world.last_commit(found)
            if last is not None:
                outcome.epoch = last.epoch
                wrong_state = world.wrong_state(found, last)
        except (pa.ArrowException, EngineError, OSError) as error:
            text = f"{type(error).__name__}: {error}"
            if self._corrupted and isinstance(error, EngineError):
                outcome.stopped = text
            else:
                outcome.problem = f"what was committed cannot be read: {text}"
            return
        outcome.problem = "; ".join(world.wrong_rows(rows, stopped=False) + wrong_state) or None


def _changed(path: str, before: bytes | None, after: bytes | None, error: EngineError) -> bool:
    """Whether a refusal changed a file. A sound one, of another partition, may lose what no commit ever named."""
    cut = before and after and before.startswith(after) and path not in str(error)
    return before != after and not cut


def _kept(storage: SimulatedStorage) -> dict[str, bytes | None]:
    """What a refusal must leave as it is."""
    contents = storage.contents()
    return {path: data for path, data in contents.items() if not NOTED.fullmatch(os.path.basename(path))}
