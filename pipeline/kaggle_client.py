"""Kaggle through its own client: submissions with their scores, and a competition's data.

The client is imported only when it is asked something. What it prints and raises may repeat a credential, or an address
that opens a file; none of that leaves this module unless it was cleaned, and no traceback is chained to it.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import functools
import importlib
import importlib.metadata
import importlib.util
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any

from pipeline import console
from pipeline.config import Config
from pipeline.errors import UserError

SITE = "https://www.kaggle.com"
INSTALL = ".venv/bin/pip install -c constraints.txt 'kaggle<2.2.5' six"  # 2.2.4 imports six, but does not ask for it
OLDEST = 2  # the client's version
PAGE, PAGES = 100, 50  # submissions a page of the list, and most pages
SILENCE = 60.0  # seconds without a word from the server that end a request
MEGABYTE = 10**6
LONGEST_REMARK = 240  # characters of the server's own words in a message
NETWORK = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "Timeout", "ProxyError", "SSLError")


@dataclass(frozen=True)
class Submitted:
    """A submission as Kaggle lists it. date: UTC, ISO, to the second; status: pending, complete or error."""

    ref: int
    date: str
    file: str
    message: str
    status: str
    public: float | None
    private: float | None
    error: str


def slug_of(config: Config) -> str:
    """What Kaggle calls the competition in its addresses: kaggle.slug, else the competition's name."""
    slug = config.kaggle.slug or config.competition
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", slug):
        raise UserError(
            f"kaggle.slug={slug}, but a competition's name in Kaggle's addresses has letters, digits and hyphens; copy "
            f"it from {SITE}/competitions/SLUG, and set kaggle.slug in configs/competition/{config.competition}.yaml"
        )
    return slug


def check_installed() -> None:
    """UserError, with the command that installs it, where the client is missing, or older than its questions here."""
    if missing := [name for name in ("kaggle", "six") if not importlib.util.find_spec(name)]:
        raise UserError(f"this needs Kaggle's client, but {' and '.join(missing)} is not installed; run {INSTALL}")
    version = importlib.metadata.version("kaggle")
    if int(version.partition(".")[0]) < OLDEST:
        raise UserError(
            f"this needs Kaggle's client from version {OLDEST} on, but {version} is installed; run {INSTALL}"
        )


def connect() -> Client:
    """The client, signed in; UserError where it is not installed, or finds no credentials that are valid."""
    check_installed()
    words = Words()
    with _translated(words):
        try:
            api = _directed(_library(), importlib.import_module("kagglesdk").KaggleClient)()
            api._load_config()
            words.learn(api)  # a refusal may repeat what it refuses
            api.authenticate()
        except (SystemExit, OSError) as fault:
            if type(fault).__name__ in NETWORK or getattr(fault, "response", None) is not None:
                raise
            raise UserError(
                f"Kaggle wants credentials, and there are none that are valid; make a token at {SITE}/settings/api, "
                "and save it as ~/.kaggle/access_token, or set KAGGLE_API_TOKEN (or KAGGLE_USERNAME and KAGGLE_KEY)"
            ) from None
    words.learn(api)
    return Client(api, words)


def _library() -> Any:
    """The client's class. Imported, it signs in by itself, at the production server in any case: not here."""
    sdk = importlib.import_module("kagglesdk")
    client, sdk.KaggleClient = sdk.KaggleClient, None  # type: ignore[attr-defined]
    try:
        library = importlib.import_module("kaggle.api.kaggle_api_extended")
    finally:
        sdk.KaggleClient = client  # type: ignore[attr-defined]
    library.KaggleClient = client  # type: ignore[attr-defined]
    return library.KaggleApi


def _directed(base: Any, client: Any) -> Any:
    """The client's class, speaking to the server that KAGGLE_API_ENVIRONMENT names, and never aloud.

    Version 2.2.4 asks for the production server whatever that variable says, and with VERBOSE=1 prints its headers,
    the credentials among them.
    """
    environment = importlib.import_module("kagglesdk.kaggle_env")

    class Directed(base):  # type: ignore[misc]
        date = ""  # of the server's last answer, as it writes it

        def build_kaggle_client(self) -> Any:
            made = client(
                env=environment.get_env(), verbose=False, username=self.config_values.get(self.CONFIG_NAME_USER),
                password=self.config_values.get(self.CONFIG_NAME_KEY),
                api_token=self.config_values.get(self.CONFIG_NAME_TOKEN), response_processor=self.note,
            )  # fmt: skip
            http = made.http_client()
            http.__enter__()
            http._session.send = functools.partial(_send, http._session.send)
            return made

        def note(self, response: Any) -> None:
            self.date = response.headers.get("Date", "")

        def download_file(self, response: Any, *arguments: Any, **settings: Any) -> None:
            pieces, size = response.iter_content, int(response.headers.get("Content-Length") or 0)
            with console.progress("downloading, MB", size // MEGABYTE) as advance:
                response.iter_content = lambda count: _counted(pieces(count), advance)
                super().download_file(response, *arguments, **settings)

    return Directed


def _send(send: Callable[..., Any], request: Any, **settings: Any) -> Any:
    """Send with a limit, where the client would wait for ever; a refusal that is no JSON shows its status."""
    response = send(request, **{**settings, "timeout": SILENCE})
    if response.status_code >= 400 and not _answered(response)[1]:
        response.raise_for_status()
    return response


def _counted(pieces: Iterator[bytes], advance: Callable[..., None]) -> Iterator[bytes]:
    """The pieces, each told to a bar that counts megabytes."""
    done = 0
    for piece in pieces:
        before, done = done, done + len(piece)
        advance(done // MEGABYTE - before // MEGABYTE)
        yield piece


class Client:
    """What the stages ask of Kaggle. Each question raises UserError, with the next move, where no answer comes."""

    def __init__(self, api: Any, words: Words) -> None:
        self._api, self._words = api, words

    @property
    def today(self) -> str:
        """The date in UTC by the server's clock, ISO; empty before its first answer."""
        if not self._api.date:
            return ""
        return email.utils.parsedate_to_datetime(self._api.date).astimezone(UTC).date().isoformat()

    def submissions(self, slug: str) -> list[Submitted]:
        """All submissions of the user and the team, the newest first."""
        found: dict[int, Submitted] = {}
        for page in range(1, PAGES + 1):
            with _translated(self._words, slug):
                listed = self._api.competition_submissions(slug, page_number=page, page_size=PAGE) or []
                fresh = {one.ref: _submitted(one) for one in listed if one and one.ref not in found}
            found |= fresh
            if len(fresh) < PAGE:
                break
        return list(found.values())

    def left_today(self, slug: str) -> int | None:
        """How many more submissions Kaggle takes today; None where it does not say."""
        try:
            with _translated(self._words, slug):
                limits = self._api.competition_get_submission_limits(slug)
                known = limits.num_today or limits.num_total or limits.num_allowed_now  # all 0: in no team yet
                return int(limits.num_allowed_now) if known else None
        except UserError:
            return None  # what is really wrong shows at the next question

    def submit(self, slug: str, path: Path, message: str) -> int:
        """Upload a csv and submit it; its reference, or 0 where Kaggle did not say it."""
        with _translated(self._words, slug):
            answer = self._api.competition_submit(str(path), message, slug, quiet=True)
            if answer.message == self._api.COMPETITION_SUBMIT_UPLOAD_FAILED_MESSAGE:
                raise UserError(
                    "Kaggle's store did not take the file, so that nothing was submitted; see to the network, then run "
                    "the same command again"
                )
            return int(answer.ref or 0)

    def download(self, slug: str, folder: Path) -> None:
        """Fetch a competition's files as one archive into folder; goes on with what an interrupted call left there."""
        with _translated(self._words, slug, quiet=False):
            self._api.competition_download_files(slug, str(folder), quiet=True)


def _submitted(one: Any) -> Submitted:
    date = one.date.replace(tzinfo=None).isoformat(timespec="seconds") + "Z" if one.date else ""
    status = str(getattr(one.status, "name", one.status)).lower()
    scores = (_number(one.public_score), _number(one.private_score))
    return Submitted(int(one.ref), date, one.file_name, one.description, status, *scores, one.error_description)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


# --- what goes wrong, in words that hold no secret ----------------------------------------------------------------


class Words:
    """Cleans texts of the client and the server of the credentials in use."""

    def __init__(self) -> None:
        self.secrets: set[str] = set()

    def learn(self, api: Any) -> None:
        """Remember the credentials that the client may use, wherever it has them from."""
        values = {str(name).lower(): str(value) for name, value in api.config_values.items()}
        names = ("key", "token", "api_token", "password", "api_v1_token")
        found = {values[name] for name in names if values.get(name)}
        found |= {value for name, value in os.environ.items() if name.startswith("KAGGLE_") and _is_secret(name)}
        found |= {text for place in (*_kept(), Path(api.config)) for text in _texts(place)}
        user = values.get("username", "")
        found |= {base64.b64encode(f"{user}:{secret}".encode()).decode() for secret in found}
        self.secrets = {secret for secret in found if len(secret) >= 4}

    def clean(self, text: str) -> str:
        """One line of a text, short, without credentials and without what follows ? in an address."""
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        text = re.sub(r"(?i)\b(basic|bearer)\s+\S+", r"\1 ***", text)
        text = re.sub(r"(https?://[^\s?]+)\?\S+", r"\1", text)
        text = " ".join(text.split())
        return text if len(text) <= LONGEST_REMARK else text[:LONGEST_REMARK] + " …"


def _is_secret(name: str) -> bool:
    return name.endswith(("KEY", "TOKEN", "PASSWORD"))


def _kept() -> list[Path]:
    """The files in which the client keeps credentials."""
    home = Path("~/.kaggle").expanduser()
    places = [home / name for name in ("kaggle.json", "access_token", "access_token.txt", "credentials.json")]
    named = [os.environ.get(name, "") for name in ("KAGGLE_API_TOKEN", "KAGGLE_API_V1_TOKEN")]
    return places + [Path(name) for name in named if name]


def _texts(place: Path) -> list[str]:
    """The secrets in such a file: the values under telling names of a JSON, or the whole text."""
    try:
        text = place.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return []
    try:
        content = json.loads(text)
    except ValueError:
        return [text]
    held = content.items() if isinstance(content, dict) else ()
    return [value for name, value in held if isinstance(value, str) and name.endswith(("key", "token"))]


@contextlib.contextmanager
def _translated(words: Words, slug: str = "", quiet: bool = True) -> Iterator[None]:
    """Whatever the client raises becomes a UserError in clean words; what it prints meanwhile is dropped.

    quiet: false lets prints through, where a bar is drawn and the client has been told to be quiet itself.
    """
    with contextlib.ExitStack() as stack:
        if quiet:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        try:
            yield
        except UserError:
            raise
        except (Exception, SystemExit) as fault:
            told = _explained(fault, words, slug)
        else:
            return
    raise UserError(told) from None  # no traceback shows what the client said


def _explained(fault: BaseException, words: Words, slug: str) -> str:
    """What happened, and the next move."""
    response = getattr(fault, "response", None)
    status, remark = _answered(response)
    remark = words.clean(remark)
    told = f"; it says: {remark}" if remark else ""
    if status:
        return f"Kaggle answers {status}{told}; {_next_move(status, remark, slug)}"
    if isinstance(fault, ImportError):
        return f"Kaggle's client cannot be imported: {words.clean(str(fault))}; run {INSTALL}"
    if type(fault).__name__ in NETWORK or isinstance(fault, (ConnectionError, TimeoutError)):
        return (
            "Kaggle cannot be reached; see to the network (in a notebook of Kaggle's turn Internet on), then run the "
            "same command again"
        )
    if isinstance(fault, OSError) and fault.strerror:
        return f"the files cannot be written or read: {fault.strerror}; see to that, then run the same command again"
    return (
        f"Kaggle's answer cannot be understood ({type(fault).__name__}); run the same command again later. If it "
        f"stays, try {SITE} in a browser"
    )


def _answered(response: Any) -> tuple[int, str]:
    """The status of a refusal and the server's own words; 0 where there was no answer, or none that refuses."""
    status = int(getattr(response, "status_code", 0) or 0)
    try:
        body = response.json()
    except Exception:  # none, or no JSON: a page of HTML helps nobody
        body = None
    body = body if isinstance(body, dict) else {}
    code = body.get("code")
    status = code if isinstance(code, int) and 400 <= code < 600 else status
    return (status if status >= 400 else 0), str(body.get("message") or "")


def _next_move(status: int, remark: str, slug: str) -> str:
    page, again = f"{SITE}/competitions/{slug}" if slug else SITE, "then run the same command again"
    if re.search(r"(?i)notebook|kernel|code competition", remark):
        return (
            "this competition takes notebooks, not files: ./run.sh stage=package makes one, with what it needs beside "
            f"it; submit it at {page}/code"
        )
    if status == 401:
        return f"the credentials are not valid (any more): make a new token at {SITE}/settings/api, {again}"
    if status == 403:
        return f"accept the competition's rules at {page}/rules, and see that the token is yours, {again}"
    if status == 404:
        return f"there is no competition {slug!r} for you: set kaggle.slug to the name in its address"
    if status == 429:
        return f"too many requests or submissions for now: wait, {again}"
    if status >= 500:
        return "the trouble is Kaggle's: run the same command again later; what was done is kept"
    return f"see {page}, {again}"
