"""The table ``engine_commits`` in the database: up to which epoch the rows of a pipeline are in a table.

    incarnation   sink (the table)   epoch   term
    5be1…         orders                12   9a70…         one row for each pipeline that writes to the table

Laws
    - The mark moves in the transaction that inserts the rows: one is there if and only if the other is.
    - It moves from exactly the epoch that it was at when the rows were prepared. Where it is elsewhere, nothing is
      inserted and nothing is skipped: the same epoch and term mean that it was done, all else is an error.
    - A table belongs to the incarnation that made it, and to those that were told to append.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import SinkError
from engine.progress import Epoch, Token
from engine.sinks.segments import Newest
from engine.sinks.sql_target import Column, RefusedError, Session, Target, quoted

__all__ = ["MARKS", "CommitMarks", "Mark"]

MARKS = "engine_commits"
COLUMNS = ("incarnation", "sink", "epoch", "term")
BACKUP = "bring back the newest"
ANEW = "begin anew with another state= and another table"


@dataclass(frozen=True, slots=True)
class Mark:
    """Up to where rows are in the table, and by which start of the pipeline."""

    epoch: Epoch
    term: str


class CommitMarks:
    """The marks of one table; each call happens in a transaction of the caller's."""

    def __init__(self, target: Target, table: str, *, sink: str, writer: str, shared: bool) -> None:
        self._target = target
        self._table = table
        self._sink = sink
        self._writer = writer
        self._shared = shared
        self._key = target.identity(table)
        self._where = f"{target.label}, table {table}"

    # -- open --

    def claim(self, session: Session, columns: Sequence[Column], last: Token, newest: Newest) -> tuple[Mark, list[str]]:
        """Make or take the table: the mark, and columns of the table that allow no nulls.

        Raises SinkError unless the table is ours, and as far as the commit ``last``, or free to take.
        """
        session.lock_marks()
        marks = self._read(session)
        ours = marks.pop(last.incarnation, None)
        self._check_mark(ours, last, newest)
        found = session.columns(self._table)
        if found is None:
            if ours is not None and ours.epoch:
                raise self._error(f"the table is gone; rows up to epoch {ours.epoch} were committed to it", BACKUP)
            self._make(session, columns, last.incarnation)
            required: list[str] = []
        else:
            if ours is None and not self._shared:
                raise self._foreign(marks)
            required = self._fit(session, columns, found)
        if ours is None:
            ours = Mark(0, last.term)
            self._make_marks(session)
            marks_table = session.qualified(MARKS)
            session.execute(f"INSERT INTO {marks_table} VALUES (?, ?, ?, ?)", last.incarnation, self._key, 0, ours.term)
        return ours, required

    def _check_mark(self, ours: Mark | None, last: Token, newest: Newest) -> None:
        if ours is None:
            if last.epoch:
                raise self._error(
                    f"the database has no mark of {self._writer}, which has committed up to epoch {last.epoch}", BACKUP
                )
        elif ours.epoch > last.epoch:
            raise self._error(
                f"the database is at epoch {ours.epoch}, ahead of epoch {last.epoch}, the last that the state "
                "directory knows: that is older than the database",
                "bring back the newest state directory",
            )
        elif ours.epoch and ours.epoch == last.epoch and ours.term != last.term:
            raise self._error(
                f"epoch {ours.epoch} was committed by another start of {self._writer} ({ours.term}, not {last.term}): "
                "there are two copies of the state directory",
                "go on with the one that wrote last",
            )
        elif ours.epoch > newest.epoch:
            raise self._error(
                f"the database is at epoch {ours.epoch}; the segments below the state directory end at epoch "
                f"{newest.epoch}: some were taken away",
                "bring back the whole state directory",
            )
        elif ours.epoch < newest.epoch and not (newest.whole and newest.epoch == last.epoch):
            raise self.behind(ours.epoch, newest.epoch)

    def behind(self, found: Epoch, expected: Epoch) -> SinkError:
        """The error for a database that lost commits."""
        return self._error(
            f"the database is at epoch {found}; {self._writer} has committed up to epoch {expected}: the database is "
            "older than the state directory",
            BACKUP,
        )

    def _foreign(self, others: Mapping[str, Mark]) -> SinkError:
        if others:
            incarnation, mark = next(iter(others.items()))
            return self._error(
                f"the table belongs to another incarnation ({incarnation}, at epoch {mark.epoch})",
                "choose another table, or bring back its state directory. Where several pipelines shall write to it: "
                f'sinks.{self._target.kind}(..., mode="append")',
            )
        return self._error(
            f"there is a table that {self._writer} did not make",
            f'choose another one, or sinks.{self._target.kind}(..., mode="append")',
        )

    def _fit(self, session: Session, columns: Sequence[Column], found: Any) -> list[str]:
        there = {self._target.identity(column.name): column for column in found}
        problems: list[str] = []
        required: list[str] = []
        for column in columns:
            match = there.pop(self._target.identity(column.name), None)
            if match is None:
                problems.append(f'the table has no column "{column.name}"')
            elif not session.same_type(column.sql_type, match.sql_type):
                problems.append(f'column "{column.name}" is {match.sql_type}; {column.sql_type} is needed')
            elif match.not_null:
                required.append(column.name)
        problems += [
            f'the rows have no column "{column.name}", which allows no nulls and has no default'
            for column in there.values()
            if column.not_null and not column.has_default
        ]
        if problems:
            raise self._error(f"the table does not fit: {'; '.join(problems)}", "change the table or the rows")
        return required

    # -- commit --

    def advance(self, session: Session, token: Token, after: Epoch) -> bool:
        """Move the mark from ``after`` to ``token``; False where it is there. SinkError where it is elsewhere."""
        marks = session.qualified(MARKS)
        moved = session.update(
            f"UPDATE {marks} SET epoch = ?, term = ? WHERE incarnation = ? AND sink = ? AND epoch = ?",
            *(token.epoch, token.term, token.incarnation, self._key, after),
        )
        if moved:
            return True
        found = self._read(session).get(token.incarnation)
        if found == Mark(token.epoch, token.term):
            return False
        expected = f"epoch {after} was expected, to commit epoch {token.epoch}"
        if found is None:
            raise self._error(f"the mark of {self._writer} is gone; {expected}", BACKUP)
        if found.epoch < token.epoch:
            raise self._error(
                f"the database is at epoch {found.epoch}; {expected}: something else moved it",
                "look who writes under a copy of the state directory",
            )
        raise self._error(
            f"the database is at epoch {found.epoch} of start {found.term}; {expected} of start {token.term}: it is "
            "ahead, and the state directory older than the database",
            "bring back the newest state directory",
        )

    # -- statements --

    def _read(self, session: Session) -> dict[str, Mark]:
        found = session.columns(MARKS)
        if found is None:
            return {}
        if {column.name for column in found} != set(COLUMNS):
            raise RefusedError(f"the table {MARKS} has other columns than {', '.join(COLUMNS)}; it is not engine's")
        rows = session.execute(
            f"SELECT incarnation, epoch, term FROM {session.qualified(MARKS)} WHERE sink = ?", self._key
        )
        return {incarnation: Mark(int(epoch), term) for incarnation, epoch, term in rows}

    def _make_marks(self, session: Session) -> None:
        session.execute(
            f"CREATE TABLE IF NOT EXISTS {session.qualified(MARKS)} (incarnation TEXT NOT NULL, sink TEXT NOT NULL, "
            "epoch BIGINT NOT NULL, term TEXT NOT NULL, PRIMARY KEY (incarnation, sink))"
        )

    def _make(self, session: Session, columns: Sequence[Column], incarnation: str) -> None:
        listed = ", ".join(f"{quoted(column.name)} {column.sql_type}" for column in columns)
        session.execute(f"CREATE TABLE {session.qualified(self._table)} ({listed})")
        self._make_marks(session)
        # Whoever wrote to a table of that name before must not take this one for theirs.
        session.execute(
            f"DELETE FROM {session.qualified(MARKS)} WHERE sink = ? AND incarnation <> ?", self._key, incarnation
        )

    def _error(self, problem: str, advice: str) -> SinkError:
        if advice == BACKUP:
            advice = f"{BACKUP} database, or {ANEW}"
        return SinkError(
            f"{self._where}: {problem}.\n  Nothing was touched. {advice[0].upper()}{advice[1:]}.", sink=self._sink
        )
