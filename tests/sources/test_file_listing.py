"""Which files a path stands for, their names and order, and what covers an output directory."""

import os
from pathlib import Path

import pytest

from engine.errors import InputError, PipelineError, SourceError
from engine.sources import file_listing, parquet
from engine.sources.file_listing import FileSet, edge_checksum, identity_of


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"12345")


def names(path: object) -> list[str]:
    return [file.name for file in FileSet.of(path, (".dat",)).files()]  # type: ignore[arg-type]


def test_a_directory_is_read_with_all_below_it(tmp_path: Path) -> None:
    touch(tmp_path, "b.dat", "a/z.dat", "a/c/d.dat", ".hidden.dat", "_tmp/x.dat", "a/.x/y.dat", "a/_y.dat", "c.txt")
    assert names(tmp_path) == ["a/c/d.dat", "a/z.dat", "b.dat"]
    assert names(f"{tmp_path}//") == ["a/c/d.dat", "a/z.dat", "b.dat"]


def test_a_file_that_is_named_needs_no_extension(tmp_path: Path) -> None:
    touch(tmp_path, "_a", "b.dat")
    assert names(tmp_path / "_a") == ["_a"]
    assert names([tmp_path / "_a", tmp_path / "b.dat", str(tmp_path)]) == ["_a", "b.dat"]


def test_patterns(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.dat", "a/2.txt", "b/1.dat", "b/_3.dat", "b/x/4.dat")
    assert names(f"{tmp_path}/*/*.dat") == ["a/1.dat", "b/1.dat"]
    assert names(f"{tmp_path}/*/*.txt") == ["a/2.txt"]
    assert names(f"{tmp_path}/*") == ["a/1.dat", "b/1.dat", "b/x/4.dat"]
    assert names(f"{tmp_path}/**/*.dat") == ["a/1.dat", "b/1.dat", "b/x/4.dat"]
    assert names(f"{tmp_path}/b/**") == ["1.dat", "x/4.dat"]
    assert names(f"{tmp_path}/[a]/?.dat") == ["a/1.dat"]


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path: Path) -> None:
    touch(tmp_path, "[a]/1.dat", "a/2.dat")
    assert names(tmp_path / "[a]") == ["1.dat"]


def test_names_are_relative_to_what_several_paths_share(tmp_path: Path) -> None:
    touch(tmp_path, "x/1.dat", "y/1.dat")
    assert names([tmp_path / "y", tmp_path / "x"]) == ["x/1.dat", "y/1.dat"]


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    touch(tmp_path, os.fsdecode(b"\xff.dat"))
    file = FileSet.of(tmp_path, (".dat",)).files()[0]
    assert file.name == "\\xff.dat"
    file.location.encode()


def test_what_is_no_path() -> None:
    for path in (7, b"x", "", "a\0b", [], [7], {"a"}, None):
        with pytest.raises(PipelineError, match=r"expected (a|at least one) path"):
            FileSet.of(path, (".dat",))  # type: ignore[arg-type]


def test_names_of_sources() -> None:
    assert parquet("in/").name == "parquet(in)"
    assert parquet(["a", "b"]).name == "parquet(a, b)"
    many, others = parquet(["a", "b", "c", "d"]).name, parquet(["a", "b", "c", "e"]).name
    assert many.startswith("parquet(a, b, … 4 paths #")
    assert many != others


def test_a_directory_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> list[str]:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(file_listing, "list_files", refuse)
    with pytest.raises(SourceError, match="cannot be listed: Permission denied") as caught:
        FileSet.of(tmp_path, (".dat",)).files()
    assert isinstance(caught.value.__cause__, PermissionError)
    monkeypatch.undo()
    with pytest.raises(InputError, match="does not exist"):
        FileSet.of(tmp_path / "gone", (".dat",)).files()


@pytest.mark.parametrize(
    ("path", "directory", "covered"),
    [
        ("in", "in", True),
        ("in", "in/out", True),
        ("in", "in/a/b", True),
        ("in", "in/_out", False),
        ("in", "in/.out/x", False),
        ("in", "out", False),
        ("in", "inside", False),
        ("in/a", ".", True),
        ("in/*.dat", "in", True),
        ("in/*.dat", "in/out", False),
        ("in/*", "in/out", True),
        ("in/**/*.dat", "in/out", True),
        ("in/*/*.dat", "in/out", True),
        ("in/*/*/*.dat", "in/out", True),
        ("in/*/*.dat", "in/a/b", False),
        ("in/day*/*.dat", "in/out", False),
        ("in/*.other", "in", False),
        ("in/file.dat", "in", True),
        ("in/file.dat", "in/out", False),
    ],
)
def test_an_output_directory_that_would_be_input(
    path: str, directory: str, covered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "in/file.dat", "in/a/file.dat")
    assert FileSet.of(path, (".dat",)).covers(directory) is covered
    assert FileSet.of(tmp_path / path, (".dat",)).covers(directory) is covered


def test_the_checksum_covers_head_and_tail(tmp_path: Path) -> None:
    path = tmp_path / "a.dat"
    content = bytearray(os.urandom(1000)) + bytes(200_000)
    seen = set()
    for place in (None, 0, 65_535, 200_999, 200_999 - 65_535):
        changed = bytearray(content)
        if place is not None:
            changed[place] ^= 1
        path.write_bytes(changed)
        seen.add(identity_of(FileSet.of(path, (".dat",)).files()[0], edge_checksum).checksum)
    assert len(seen) == 5
