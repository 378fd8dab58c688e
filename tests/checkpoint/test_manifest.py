"""The manifest's bytes: round trips, the documented example, and every way in which they can be damaged."""

import itertools
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.checkpoint import manifest
from engine.checkpoint.manifest import Commit, Damage, Final, Header, Term, begin, decode, encode
from engine.errors import StateError

HEADER = Header(bytes(range(16)).hex(), bytes(range(16, 32)), 1)
TERM = Term("00000000000000aa", 1)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=5), json_values, max_size=3)
commits = st.builds(
    Commit,
    epoch=st.integers(1, 2**60),
    incarnation=st.just(HEADER.incarnation),
    term=st.text("0123456789abcdef", min_size=16, max_size=16),
    fingerprint=objects,
    offsets=objects,
    states=st.dictionaries(st.text(max_size=5), st.lists(st.none() | objects, max_size=3), max_size=2),
    handles=st.lists(json_values, max_size=3),
    counters=st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)
records = (
    st.builds(Term, term=st.text("0123456789abcdef", min_size=16, max_size=16), first_epoch=st.integers(1, 2**60))
    | commits
    | st.builds(Final, epoch=st.integers(1, 2**60))
)


def commit(epoch: int, term: str = TERM.term) -> Commit:
    return Commit(
        epoch, HEADER.incarnation, term, {"sink": "out"}, {"a": epoch}, {"dedup": [None]}, [epoch], {"rows": 1}
    )


def written(*appended: manifest.Record, first: tuple[manifest.Record, ...] = (TERM,)) -> tuple[bytes, list[int]]:
    """A manifest begun with ``first`` and appended to; and where each appended frame begins, with the end."""
    data, tail = begin(HEADER, first)
    borders = [len(data)]
    for record in appended:
        frame, tail = encode(record, tail)
        data += frame
        borders.append(len(data))
    return data, borders


SMALL, BORDERS = written(commit(1), Final(1), commit(2), Final(2))


@given(first=st.lists(records, max_size=3), appended=st.lists(records, max_size=4))
def test_what_is_written_is_read(first, appended):
    data, borders = written(*appended, first=tuple(first))
    decoded = decode(data)
    assert decoded.header == HEADER
    assert list(decoded.records) == [*first, *appended]
    assert list(decoded.offsets[len(first) :]) == borders[:-1]
    assert decoded.valid_through == len(data)
    assert decoded.problem is None


@given(appended=st.lists(records, min_size=1, max_size=3))
def test_an_appender_goes_on_where_decoding_ended(appended):
    data, _ = written(*appended)
    frame, tail = encode(Final(7), decode(data).tail)
    again = decode(data + frame)
    assert again.records[-1] == Final(7)
    assert again.tail == tail


def test_the_worked_bytes_of_the_documentation():
    assert manifest.__doc__ is not None
    lines = re.findall(r"^    [0-9a-f]{3}  ((?:[0-9a-f]{2} {1,2})+)", manifest.__doc__, flags=re.MULTILINE)
    documented = bytes.fromhex("".join(lines))
    assert documented == begin(HEADER, [TERM])[0]
    assert decode(documented).records == (TERM,)


def test_canonical_json_is_one_text_for_one_value():
    assert manifest.canonical({"b": 1, "a": "é\udc80"}) == rb'{"a":"\u00e9\udc80","b":1}'


def test_every_flipped_byte_is_detected():
    whole = decode(SMALL)
    for at, flip in itertools.product(range(len(SMALL)), (0x01, 0x80, 0xFF)):
        damaged = bytearray(SMALL)
        damaged[at] ^= flip
        decoded = decode(bytes(damaged))
        assert decoded.problem is not None, (at, flip)
        assert decoded.problem.offset <= at
        expected = Damage.TORN if at >= BORDERS[-2] else Damage.CORRUPT
        assert decoded.problem.damage is expected, (at, flip, decoded.problem)
        assert decoded.records == whole.records[: len(decoded.records)]


def test_truncation_at_every_byte():
    for size in range(len(SMALL) + 1):
        decoded = decode(SMALL[:size])
        problem = decoded.problem
        if size in BORDERS:
            assert problem is None
            assert decoded.valid_through == size
        elif size < BORDERS[0]:
            assert problem is not None, size
            assert problem.damage is Damage.CORRUPT
        else:
            assert problem is not None, size
            assert problem.damage is Damage.TORN
            assert decoded.valid_through == problem.offset == max(at for at in BORDERS if at <= size)


@pytest.mark.parametrize(
    "tail",
    [b"\0" * 700, b"\xff" * 700, SMALL[BORDERS[0] : BORDERS[0] + 20], b"\xabREC" * 50],
    ids=["zeros", "ones", "half a frame", "markers"],
)
def test_a_tail_of_anything_is_torn(tail):
    decoded = decode(SMALL + tail)
    assert decoded.valid_through == len(SMALL)
    assert decoded.problem is not None
    assert decoded.problem.damage is Damage.TORN


@given(tail=st.binary(min_size=1, max_size=200))
def test_a_tail_of_chance_is_torn(tail):
    decoded = decode(SMALL + tail)
    assert decoded.valid_through == len(SMALL)
    assert decoded.problem is not None
    assert decoded.problem.damage is Damage.TORN


def test_frames_of_another_file_are_no_proof():
    other, _ = begin(replace(HEADER, number=2), [TERM, commit(1), Final(1)])
    decoded = decode(SMALL[:-3] + other)
    assert decoded.problem is not None
    assert decoded.problem.damage is Damage.TORN


def test_a_frame_of_other_bytes_at_the_same_place_is_corruption():
    """An old frame that a lost or misdirected write left in place: whole in itself, but linked to something else."""
    other, borders = written(replace(commit(1), counters={"rows": 2}), Final(1))
    assert borders == BORDERS[:3]
    decoded = decode(SMALL[: BORDERS[1]] + other[BORDERS[1] :])
    assert decoded.problem is not None
    assert decoded.problem.damage is Damage.CORRUPT
    assert decoded.valid_through == BORDERS[1]


def test_zeroed_bytes_before_a_valid_frame_are_corruption():
    hole = SMALL[: BORDERS[1]] + bytes(BORDERS[2] - BORDERS[1]) + SMALL[BORDERS[2] :]
    decoded = decode(hole)
    assert decoded.problem is not None
    assert decoded.problem.damage is Damage.CORRUPT
    assert decoded.problem.offset == BORDERS[1]
    assert f"follows at byte {BORDERS[2]}" in decoded.problem.reason


def test_a_frame_that_was_left_out_is_corruption():
    decoded = decode(SMALL[: BORDERS[1]] + SMALL[BORDERS[2] :])
    assert decoded.problem is not None
    assert decoded.problem.damage is Damage.CORRUPT
    assert decoded.valid_through == BORDERS[1]


@pytest.mark.parametrize("size", [0, 1, 15, 16, 63, 64, 200])
def test_zeros_are_never_a_manifest(size):
    decoded = decode(bytes(size))
    assert decoded.header is None
    assert decoded.problem is not None
    assert decoded.problem.damage is Damage.CORRUPT


def test_a_newer_format_is_told_from_damage():
    opening = SMALL[:8] + (2).to_bytes(4, "little")
    newer = opening + manifest.crc32c(opening).to_bytes(4, "little") + b"whatever it holds"
    decoded = decode(newer)
    assert decoded.problem is not None
    assert decoded.problem.damage is Damage.NEWER
    assert "version 2" in decoded.problem.reason


def test_what_a_file_was_made_with_cannot_be_torn():
    data, _ = begin(HEADER, [commit(1), Final(1), TERM])
    for size in range(64, len(data)):
        problem = decode(data[:size]).problem
        assert problem is not None
        assert problem.damage is Damage.CORRUPT


@pytest.mark.parametrize("foreign", [{"epoch": "3"}, {"epoch": 3, "more": 1}, {}, [3], None])
def test_a_whole_frame_that_makes_no_sense_is_corruption(monkeypatch, foreign):
    data, tail = begin(HEADER, [TERM])
    monkeypatch.setattr(manifest, "_payload", lambda record: manifest.canonical(foreign))
    frame, _ = encode(Final(3), tail)
    problem = decode(data + frame).problem
    assert problem is not None
    assert problem.damage is Damage.CORRUPT
    assert "makes no sense" in problem.reason


def test_a_commit_of_another_incarnation_is_corruption():
    data, _ = written(replace(commit(1), incarnation="f" * 32))
    problem = decode(data).problem
    assert problem is not None
    assert problem.damage is Damage.CORRUPT
    assert "incarnation" in problem.reason


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"bytes", object()])
def test_what_json_cannot_hold_is_refused(value):
    _, tail = begin(HEADER, [TERM])
    with pytest.raises(StateError, match="COMMIT record holds what JSON cannot"):
        encode(replace(commit(1), offsets={"a": value}), tail)


def test_a_record_beyond_the_limit_is_refused(monkeypatch):
    monkeypatch.setattr(manifest, "PAYLOAD_LIMIT_BYTES", 100)
    _, tail = begin(HEADER, [TERM])
    with pytest.raises(StateError, match="larger than 100"):
        encode(commit(1), tail)
