"""Dedup for ever within little memory: the recent ids there, all others in sealed runs on disk, 1 % duplicates."""

import pytest
from child import ChildContender
from jobs_dedup import expected

MEMORY = {"small": "4MiB", "large": "64MiB", "huge": "64MiB"}


def bench_sealed_runs(contest, pytestconfig: pytest.Config, size, tmp_path):
    arguments = {"ids": size.ids, "memory": MEMORY[pytestconfig.getoption("--size")], "spill": str(tmp_path)}
    ours = ChildContender("engine", "jobs_dedup:sealed_runs", arguments)
    title = f"dedup, sealed runs, {arguments['memory']}"
    contest.hold(title, [ours], items=size.ids, expected=expected(size.ids), rounds=1)
