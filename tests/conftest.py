"""What all tests share.

- ``async def`` tests run under Trio.
- Property tests draw the same examples in every run, and time is no reason for them to fail; ``--hypothesis-profile
  random`` draws others.
- How much is tried is an option of each kind of proof, with a small number where none is given; ``pytest --help`` lists
  them under "Custom options". ``--seed N`` repeats what was drawn; the seed is printed when a test fails.
- ``pytest`` alone runs the tests in as many processes as there are cores; ``-n 0``, a path, ``-s`` or ``--pdb`` in one.
- Tests run in a directory of their own: nothing is written into the source tree, and a Python process that a test
  starts finds the package that is installed rather than its sources, which have no compiled kernels.
"""

import inspect
import os
import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, settings

settings.register_profile(
    "repeatable", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("random", settings.get_profile("repeatable"), derandomize=False, print_blob=True)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=15, help="how many SIGKILLs the main job must survive")
    parser.addoption(
        "--ring-operations", type=int, default=10**6, help="how many items are pushed and popped under the sanitizer"
    )
    parser.addoption("--fuzz-cases", type=int, default=300, help="how many random cases each kernel is given")
    parser.addoption(
        "--crash-states", type=int, default=500, help="how many ends of a run each test of simulated crashes visits"
    )
    parser.addoption(
        "--workload-length", type=int, default=1, help="of up to how many operations every workload is visited"
    )
    parser.addoption(
        "--bit-flips", type=int, default=2000, help="how many bits of durable files are turned over; 0: every one"
    )
    parser.addoption("--simulated-seeds", type=int, default=24, help="how many histories each simulated pipeline has")
    parser.addoption("--system-calls", type=int, default=6, help="at how many system calls a run is killed; 0: at all")
    parser.addoption("--call-stride", type=int, default=4, help="a sweep fails one call in so many; 1: each")
    parser.addoption("--mutants", type=int, default=8, help="how many of the planted bugs are drawn; 0: all")
    parser.addoption("--seed", type=int, default=None, help="the seed of everything that a test draws by itself")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Without it all tests would take twice as long; those of one file are quicker in one process."""
    everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    undecided = config.pluginmanager.hasplugin("xdist") and config.option.numprocesses is None
    watched = config.option.usepdb or config.option.capture == "no" or config.option.collectonly
    if everything and undecided and not watched and not hasattr(config, "workerinput"):
        config.option.numprocesses = os.cpu_count()
        config.option.dist = "worksteal"  # tests of a file stay together, and share what is made for them


@pytest.fixture
def kills(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("--kills"))


@pytest.fixture
def ring_operations(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("--ring-operations"))


@pytest.fixture
def crash_state_count(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("--crash-states"))


@pytest.fixture
def workload_length(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("--workload-length"))


@pytest.fixture
def call_stride(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("--call-stride"))


@pytest.fixture
def bit_flip_count(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("--bit-flips"))


@pytest.fixture
def mutants(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("--mutants"))


@pytest.fixture
def generator(pytestconfig: pytest.Config) -> random.Random:
    """Seeded anew in every run, but for CI, where a change is judged by its own faults; the seed is in the output of a
    test that fails.
    """
    chosen = pytestconfig.getoption("--seed")
    if chosen is None:
        chosen = 1 if os.environ.get("CI") else random.SystemRandom().getrandbits(32)
    seed = int(chosen)
    print(f"seed: repeat with --seed {seed}")
    return random.Random(seed)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine function under Trio, on the clock among its fixtures if there is one."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments: dict[str, Any] = {
        name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters
    }
    clock = next((value for value in arguments.values() if isinstance(value, trio.abc.Clock)), None)
    trio.run(partial(pyfuncitem.obj, **arguments), clock=clock)
    return True


@pytest.fixture(scope="session", autouse=True)
def _outside_the_sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("outside"))
    yield
    os.chdir(before)
