"""``check_sink``: our own sinks keep every law, and for each law there is a sink that breaks it and is found out."""

import json
import os

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from engine import Log
from engine.errors import SinkError
from engine.sink import Guarantee
from engine.sinks import arrow_ipc, call, log, parquet
from engine.testing import check_sink

NOTHING = pa.table({"number": pa.array([], pa.int64()), "text": pa.array([], pa.utf8())})


def read_directory(path, form):
    """What a reader of a directory of files finds, in the order of their names."""
    if not path.exists():
        return NOTHING
    files = sorted(str(file) for file in path.rglob(f"*.{form}"))
    return ds.dataset(files, format=form).to_table() if files else NOTHING


@pytest.mark.parametrize("mode", ["error", "append"])
@pytest.mark.parametrize(("make", "form"), [(parquet, "parquet"), (arrow_ipc, "arrow")])
def test_our_sinks_of_files(tmp_path, make, form, mode):
    target = tmp_path / "out"
    opened = []

    def make_sink():
        opened.append(make(target, mode=mode))
        return opened[-1]

    check_sink(
        make_sink,
        read_rows=lambda: read_directory(target, form),
        staged=lambda: [name for name in os.listdir(tmp_path) if name != "out"],
        shared=mode == "append",
        interruptions=8,
    )
    # Two instances for each interruption, beside 18 and more of the other laws: all of them were tried.
    assert len(opened) > 32


def test_our_sink_of_files_with_directories_by_a_column(tmp_path):
    target = tmp_path / "out"

    def read():
        files = sorted(target.rglob("*.parquet")) if target.exists() else []
        if not files:
            return NOTHING
        partitioning = ds.partitioning(pa.schema({"odd": pa.int64()}), flavor="hive")
        return ds.dataset([str(f) for f in files], partitioning=partitioning, partition_base_dir=str(target)).to_table()

    def rows(numbers):
        return pa.record_batch({"number": list(numbers), "odd": [number % 2 for number in numbers]})

    # A reader finds the rows of one directory behind each other, not those of one partition.
    check_sink(
        lambda: parquet(target, partition_by="odd"), read_rows=read, make_rows=rows, ordered=False, interruptions=8
    )


def test_our_sink_of_a_log(tmp_path):
    target = tmp_path / "log"

    def read():
        if not (target / "LOG").exists():
            return NOTHING
        with Log(target, write=False) as log:
            return pa.Table.from_batches(
                [rows for part in range(3) for rows in log.read(partition=part)], NOTHING.schema
            )

    check_sink(
        lambda: log(target),
        read_rows=read,
        staged=lambda: os.listdir(target / "staging") if (target / "staging").exists() else [],
        interruptions=8,
    )


def test_our_function_sink():
    seen = [NOTHING]

    def take(rows, token):
        seen.append(pa.table(rows))

    check_sink(lambda: call(take), read_rows=lambda: pa.concat_tables(seen))
    assert len(seen) > 30


def test_a_function_sink_that_drops_batches():
    seen = [NOTHING]

    def take(rows, token):
        if rows.num_rows != 3:
            seen.append(pa.table(rows))

    with pytest.raises(AssertionError, match=r"call.* breaks the law that commit makes the prepared rows visible"):
        check_sink(lambda: call(take), read_rows=lambda: pa.concat_tables(seen))


class Shelf:
    """A small sink that keeps all laws: a file for each partition and epoch, moved from one directory to another.

    ``fault`` is the one thing that it does wrong.
    """

    guarantee = Guarantee.EXACTLY_ONCE

    def __init__(self, path, fault):
        self.staging, self.public, self.fault = path / "staging", path / "public", fault
        self.memory = {}
        self.number = len(self.names(path)) if fault == "name" else 0
        (path / f"made-{self.number}").touch() if fault == "name" else None

    @property
    def name(self):
        return f"shelf {self.number}"

    @staticmethod
    def names(path):
        return sorted(os.listdir(path)) if path.exists() else []

    def open(self, schema, *, token, partitions, memory_bytes):
        if self.fault == "cannot be opened":
            raise SinkError("the key of the shelf is gone")
        if self.fault == "cannot be opened again" and self.names(self.public):
            raise KeyError("0-0-x")
        if self.fault == "open publishes":
            self.put(self.public / "0-0-x", token, [{"number": -1, "text": "hello"}])
        for name in self.names(self.public):
            mark = json.loads((self.public / name).read_text())
            if mark["incarnation"] != token.incarnation:
                if self.fault == "owner":
                    continue
                if self.fault == "refuses and cleans up":
                    (self.public / name).unlink()
                raise (OSError if self.fault == "refuses strangely" else SinkError)("of another incarnation")
            if mark["epoch"] > token.epoch and self.fault != "ahead":
                raise SinkError("ahead")
        self.staging.mkdir(parents=True, exist_ok=True)
        self.public.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def put(path, token, rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"incarnation": token.incarnation, "epoch": token.epoch, "rows": rows}))

    def writer(self, partition, token):
        return ShelfWriter(self, partition, token)

    def commit(self, handles):
        if not handles and self.fault == "needs a handle":
            raise ValueError("nothing to commit")
        for handle in handles[1:] if self.fault == "loses a partition" else handles:
            self.publish(self.memory[handle] if self.fault == "remembers" else handle)

    def publish(self, name):
        staged, public = self.staging / name, self.public / name
        if self.fault == "appends again":
            public = public.with_name(f"{name}-{len(self.names(self.public))}")
            public.write_text(staged.read_text())
        elif self.fault == "complains again":
            os.rename(staged, public)
        elif self.fault == "removes first":
            if staged.exists():
                text = staged.read_text()
                os.unlink(staged)
                public.write_text(text)
        elif self.fault == "copies under a new name":
            if staged.exists():
                os.link(staged, self.public / f"{name}-{len(self.names(self.public))}")
                os.unlink(staged)
        elif self.fault == "chokes on what it left":
            if staged.exists():
                public.touch()
                public.write_text(staged.read_text())
                os.unlink(staged)
        elif staged.exists():
            os.rename(staged, public)
        elif not public.exists():
            raise SinkError(f"{name} is gone")

    def discard_after(self, token):
        for name in self.names(self.staging):
            epoch = int(name.split("-")[0])
            if self.fault != "discards nothing" and (epoch > token.epoch or self.fault == "discards all"):
                (self.staging / name).unlink()
        if self.fault == "discards the published":
            for name in self.names(self.public)[-1:]:
                (self.public / name).unlink()


class ShelfWriter:
    def __init__(self, shelf, partition, token):
        self.shelf, self.token, self.rows, self.aborted = shelf, token, [], False
        self.file = f"{token.epoch:05}-{partition}"

    def write(self, rows, *, origin):
        self.rows += rows.to_pylist()
        if self.shelf.fault == "visible when written":
            self.shelf.put(self.shelf.public / self.file, self.token, self.rows)

    def prepare(self):
        fault = self.shelf.fault
        if not self.rows and fault == "needs rows":
            raise ValueError("there are no rows")
        if not self.rows and fault == "makes a row":
            self.rows = [{"number": -1, "text": "nothing came"}]
        rows = self.rows[::-1] if fault == "backwards" else self.rows
        where = self.shelf.public if fault == "visible when prepared" else self.shelf.staging
        self.shelf.put(where / self.file, self.token, rows)
        self.shelf.memory[len(self.shelf.memory)] = self.file
        if fault == "remembers":
            return len(self.shelf.memory) - 1
        return {self.file} if fault == "gives a set" else self.file

    def abort(self):
        if self.shelf.fault == "aborts once" and self.aborted:
            raise RuntimeError("aborted twice")
        self.aborted = True
        if self.shelf.fault == "aborts what is prepared":
            (self.shelf.staging / self.file).unlink(missing_ok=True)
        if self.shelf.fault == "aborts into the open":
            self.shelf.put(self.shelf.public / self.file, self.token, self.rows)


def check_shelf(tmp_path, fault):
    public = tmp_path / "public"

    def read():
        rows = [row for name in Shelf.names(public) for row in json.loads((public / name).read_text())["rows"]]
        return pa.Table.from_pylist(rows, NOTHING.schema)

    check_sink(lambda: Shelf(tmp_path, fault), read_rows=read, staged=lambda: Shelf.names(tmp_path / "staging"))


def test_a_sink_that_keeps_all_laws(tmp_path):
    check_shelf(tmp_path, None)


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("name", "its name is stable"),
        ("cannot be opened", "open takes an empty target, and one that its own incarnation left, wherever that ended"),
        (
            "cannot be opened again",
            "open takes an empty target, and one that its own incarnation left, wherever that ended",
        ),
        (
            "chokes on what it left",
            "open takes an empty target, and one that its own incarnation left, wherever that ended",
        ),
        ("open publishes", "nothing is visible before commit"),
        ("visible when written", "nothing is visible before commit"),
        ("visible when prepared", "nothing is visible before commit"),
        ("loses a partition", "commit makes the prepared rows visible, all of them and no others"),
        ("appends again", "commit is idempotent"),
        ("complains again", "commit is idempotent"),
        ("remembers", "a handle is JSON and alone suffices to publish, in another process"),
        ("gives a set", "a handle is JSON and alone suffices to publish, in another process"),
        ("removes first", "a commit that was interrupted is completed by its repetition"),
        ("copies under a new name", "a commit that was interrupted is completed by its repetition"),
        ("discards nothing", "discard_after removes what later epochs staged"),
        ("discards all", "discard_after removes nothing of earlier epochs, and nothing that was published"),
        ("discards the published", "discard_after removes nothing of earlier epochs, and nothing that was published"),
        ("aborts once", "abort is harmless, after prepare too and when repeated"),
        ("aborts what is prepared", "abort is harmless, after prepare too and when repeated"),
        ("aborts into the open", "abort is harmless, after prepare too and when repeated"),
        ("needs a handle", "an epoch without rows publishes nothing"),
        ("needs rows", "an epoch without rows publishes nothing"),
        ("makes a row", "an epoch without rows publishes nothing"),
        ("backwards", "the rows of a partition keep their order"),
        ("owner", "a target that belongs to another incarnation is refused, and stays as it is"),
        ("refuses strangely", "a target that belongs to another incarnation is refused, and stays as it is"),
        ("refuses and cleans up", "a target that belongs to another incarnation is refused, and stays as it is"),
        ("ahead", "a target that is ahead of the last commit is refused, and stays as it is"),
    ],
)
def test_a_broken_sink_is_told_its_law(tmp_path, fault, law):
    with pytest.raises(AssertionError) as caught:
        check_shelf(tmp_path, fault)
    first, second = str(caught.value).split("\n")[:2]
    assert first.startswith("shelf ")
    assert first.endswith(f"breaks the law that {law}:")
    assert len(second) > 20


def test_what_open_raised_is_told_with_what_came_before(tmp_path):
    with pytest.raises(AssertionError, match="open of an empty target raised SinkError: the key of the shelf is gone"):
        check_shelf(tmp_path / "one", "cannot be opened")
    with pytest.raises(AssertionError, match=r"open after the commit of epoch \d+ raised KeyError: '0-0-x'"):
        check_shelf(tmp_path / "two", "cannot be opened again")
    with pytest.raises(AssertionError, match=r"epoch \d+, interrupted at its call \d+ of \d+, raised JSONDecodeError"):
        check_shelf(tmp_path / "three", "chokes on what it left")


def test_interruptions_are_not_fewer_than_none(tmp_path):
    with pytest.raises(ValueError, match="interruptions is -1; it must be at least 0"):
        check_sink(lambda: Shelf(tmp_path, None), read_rows=lambda: NOTHING, interruptions=-1)


def test_a_target_must_be_empty(tmp_path):
    check_shelf(tmp_path, None)
    with pytest.raises(AssertionError, match="needs an empty target"):
        check_shelf(tmp_path, None)
