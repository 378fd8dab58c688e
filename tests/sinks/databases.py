"""The databases that transactional sinks write to, as tests see them: through their own drivers."""

import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager

import adbc_driver_postgresql.dbapi
import duckdb
import pyarrow as pa

from engine import sinks


class Sqlite:
    """``execute`` runs a statement of somebody else's, ``arrow`` reads, ``blocked`` keeps the sink out."""

    kind = "sqlite"
    module = "engine.sinks.sqlite_table"
    text = "TEXT"

    def __init__(self, directory):
        self.database = str(directory / "out.db")

    def sink(self, table="events", mode="error"):
        return sinks.sqlite(self.database, table=table, mode=mode)

    def execute(self, sql):
        with closing(sqlite3.connect(self.database)) as connection, connection:
            return connection.execute(sql).fetchall()

    def arrow(self, sql):
        with closing(sqlite3.connect(self.database)) as connection:
            cursor = connection.execute(sql)
            columns = list(zip(*cursor.fetchall(), strict=True))
            names = [part[0] for part in cursor.description]
        return pa.table({name: pa.array(values) for name, values in zip(names, columns, strict=False)})

    @contextmanager
    def blocked(self):
        with closing(sqlite3.connect(self.database, isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            yield


class Duckdb:
    kind = "duckdb"
    module = "engine.sinks.duckdb_table"
    text = "VARCHAR"

    def __init__(self, directory):
        self.database = str(directory / "out.duckdb")

    def sink(self, table="events", mode="error"):
        return sinks.duckdb(self.database, table=table, mode=mode)

    def execute(self, sql):
        with duckdb.connect(self.database) as connection:
            return connection.execute(sql).fetchall()

    def arrow(self, sql):
        with duckdb.connect(self.database) as connection:
            return connection.sql(sql).to_arrow_table()

    @contextmanager
    def blocked(self):
        program = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('held', flush=True); input()"
        holder = subprocess.Popen(
            [sys.executable, "-c", program, self.database], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with holder:
            assert holder.stdout.readline() == b"held\n"
            yield
            holder.communicate(b"\n")


class Postgres:
    kind = "postgres"
    module = "engine.sinks.postgres_table"
    text = "text"

    def __init__(self, server, name):
        """A schema of its own: it takes no time, where a database would take half a second."""
        self.database = server.uri(schema=name)
        self._server = server
        self._schema = name
        self.execute(f"CREATE SCHEMA {name}")

    def sink(self, table="events", mode="error"):
        return sinks.postgres(self.database, table=table, mode=mode)

    def execute(self, sql):
        with self._cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def arrow(self, sql):
        with self._cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetch_arrow_table()

    @contextmanager
    def _cursor(self):
        with self._server.connection().cursor() as cursor:
            cursor.execute(f"SET search_path TO {self._schema}")
            yield cursor

    @contextmanager
    def blocked(self):
        with closing(adbc_driver_postgresql.dbapi.connect(self.database)) as connection:
            with connection.cursor() as cursor:
                cursor.execute("LOCK TABLE engine_commits IN ACCESS EXCLUSIVE MODE")
            yield


def marks(database):
    """The rows of ``engine_commits``: (incarnation, sink, epoch)."""
    return sorted(database.execute("SELECT incarnation, sink, epoch FROM engine_commits"))


def ids(database, table="events"):
    """The ids in the order in which they were inserted."""
    return [row[0] for row in database.execute(f'SELECT id FROM "{table}"')]
