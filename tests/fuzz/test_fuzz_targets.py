"""Every fuzz target on random choices, without a fuzzer: `--fuzz-cases` for each, from the seed that is printed."""

import struct
from random import Random

import pytest
from choices import Choices
from foreign import Foreign, Node, batch, spoil
from targets import REFUSALS, TARGETS

from engine._core import arrow_c


@pytest.mark.parametrize("name", TARGETS)
def test_answers_or_refuses(name, generator, pytestconfig):
    for _ in range(pytestconfig.getoption("--fuzz-cases")):
        case = generator.getrandbits(64)
        random = Random(case)
        try:
            TARGETS[name](Choices(random.randbytes(random.choice([0, 20, 200, 2_000]))))
        except BaseException:
            print(f"the case is Random({case})")
            raise


def test_choices_of_any_bytes_make_sound_and_broken_batches(generator):
    """Both happen, or the targets would say little."""
    refused: set[str] = set()
    accepted = 0
    for _ in range(400):
        choices = Choices(generator.randbytes(400))
        source = Foreign(batch(choices))
        arrow_c.describe(source)
        accepted += 1
        how = spoil(choices, source)
        with pytest.raises(REFUSALS):
            arrow_c.describe(source)
        refused.add(how.split(" of ")[0])
    assert accepted == 400
    assert len(refused) > 15


def test_text_in_slots_before_the_rows_is_never_said_to_be_missing():
    node = Node(b"Z", 1, [None, struct.pack("<3q", 0, 4, 4), b"text"], [b""], offset=1)
    ways = set()
    for first in range(256):
        source = Foreign(Node(b"+s", 1, [None], children=[node]))
        ways.add(spoil(Choices(bytes([1, 0, first])), source).split(" of ")[0])
        with pytest.raises(REFUSALS):
            arrow_c.describe(source)
    assert "values missing" in ways
    assert "text missing" not in ways
