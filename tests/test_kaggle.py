"""Kaggle through its own client, against a stand-in on this machine: uploads, scores, limits, no secret anywhere."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import kaggle_stub
import numpy as np
import pytest
import small_competition
from conftest import Project, Result
from kaggle_stub import Kaggle

from pipeline import kaggle_client, uploads
from pipeline.competition import load
from pipeline.folds import ensure_folds

KEY = "goodSECRETkeyDEADBEEF0123456789"
LACKS = [name for name in ("kaggle", "six") if importlib.util.find_spec(name) is None]
needs_client = pytest.mark.skipif(bool(LACKS), reason=f"{LACKS} not installed")
SUBMIT = ("stage=submit", "source=tiny", "upload=true")


@pytest.fixture
def whales(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A competition with the predictions of the run tiny, and nobody's credentials but a user's of the stand-in."""
    small_competition.write(project.root)
    asked = small_competition.config()
    ensure_folds(asked, load(asked))
    small_competition.predict(asked, "tiny", np.eye(3, dtype=np.float32)[[1, 2, 0, 1]], right=0.5)
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(project.root / "home"))
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")
    monkeypatch.setenv("KAGGLE_USERNAME", "somebody")
    monkeypatch.setenv("KAGGLE_KEY", KEY)
    return project


@pytest.fixture
def kaggle(whales: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kaggle]:
    """The stand-in; pauses between two looks take no time."""
    monkeypatch.setattr(uploads.time, "sleep", lambda seconds: None)
    try:
        with kaggle_stub.serve() as stub:
            yield stub
    except OSError as fault:
        pytest.skip(f"port {kaggle_stub.PORT} is taken: {fault}")


def records(project: Project, name: str = "tiny") -> list[dict]:
    return json.loads((project.root / f"submissions/whales/{name}.json").read_text())["uploads"]


def refused(result: Result, *words: str) -> None:
    assert result.code == 2, result
    assert not [word for word in words if word not in result.err], result.err
    assert result.err.count("error:") == 1


# --- uploads ------------------------------------------------------------------------------------------------------


@needs_client
def test_a_submission_is_uploaded_and_its_score_recorded(whales: Project, kaggle: Kaggle) -> None:
    kaggle.pending = 3
    result = whales.run(*SUBMIT)
    assert result.code == 0, result.err
    csv = whales.root / "submissions/whales/tiny.csv"
    assert kaggle.files == [csv.read_bytes()]
    assert kaggle.signed == {"Basic " + base64.b64encode(f"somebody:{KEY}".encode()).decode()}
    assert kaggle.asked.count("ListSubmissions") == 5, "one for the limit, three without a score, one with it"
    (record,) = records(whales)
    assert (record["status"], record["public"], record["private"], record["ref"]) == ("complete", 0.875, None, 100)
    assert record["date"] == "2026-03-05T12:00:00Z"
    assert record["message"].startswith("tiny: 0.5000 ± 0.0000 OOF; tiny; ")
    assert kaggle.submissions[0]["description"] == record["message"]
    assert record["cv"] == {"value": 0.5, "se": 0.0, "kind": "OOF"}
    assert "Kaggle scores submissions/whales/tiny.csv: public 0.875" in result.out


@needs_client
def test_the_same_rows_are_not_uploaded_twice_by_mistake(whales: Project, kaggle: Kaggle) -> None:
    kaggle.scores = {"publicScore": "0.5", "privateScore": "0.25"}
    assert whales.run(*SUBMIT, "message=first: try").code == 0
    refused(whales.run(*SUBMIT), "was submitted before", "ref 100", "public 0.5", "overwrite=true")
    refused(whales.run(*SUBMIT, "submission=submissions/whales/copy.csv"), "as submissions/whales/tiny.csv")
    assert len(kaggle.submissions) == 1
    assert whales.run(*SUBMIT, "overwrite=true").code == 0
    assert records(whales)[0]["message"] == "first: try"
    assert [record["private"] for record in records(whales)] == [0.25, 0.25]


@needs_client
def test_other_rows_under_the_same_name_keep_what_is_known_of_the_old_ones(whales: Project, kaggle: Kaggle) -> None:
    whales.run(*SUBMIT)
    small_competition.predict(small_competition.config(), "tiny", np.eye(3, dtype=np.float32)[[0, 0, 0, 0]])
    assert whales.run("stage=submit", "source=tiny").code == 0
    assert [record["public"] for record in records(whales)] == [0.875]
    assert whales.run(*SUBMIT).code == 0
    assert len({record["csv"] for record in records(whales)}) == len(kaggle.submissions) == 2


@needs_client
@pytest.mark.parametrize(
    ("setting", "left", "earlier", "sent"),
    [
        ("kaggle.daily_limit=2", None, ["5T01:00", "5T02:00"], False),
        ("kaggle.daily_limit=2", None, ["4T23:59", "5T00:00"], True),
        ("kaggle.daily_limit=0", 0, ["5T01:00"], False),
        ("kaggle.daily_limit=0", 1, ["5T01:00"] * 4, True),
        ("kaggle.daily_limit=0", None, ["5T01:00"] * 9, True),
    ],
)
def test_a_day_whose_tries_are_used_up_is_no_day_to_upload(whales, kaggle, setting, left, earlier, sent) -> None:
    for moment in earlier:
        kaggle.add(status="COMPLETE", date=f"2026-03-0{moment}:00Z")
    kaggle.add(status="ERROR")  # costs none
    kaggle.left, before = left, len(kaggle.submissions)
    result = whales.run(*SUBMIT, setting)
    assert (len(kaggle.submissions) - before, len(kaggle.files)) == (sent, sent)
    if not sent:
        refused(result, "2026-03-05, UTC", "nothing was sent", "00:00 UTC")


@needs_client
def test_a_score_that_takes_long_is_no_error_and_the_same_command_waits_on(whales: Project, kaggle: Kaggle) -> None:
    kaggle.pending = 100
    result = whales.run(*SUBMIT, "kaggle.wait=7")
    assert result.code == 0, result.err
    assert "no score yet; ask later with ./run.sh stage=leaderboard competition=whales" in result.out
    assert records(whales)[0]["status"] == "pending"
    kaggle.submissions[0]["looks"] = 0
    result = whales.run(*SUBMIT)
    assert result.code == 0, result.err
    assert (len(kaggle.files), records(whales)[0]["public"]) == (1, 0.875)


@needs_client
def test_a_try_that_was_killed_is_found_again(whales: Project, kaggle: Kaggle, monkeypatch) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # after Kaggle has it, before we know
        patch.setattr(uploads, "_store", die)
        assert whales.run(*SUBMIT).code == 130
    assert records(whales)[0]["status"] == "sending"
    assert whales.run(*SUBMIT).code == 0
    assert (len(kaggle.submissions), records(whales)[0]["ref"]) == (1, 100)

    with monkeypatch.context() as patch:  # before Kaggle has it
        patch.setattr(kaggle_client.Client, "submit", die)
        assert whales.run(*SUBMIT, "overwrite=true").code == 130
    assert whales.run(*SUBMIT, "overwrite=true").code == 0
    assert [record["ref"] for record in records(whales)] == [100, 101]


@needs_client
def test_what_kaggle_cannot_score_is_told(whales: Project, kaggle: Kaggle) -> None:
    kaggle.end = "ERROR"
    kaggle.pending = 1
    refused(whales.run(*SUBMIT), "could not score submissions/whales/tiny.csv (ref 100)", "it does not say why")
    kaggle.end = "COMPLETE"
    assert whales.run(*SUBMIT).code == 0, "the same rows may be tried again"


@needs_client
def test_what_does_not_fit_the_sample_is_never_sent(whales: Project, kaggle: Kaggle) -> None:
    folder = whales.root / "submissions/whales"
    folder.mkdir(parents=True)
    for name in "ab":
        small_competition.table(folder / f"{name}.csv", "id,label", [("007", "cat")])
    refused(whales.run("stage=submit", "blend=a.csv,b.csv", "upload=true"), "does not fit the sample submission")
    assert kaggle.asked == []


# --- what is refused before any work ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["stage=all", "upload=true"], "upload=true goes with stage=submit"),
        (["stage=submit", "message=hello"], "add upload=true"),
        ([*SUBMIT, "kaggle.slug=a/b"], "kaggle.slug=a/b, but"),
        ([*SUBMIT, "kaggle.daily_limit=-1"], "kaggle.daily_limit must be ≥ 0"),
    ],
)
def test_arguments_are_checked_before_any_work(whales: Project, words: list[str], told: str) -> None:
    refused(whales.run(*words), told)
    assert not (whales.root / "submissions").exists()


def test_a_missing_client_is_told_with_the_command_that_installs_it(whales: Project, monkeypatch) -> None:
    monkeypatch.setattr(kaggle_client.importlib.util, "find_spec", lambda name: None)
    refused(whales.run(*SUBMIT), "kaggle and six is not installed", "pip install -c constraints.txt 'kaggle<2.2.5' six")
    assert not (whales.root / "submissions").exists()


@needs_client
def test_missing_credentials_are_told_with_the_way_to_get_them(whales: Project, kaggle: Kaggle, monkeypatch) -> None:
    monkeypatch.delenv("KAGGLE_KEY")
    refused(whales.run(*SUBMIT), "Kaggle wants credentials", "https://www.kaggle.com/settings/api", "access_token")
    monkeypatch.setenv("KAGGLE_API_TOKEN", "bad-token")
    result = whales.run(*SUBMIT)
    refused(result, "none that are valid")
    assert "Authentication required" not in result.out + result.err, "the client's own words"


@needs_client
@pytest.mark.parametrize(
    ("question", "answer", "words"),
    [
        ("ListSubmissions", (401, {"code": 401, "message": "no"}), ["answers 401", "make a new token"]),
        ("StartSubmissionUpload", (403, {"message": "no"}), ["https://www.kaggle.com/competitions/whales/rules"]),
        ("ListSubmissions", (404, "gone"), ["set kaggle.slug"]),
        ("CreateSubmission", (429, {}), ["wait"]),
        ("CreateSubmission", (500, "<html>"), ["answers 500", "run the same command again later"]),
        ("CreateSubmission", (400, {"code": 400, "message": "Submit a Notebook"}), ["takes notebooks", "whales/code"]),
        ("ListSubmissions", (200, "no json"), ["cannot be understood"]),
        ("PUT", (400, ""), ["store did not take the file"]),
    ],
)
def test_refusals_tell_the_next_move(whales: Project, kaggle: Kaggle, question, answer, words) -> None:
    kaggle.fails[question] = answer
    refused(whales.run(*SUBMIT), *words)
    assert not kaggle.submissions
    kaggle.fails.clear()
    assert whales.run(*SUBMIT).code == 0
    assert len(kaggle.submissions) == len(records(whales)) == 1


# --- secrets ------------------------------------------------------------------------------------------------------

REPEATS = (403, lambda headers: {"code": 403, "message": f"who is {headers['Authorization']}? {KEY}"})
FAILURES = {
    "none": {}, "401": {"*": (401, {"code": 401, "message": KEY})}, "403": {"*": REPEATS}, "429": {"*": (429, KEY)},
    "500": {"*": (500, f"<html>{KEY}")}, "no JSON": {"*": (200, f"{{{KEY}")}, "nonsense": {"*": (200, [KEY])},
    "store": {"PUT": (400, KEY)},
}  # fmt: skip
STAGES = [SUBMIT]


def give(project: Project, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Let the client find the secret there alone."""
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name, raising=False)
    if where == "kaggle.json":
        from kaggle.api.kaggle_api_extended import KaggleApi

        place = project.root.parent / "kaggle.json"
        place.write_text(json.dumps({"username": "somebody", "key": KEY}))
        monkeypatch.setattr(KaggleApi, "config", str(place))
    elif where == "token":
        monkeypatch.setenv("KAGGLE_API_TOKEN", KEY)
    else:
        monkeypatch.setenv("KAGGLE_USERNAME", "somebody")
        monkeypatch.setenv("KAGGLE_KEY", KEY)


def holding(root: Path) -> list[Path]:
    """The files below root with the secret, plain or as it travels."""
    marks = [KEY.encode(), base64.b64encode(f"somebody:{KEY}".encode())[:-4]]
    return [place for place in root.rglob("*") if place.is_file() and any(m in place.read_bytes() for m in marks)]


@needs_client
@pytest.mark.parametrize("where", ["KAGGLE_KEY", "token", "kaggle.json"])
def test_no_secret_comes_into_a_message_a_traceback_or_a_file(whales, kaggle, monkeypatch, caplog, where) -> None:
    give(whales, monkeypatch, where)
    monkeypatch.setenv("VERBOSE", "1")
    told = ""
    for fails in FAILURES.values():
        kaggle.fails = dict(fails)
        for words in STAGES:
            result = whales.run(*words, "debug=true", "overwrite=true")
            told += result.out + result.err
            assert result.code == (2 if fails and (words is SUBMIT or "PUT" not in fails) else 0), (fails, result)
    assert any(KEY in signature or len(signature) > 20 for signature in kaggle.signed), "it was in use"
    assert "Traceback" in told, "debug=true shows where"
    assert KEY not in told + caplog.text
    assert base64.b64encode(f"somebody:{KEY}".encode()).decode() not in told + caplog.text
    assert "signature" not in told
    assert holding(whales.root) == []


@needs_client
def test_no_secret_is_told_where_nobody_answers(whales: Project, kaggle: Kaggle, monkeypatch) -> None:
    environment = importlib.import_module("kagglesdk.kaggle_env")
    nowhere = {**environment._env_to_endpoint, environment.KaggleEnv.TEST: "http://localhost:9"}
    monkeypatch.setattr(environment, "_env_to_endpoint", nowhere)
    for words in STAGES:
        result = whales.run(*words, "debug=true")
        refused(result, "Kaggle cannot be reached")
        assert KEY not in result.out + result.err
    assert holding(whales.root) == []
