"""Counts the words of new messages, one message a transaction: killed at any moment, it loses and doubles nothing."""

import re
import signal
import sqlite3
import threading

import database

WORD = re.compile(r"[^\W\d_]{3,}")


def count_one(connection: sqlite3.Connection) -> int | None:
    """Counts the oldest uncounted message and answers with its id; None when there is none."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        message = connection.execute("SELECT id, text FROM messages WHERE words IS NULL ORDER BY id LIMIT 1").fetchone()
        if message is not None:
            words = WORD.findall(message["text"].lower())
            connection.executemany(
                "INSERT INTO words VALUES (?, 1) ON CONFLICT (word) DO UPDATE SET uses = uses + 1",
                [(word,) for word in words],
            )
            connection.execute("UPDATE messages SET words = ? WHERE id = ?", (len(words), message["id"]))
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    return message["id"] if message is not None else None


def main() -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    connection = database.open_database()
    print("waiting for messages", flush=True)
    while not stop.is_set():
        try:
            message = count_one(connection)
        except sqlite3.OperationalError as busy:
            print(f"will try again: {busy}", flush=True)
            message = None
        if message is None:
            stop.wait(1)
        else:
            print(f"counted the words of message {message}", flush=True)
    connection.close()
    print("stopped", flush=True)


if __name__ == "__main__":
    main()
