"""Every planted bug is found, and where none is planted nothing is.

``--mutants N`` says how many of them are drawn (0: all); the seed is printed, and ``--seed`` repeats it.
"""

import random
import time

import pytest
from mutants.hunts import HUNTS
from mutants.planted import ELSEWHERE, PLANTED

LEAST = 30
"""So many bugs must be known here, beside those that other tests plant."""


@pytest.mark.parametrize("hunt", HUNTS)
def test_nothing_is_found_where_nothing_is_planted(hunt: str, generator: random.Random) -> None:
    HUNTS[hunt](generator)


def test_planted_bugs_are_found(mutants: int, generator: random.Random) -> None:
    chosen = generator.sample(PLANTED, min(mutants, len(PLANTED)) if mutants else len(PLANTED))
    missed = []
    for mutant in chosen:
        began = time.process_time()
        with pytest.MonkeyPatch.context() as patch:
            mutant.plant(patch)
            try:
                HUNTS[mutant.hunt](generator)
            except (TypeError, NameError, AttributeError):
                raise  # a plant or a hunt that is wrong itself finds nothing
            except Exception as error:
                text = str(error).split("\n")[0][:160]
                print(f"{mutant.name}: {time.process_time() - began:.1f} s, {type(error).__name__}: {text}")
            else:
                missed.append(mutant.name)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} found")
    assert not missed


def test_the_registry_is_whole() -> None:
    names = [mutant.name for mutant in PLANTED]
    assert len(set(names)) == len(names) >= LEAST
    assert {mutant.hunt for mutant in PLANTED} == set(HUNTS)
    print(f"{len(names)} here, { ({file: len(bugs) for file, bugs in ELSEWHERE.items()}) }")
    assert all(ELSEWHERE.values())
