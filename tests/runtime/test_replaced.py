"""What repairs replaced is removed by the next run, at its first commit; damaged files and those of others stay.

Verified: several repairs in a row; what a repair left that was cut short; nothing before there is a commit; a disk that
refuses; power cuts at every change of that run, after which what is named is sound and what was damaged is there.
"""

import errno
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from runtime.damaged_states import (
    INPUT,
    OPTIONS,
    damaged_disk,
    harm,
    options,
    output_of,
    pipeline,
    simulated,
    stopped,
    victims,
)

from engine import run, sources
from engine._runtime.repair import repair
from engine.checkpoint.inspection import verify
from engine.errors import StageError, StateError
from engine.storage import Storage
from engine.testing.crash_states import crash_states
from engine.testing.storage import SimulatedStorage
from engine.testing.storage_faults import FailCall


def files_below(path):
    """Of stages; without runs that were not finished."""
    stages = path / "state" / "repaired" / "stages"
    return {str(file.relative_to(stages)) for file in stages.rglob("*") if file.is_file() and file.suffix != ".tmp"}


def named(path):
    """The files of the last COMMIT."""
    return {os.path.join(*Path(file.path).parts[-2:]) for file in verify_all(path).files}


def verify_all(path):
    return verify(Storage(), str(path / "state" / "repaired"))


def repaired(path):
    assert repair(pipeline(path / "out"), options(path)).damaged


def test_damaged_files_of_several_repairs_stay_and_nothing_else(tmp_path):
    stopped(tmp_path)
    harmed = []
    for kind in ("ids", "run", "keys"):
        victim = victims(tmp_path, kind)[0]
        harm(victim, "flipped")
        harmed.append((os.path.join(*victim.parts[-2:]), victim.read_bytes()))
        before = files_below(tmp_path)
        repaired(tmp_path)
        assert before <= files_below(tmp_path)
    stages = tmp_path / "state" / "repaired" / "stages"
    (stages / harmed[0][0]).with_name("notes").write_text("of others")
    cut_short = stages / f"{Path(harmed[0][0]).parts[0]}.rebuilt-0123456789abcdef"
    shutil.copytree(stages / Path(harmed[2][0]).parts[0], cut_short)
    foreign = stages / f"{Path(harmed[0][0]).parts[0]}.of-others"
    shutil.copytree(cut_short, foreign)
    others = {name for name in files_below(tmp_path) if ".of-others" in name}
    with pytest.raises(StageError, match="stop here"):
        run(pipeline(tmp_path / "out", stop=0), state=tmp_path / "state", **OPTIONS)
    assert {name for name, _ in harmed} < named(tmp_path) | files_below(tmp_path)
    assert cut_short.exists(), "nothing goes before there is a commit"
    run(pipeline(tmp_path / "out"), state=tmp_path / "state", **OPTIONS)
    kept = others | {name for name, _ in harmed} | {os.path.join(Path(harmed[0][0]).parts[0], "notes")}
    assert len({Path(name).parts[0] for name, _ in harmed}) == 3
    assert files_below(tmp_path) == kept | named(tmp_path)
    assert not cut_short.exists()
    assert all((stages / name).read_bytes() == content for name, content in harmed)
    more = sources.memory([*INPUT, INPUT[0].slice(0, 1)], id="rows")
    run(pipeline(tmp_path / "out", read=more), state=tmp_path / "state", **OPTIONS)
    assert files_below(tmp_path) == kept | named(tmp_path)
    for name, _ in harmed:
        (stages / name).unlink()
    (stages / harmed[0][0]).with_name("notes").unlink()
    run(pipeline(tmp_path / "out", read=sources.memory([*INPUT, INPUT[0]], id="rows")), state=tmp_path / "state")
    assert files_below(tmp_path) == others | named(tmp_path)
    assert {name for name in os.listdir(stages) if ".rebuilt-" in name} == {
        name for name in {Path(file).parts[0] for file in named(tmp_path)} if ".rebuilt-" in name
    }


@pytest.mark.parametrize("call", ["unlink", "list", "remove_directory"])
def test_a_disk_that_refuses(call):
    """The run says so; what it has committed stays, and the next one removes the rest."""
    storage, victim, expected = damaged_disk(rows=6_000)
    lane = os.path.dirname(victim)
    if call == "remove_directory":
        storage.unlink(victim)
    simulated(storage, mend=True, rows=6_000)
    place = f"{lane}/*" if call == "unlink" else lane
    refusing = SimulatedStorage(faults=[FailCall(call, path=place, errno=errno.EIO)], disk=storage.disk())
    with pytest.raises(StateError, match="what a repair replaced cannot be removed"):
        simulated(refusing, rows=6_000)
    assert refusing.fired[f"{call} EIO"] == 1
    after = refusing.kill()
    assert verify(after, "/state/repaired").damaged == ()
    simulated(after, rows=6_000)
    assert output_of(after) == expected


def test_power_cuts_while_it_is_removed(crash_state_count, generator):
    """At every change of the disk what the last COMMIT names is sound, and the damaged file is there."""
    damaged, victim, expected = damaged_disk(rows=6_000)
    simulated(damaged, mend=True, rows=6_000)
    content = damaged.contents()[victim]
    storage = SimulatedStorage(disk=damaged.crash("everything").disk(), record=True)
    siblings = {name for name in storage.contents() if name.startswith(os.path.dirname(victim) + "/")} - {victim}
    assert siblings
    simulated(storage, rows=6_000)
    seen = Counter()
    for number, state in enumerate(crash_states(storage, most=crash_state_count // 4, seed=generator.getrandbits(32))):
        after = state.storage()
        assert verify(after, "/state/repaired").damaged == (), state
        now = after.contents()
        assert now[victim] == content, state
        seen["some" if siblings <= now.keys() else "gone"] += 1
        if number % 20 == 0:
            simulated(after, rows=6_000)
            assert output_of(after.crash()) == expected, state
            seen["gone on"] += 1
    print(dict(seen))
    assert min(seen["some"], seen["gone"], seen["gone on"]) > 5
