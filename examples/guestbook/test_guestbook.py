"""The deploy's gate: `[build] test` runs this before anything starts."""

import http.client
import os
import tempfile
import threading
import unittest
from urllib.parse import urlencode

import database
import digest
import web
import worker


class GuestbookTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        os.environ["RUNG_VOLUME_DATA"] = directory.name
        self.database = database.open_database()
        self.addCleanup(self.database.close)
        database.migrate(self.database)

    def serve(self) -> http.client.HTTPConnection:
        server = web.Guestbook(0)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.stop)
        client = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        self.addCleanup(client.close)
        return client

    def ask(self, client, method, path, form=None):
        client.request(method, path, urlencode(form) if form is not None else None)
        answer = client.getresponse()
        return answer.status, answer.read().decode()

    def test_migrating_twice_does_nothing_the_second_time(self):
        self.assertEqual(database.migrate(self.database), [])

    def test_a_message_is_shown_escaped_and_its_words_are_counted(self):
        client = self.serve()
        self.assertEqual(self.ask(client, "POST", "/", {"name": "<b>Ada</b>", "text": "hello & hello"})[0], 303)
        worker.count_one(self.database)
        status, page = self.ask(client, "GET", "/")
        self.assertEqual(status, 200)
        self.assertIn("&lt;b&gt;Ada&lt;/b&gt;", page)
        self.assertNotIn("<b>Ada", page)
        self.assertEqual(self.database.execute("SELECT uses FROM words WHERE word = 'hello'").fetchone()["uses"], 2)
        self.assertIsNone(worker.count_one(self.database))

    def test_the_digest_of_a_day_has_its_messages_and_is_the_same_when_it_runs_again(self):
        database.add_message(self.database, "Ada", "hello")
        self.database.execute("UPDATE messages SET written_at = '2026-03-04T23:59:59Z'")
        database.add_message(self.database, "Bob", "the day after")
        day = digest.day_before("2026-03-05T00:05:00Z")
        page = digest.write_digest(self.database, day)
        self.assertEqual(page.read_text(), "messages on 2026-03-04: 1\nAda: hello\n")
        self.assertEqual(digest.write_digest(self.database, day), page)
        self.assertEqual(page.read_text(), "messages on 2026-03-04: 1\nAda: hello\n")

    def test_an_empty_message_is_refused_and_what_was_written_is_kept(self):
        status, page = self.ask(self.serve(), "POST", "/", {"name": "Ada", "text": " "})
        self.assertEqual(status, 422)
        self.assertIn('value="Ada"', page)

    def test_a_huge_form_is_refused(self):
        status, _ = self.ask(self.serve(), "POST", "/", {"name": "Ada", "text": "x" * 20_000})
        self.assertEqual(status, 413)

    def test_it_says_when_it_is_up(self):
        self.assertEqual(self.ask(self.serve(), "GET", "/up"), (200, "up\n"))


if __name__ == "__main__":
    unittest.main()
