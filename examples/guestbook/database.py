"""The database: one SQLite file on the volume, shared by every instance and the worker."""

import os
import sqlite3
import threading
from pathlib import Path

# Each entry is one step of the schema. Never change one that was released: add the next.
# The old release serves while a step runs, so a step must leave it working.
MIGRATIONS = [
    """
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        text TEXT NOT NULL,
        written_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
    );
    """,
    """
    ALTER TABLE messages ADD COLUMN words INTEGER;
    CREATE INDEX messages_uncounted ON messages (id) WHERE words IS NULL;
    CREATE TABLE words (word TEXT PRIMARY KEY, uses INTEGER NOT NULL);
    """,
]

_of_thread = threading.local()


def path() -> Path:
    """Where the volume is. Outside Rung: the working directory."""
    return Path(os.environ.get("RUNG_VOLUME_DATA", ".")) / "guestbook.db"


def open_database() -> sqlite3.Connection:
    """A new connection. Write-ahead logging lets readers go on while somebody writes."""
    connection = sqlite3.connect(path(), timeout=10, isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def connection() -> sqlite3.Connection:
    """The calling thread's connection: SQLite's connections do not like to be shared."""
    if not hasattr(_of_thread, "connection"):
        _of_thread.connection = open_database()
    return _of_thread.connection


def close() -> None:
    """Closes the calling thread's connection, if it has one."""
    if hasattr(_of_thread, "connection"):
        _of_thread.connection.close()
        del _of_thread.connection


def migrate(database: sqlite3.Connection) -> list[int]:
    """Brings the schema up to date and answers with the steps that were taken. Running it again does nothing."""
    database.execute("CREATE TABLE IF NOT EXISTS migrations (step INTEGER PRIMARY KEY, at TEXT DEFAULT CURRENT_TIMESTAMP)")
    taken = []
    for step, statements in enumerate(MIGRATIONS, start=1):
        database.execute("BEGIN IMMEDIATE")  # holds off a second migrate that was started by mistake
        try:
            if database.execute("SELECT 1 FROM migrations WHERE step = ?", (step,)).fetchone() is None:
                for statement in filter(str.strip, statements.split(";")):
                    database.execute(statement)
                database.execute("INSERT INTO migrations (step) VALUES (?)", (step,))
                taken.append(step)
            database.execute("COMMIT")
        except BaseException:
            database.execute("ROLLBACK")
            raise
    return taken


def add_message(database: sqlite3.Connection, name: str, text: str) -> int:
    return database.execute("INSERT INTO messages (name, text) VALUES (?, ?)", (name, text)).lastrowid


def newest_messages(database: sqlite3.Connection, limit: int = 50) -> list[sqlite3.Row]:
    return database.execute("SELECT * FROM messages ORDER BY id DESC LIMIT ?", (limit,)).fetchall()


def favourite_words(database: sqlite3.Connection, limit: int = 12) -> list[sqlite3.Row]:
    return database.execute("SELECT * FROM words ORDER BY uses DESC, word LIMIT ?", (limit,)).fetchall()
