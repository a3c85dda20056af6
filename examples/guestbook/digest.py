"""The nightly job: writes what a day brought to a page of its own. Run again for the same day, it writes the same page."""

import datetime
import os
import sqlite3
from pathlib import Path

import database


def day_before(scheduled: str) -> datetime.date:
    """The day that the run is about: the one before its scheduled time, however late it runs."""
    return datetime.datetime.fromisoformat(scheduled.replace("Z", "+00:00")).date() - datetime.timedelta(days=1)


def write_digest(connection: sqlite3.Connection, day: datetime.date) -> Path:
    messages = connection.execute(
        "SELECT name, text FROM messages WHERE date(written_at) = ? ORDER BY id", (day.isoformat(),)
    ).fetchall()
    digest = database.path().with_name(f"digest-{day}.txt")
    unfinished = digest.with_suffix(".part")
    lines = [f"messages on {day}: {len(messages)}"] + [f"{message['name']}: {message['text']}" for message in messages]
    unfinished.write_text("\n".join(lines) + "\n")
    unfinished.replace(digest)  # at once: nobody sees half a page, and a run that is killed leaves none
    return digest


def main() -> None:
    now = datetime.datetime.now(datetime.timezone.utc).isoformat()
    day = day_before(os.environ.get("RUNG_JOB_SCHEDULED", now))
    connection = database.open_database()
    digest = write_digest(connection, day)
    connection.close()
    print(f"wrote {digest.name}: {digest.read_text().splitlines()[0]}")


if __name__ == "__main__":
    main()
