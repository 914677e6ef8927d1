"""A stand-in for Kaggle on this machine, which answers what the real client asks of api.kaggle.com.

The client asks http://localhost:7777 with KAGGLE_API_ENVIRONMENT=TEST. Processes that test at the same time take turns.
"""

from __future__ import annotations

import contextlib
import email.utils
import fcntl
import json
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PORT = 7777
NOON = datetime(2026, 3, 5, 12, tzinfo=UTC)


class Kaggle:
    """What the stand-in knows, and how it is to behave.

    submissions: as it lists them, the newest first. pending: how often a new one is listed without a score; scores: its
    scores then. archive: what is downloaded; cut: after so many bytes the line breaks, once; direct: no redirect.
    left: what it says of the tries that are left today; None: it does not know the question. fails: by a
    question's name, or "*" for all, (status, body): text, or what is made JSON. asked: the names of all questions.
    """

    def __init__(self) -> None:
        self.now = NOON
        self.submissions: list[dict[str, Any]] = []
        self.pending, self.left = 0, None
        self.scores = {"publicScore": "0.875"}
        self.end = "COMPLETE"
        self.fails: dict[str, tuple[int, Any]] = {}
        self.asked: list[str] = []
        self.signed: set[str] = set()
        self.files: list[bytes] = []
        self.archive, self.cut, self.direct = b"", 0, False

    def answer(self, question: str, asked: dict[str, Any], signature: str) -> tuple[int, Any]:
        """(status, body) of a question of the client's."""
        self.asked.append(question)
        self.signed.add(signature)
        known = self.fails.get(question, self.fails.get("*"))
        if known:
            return known
        return 200, getattr(self, f"_{question}")(asked)

    def _IntrospectToken(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"active": True, "username": "somebody"} if asked["token"].startswith("good") else {}

    def _StartSubmissionUpload(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"token": "a-blob", "createUrl": f"http://localhost:{PORT}/store/a-blob?signature=secret"}

    def _CreateSubmission(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert asked["blobFileTokens"] == "a-blob"
        self.add(description=asked.get("submissionDescription", ""), looks=self.pending)
        return {"message": "Successfully submitted", "ref": self.submissions[0]["ref"]}

    def add(self, description: str = "", looks: int = 0, status: str = "PENDING", **known: Any) -> None:
        """One more submission, made now."""
        self.submissions.insert(0, {
            "ref": 100 + len(self.submissions), "date": self.now.strftime("%Y-%m-%dT%H:%M:%S.123Z"), "status": status,
            "fileName": "tiny.csv", "description": description, "looks": looks, **known,
        })  # fmt: skip

    def _ListSubmissions(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert asked["competitionName"] == "whales", asked
        page, size = asked.get("page", 1), asked["pageSize"]
        for one in self.submissions:
            if one["status"] == "PENDING":
                one["looks"] -= 1
                if one["looks"] < 0:
                    one |= {"status": self.end, **(self.scores if self.end == "COMPLETE" else {})}
        shown = [{k: v for k, v in one.items() if k != "looks"} for one in self.submissions]
        return {"submissions": shown[(page - 1) * size : page * size]}

    def _GetSubmissionLimits(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"numToday": len(self.submissions), "numTotal": 1 + len(self.submissions), "numAllowedNow": self.left}


class Handler(BaseHTTPRequestHandler):
    """HTTP around ``Kaggle``, which the server holds."""

    server: Any

    def date_time_string(self, timestamp: float | None = None) -> str:
        return email.utils.format_datetime(self.server.kaggle.now, usegmt=True)

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        kaggle, question = self.server.kaggle, self.path.rpartition("/")[2]
        asked = json.loads(self._body() or b"{}")
        if question == "DownloadDataFiles" and "*" not in kaggle.fails and question not in kaggle.fails:
            kaggle.asked.append(question)
            if kaggle.direct:
                self._send(200, kaggle.archive)
                return
            self._send(302, b"", Location=f"http://localhost:{PORT}/store/{asked['competitionName']}.zip?signature=x")
            return
        if question == "GetSubmissionLimits" and kaggle.left is None:
            status, body = 404, {"code": 404, "message": "no such question"}
        else:
            status, body = kaggle.answer(question, asked, self.headers.get("Authorization", ""))
        if callable(body):
            body = body(self.headers)
        text = body if isinstance(body, str) else json.dumps(body)
        self._send(status, text.encode(), **{"Content-Type": "application/json"})

    def do_PUT(self) -> None:
        self.server.kaggle.asked.append("PUT")
        self.server.kaggle.files.append(self._body())
        self._send(self.server.kaggle.fails.get("PUT", (200, ""))[0], b"")

    def do_GET(self) -> None:
        kaggle, begin = self.server.kaggle, 0
        if span := self.headers.get("Range"):
            begin = int(span.removeprefix("bytes=").partition("-")[0])
        kaggle.asked.append(f"GET {self.path.partition('?')[0]} {begin}")
        body = kaggle.archive[begin:]
        self.send_response(206 if span else 200)
        for name, value in (
            ("Content-Length", str(len(body))), ("Accept-Ranges", "bytes"), ("ETag", '"1"'),
            ("Last-Modified", "Thu, 05 Mar 2026 09:00:00 GMT"),
        ):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: kaggle.cut or None])
        kaggle.cut = 0
        self.close_connection = True

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            found = b""
            while count := int(self.rfile.readline(), 16):
                found += self.rfile.read(count)
                self.rfile.readline()
            self.rfile.readline()
            return found
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def serve() -> Iterator[Kaggle]:
    """The stand-in at work; OSError where something else holds the port."""
    with (Path(tempfile.gettempdir()) / f"pipeline-stub-{PORT}.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        server: Any = ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
        server.kaggle, server.daemon_threads = Kaggle(), True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server.kaggle
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
