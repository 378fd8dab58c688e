"""``module:name``: what is found, and what is said where nothing is."""

import sys
import textwrap

import pytest

from engine.cli.reference import BadReferenceError, load_pipeline
from engine.errors import PipelineError
from engine.pipeline import Pipeline


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """A working directory whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))


def refusal(reference):
    with pytest.raises(BadReferenceError) as caught:
        load_pipeline(reference)
    return str(caught.value)


JOBS = """
    import engine.pipeline
    pipeline = engine.pipeline.Pipeline("orders")
    def make():
        return pipeline
    def needs(path):
        return pipeline
    def forgets():
        pass
    class Jobs:
        nightly = pipeline
    text = "orders"
"""


@pytest.mark.parametrize("name", ["pipeline", "make", "Jobs.nightly"])
def test_a_value_a_function_and_an_attribute_of_one(directory, name):
    write(directory / "house_jobs.py", JOBS)
    found = load_pipeline(f"house_jobs:{name}")
    assert isinstance(found, Pipeline)
    assert found.name == "orders"


def test_a_module_in_a_package(directory):
    write(directory / "house_package" / "nightly.py", JOBS)
    assert load_pipeline("house_package.nightly:pipeline").name == "orders"


@pytest.mark.parametrize("reference", ["house_jobs", "house_jobs:", ":pipeline", ""])
def test_a_reference_has_two_parts(directory, reference):
    assert refusal(reference).startswith('expected module:name, such as "jobs:pipeline", found')


def test_a_file_is_not_a_module(directory):
    assert 'did you mean "jobs:pipeline"?' in refusal("jobs.py")
    assert 'did you mean "nightly.jobs:build"?' in refusal("nightly/jobs.py:build")


def test_no_such_module(directory):
    write(directory / "house_jobs.py", JOBS)
    message = refusal("house_job:pipeline")
    assert message.startswith(f'no module "house_job" in {directory}')
    assert 'did you mean "house_jobs"?' in message
    assert refusal("house_missing.nightly:pipeline").startswith('no module "house_missing"')


def test_no_such_name(directory):
    write(directory / "house_jobs.py", JOBS)
    message = refusal("house_jobs:pipelin")
    assert message.startswith('module "house_jobs" has no "pipelin"; did you mean "pipeline"?')
    assert "(its pipelines: pipeline)" in message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("text", "is a str, not a Pipeline"),
        ("forgets", "is a NoneType, not a Pipeline"),
        ("needs", "cannot be called without arguments: missing a required argument: 'path'"),
    ],
)
def test_not_a_pipeline(directory, name, reason):
    write(directory / "house_jobs.py", JOBS)
    assert reason in refusal(f"house_jobs:{name}")


def test_what_the_module_raises_passes_through(directory):
    write(directory / "house_broken.py", "import house_missing_dependency\n")
    with pytest.raises(ModuleNotFoundError, match="house_missing_dependency"):
        load_pipeline("house_broken:pipeline")


def test_an_error_of_ours_names_the_line(directory):
    text = 'from engine.pipeline import Pipeline\ndef build():\n    return Pipeline("no/name")\npipeline = build()\n'
    write(directory / "house_jobs.py", text)
    with pytest.raises(PipelineError) as caught:
        load_pipeline("house_jobs:pipeline")
    assert caught.value.__notes__ == [f"  {directory / 'house_jobs.py'}:3, while loading house_jobs:pipeline"]
