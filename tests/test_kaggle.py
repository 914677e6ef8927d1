"""Kaggle through its own client, against a stand-in on this machine: uploads, scores, limits, no secret anywhere."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import kaggle_stub
import numpy as np
import pandas as pd
import pytest
import small_competition
from conftest import Project, Result
from kaggle_stub import Kaggle

from pipeline import artefacts, kaggle_client, leaderboard, uploads
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
    assert json.loads(csv.with_suffix(".json").read_text())["public"] == 0.875
    assert record["cv"] == {"value": 0.5, "se": 0.0, "kind": "OOF", "metric": "accuracy()"}
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
    monkeypatch.setattr(kaggle_client.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(kaggle_client.importlib.metadata, "version", lambda name: "1.7.4.5")
    refused(whales.run(*SUBMIT), "from version 2 on, but 1.7.4.5 is installed", "pip install")
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
        (
            "CreateSubmission",
            (400, {"code": 400, "message": "Submit a Notebook"}),
            ["takes notebooks", "stage=package", "whales/code"],
        ),
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


# --- side by side -------------------------------------------------------------------------------------------------


def submission(project: Project, name: str, labels: str, value: float, se: float | None = 0.01, **more: object) -> None:
    """A submission on disk, as stage=submit leaves it; public: of an upload of it."""
    path = project.root / f"submissions/whales/{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    small_competition.table(path, "id,label", zip(small_competition.TEST_IDS, labels.split(), strict=True))
    cv = {"value": value, "se": se, "kind": "OOF", "metric": "accuracy()"}
    facts = {"metric": "accuracy()", "source": name, "cv": cv, "members": [f"{name}/fold0"]}
    upload = {"csv": artefacts.file_digest(path), "slug": "whales", "message": name, "cv": cv, "status": "complete"}
    uploaded = {"uploads": [{**upload, "date": "2026-03-01T00:00:00Z", "private": None, **more}]} if more else {}
    path.with_suffix(".json").write_text(json.dumps({**facts, **uploaded}))


def test_submissions_are_listed_and_two_proposed_without_a_network(whales: Project, monkeypatch) -> None:
    monkeypatch.setattr(kaggle_client, "connect", lambda: pytest.fail("asked"))
    submission(whales, "best", "cat dog owl cat", 0.90, 0.02, ref=1, public=0.85)
    submission(whales, "near", "cat dog owl dog", 0.89, ref=2, public=0.84)
    submission(whales, "unlike", "cat cat cat cat", 0.885)
    submission(whales, "bad", "owl owl owl owl", 0.5, ref=3, public=0.6, private=0.55)
    submission(whales, "part", "dog cat dog owl", 0.95)
    part = whales.root / "submissions/whales/part.json"
    part.write_text(part.read_text().replace('"OOF"', '"OOF, partial: fold 0"'))
    result = whales.run("stage=leaderboard", "kaggle.refresh=never")
    assert result.code == 0, result.err
    rows = [line.split("  ")[0] for line in result.out.splitlines()[2:7]]
    assert rows == ["best", "near", "unlike", "bad", "part"], "the best CV first, what is not comparable last"
    assert "0.9000 ± 0.0200 OOF" in result.out
    assert "-0.0500" in result.out, "public − CV"
    assert "correlation of CV and public score: 1.00 (of ranks 1.00) over 3 submissions" in result.out
    assert "1. best: the best CV" in result.out
    assert "2. unlike (not uploaded yet: ./run.sh stage=submit source=unlike upload=true" in result.out
    assert "of 2 within one standard error (0.0200) of it the one that differs most" in result.out
    assert "difference 0.5000" in result.out


def test_a_lone_good_submission_has_the_next_beside_it_with_a_warning(whales: Project) -> None:
    submission(whales, "best", "cat dog owl cat", 0.9, None)
    result = whales.run("stage=leaderboard", "kaggle.refresh=never")
    assert "2. there is no other submission" in result.out
    submission(whales, "same", "cat dog owl cat", 0.9)
    assert "2. there is no other submission" in whales.run("stage=leaderboard", "kaggle.refresh=never").out, "same rows"
    submission(whales, "next", "cat dog owl dog", 0.8)
    result = whales.run("stage=leaderboard", "kaggle.refresh=never")
    assert "2. next (not uploaded" in result.out
    assert "none is within one standard error (0.0000)" in result.out
    assert "none of 0 submissions with both (it takes 3)" in result.out


def test_less_is_better_where_the_metric_says_so(whales: Project) -> None:
    for name, value in (("high", 0.9), ("low", 0.1)):
        submission(whales, name, "cat dog owl cat" if name == "low" else "cat dog owl dog", value)
        path = whales.root / f"submissions/whales/{name}.json"
        path.write_text(path.read_text().replace("accuracy()", "log_loss()"))
    result = whales.run("stage=leaderboard", "kaggle.refresh=never", "metric=log_loss()")
    assert "1. low" in result.out
    assert "no submission has a CV of this metric" in whales.run("stage=leaderboard", "kaggle.refresh=never").out


def test_nothing_to_list_is_told(whales: Project) -> None:
    refused(whales.run("stage=leaderboard", "kaggle.refresh=never"), "holds no submission", "stage=submit")


def test_unlike_submissions() -> None:
    ids = {"id": ["1", "2", "3", "4"]}
    falling, rising = ["0.1", "0.2", "0.3", "0.5"], ["0.5", "0.3", "0.2", "0.1"]

    def unlike(one: dict, other: dict) -> float:
        return leaderboard.difference(pd.DataFrame(ids | one), pd.DataFrame(ids | other))

    assert unlike({"a": falling}, {"a": falling}) == pytest.approx(0)
    assert unlike({"a": falling}, {"a": rising}) == pytest.approx(1 - np.corrcoef([1, 2, 3, 5], [5, 3, 2, 1])[0, 1])
    assert unlike({"a": list("1234")}, {"a": list("1235")}) == 0.25, "whole numbers are names"
    assert unlike({"a": ["x y"] * 4}, {"a": ["x y", "y x"] * 2}) == 0.5
    assert unlike({"a": ["0.5"] * 4}, {"a": falling}) == 1
    objects = [pd.DataFrame({"id": names, "rle": ["1 2"] * len(names)}) for names in (["1", "1", "2"], ["1", "2"])]
    assert leaderboard.difference(*objects) == 0.5, "an image with another number of objects"


@needs_client
def test_the_leaderboard_asks_for_scores_that_were_pending(whales: Project, kaggle: Kaggle) -> None:
    kaggle.pending = 1
    whales.run(*SUBMIT, "kaggle.wait=0")
    kaggle.scores = {"publicScore": "0.75", "privateScore": "0.25"}
    kaggle.add("by hand", status="COMPLETE", publicScore="0.5")
    assert "no score yet" in whales.run("stage=leaderboard", "kaggle.refresh=never").out
    result = whales.run("stage=leaderboard")
    assert result.code == 0, result.err
    assert (records(whales)[0]["public"], records(whales)[0]["private"]) == (0.75, 0.25)
    assert "tiny.csv (made elsewhere)" in result.out
    kaggle.fails["*"] = (500, "")
    result = whales.run("stage=leaderboard")
    assert result.code == 0, "it works from what is recorded"
    assert "Kaggle is not asked, and scores are those recorded before: Kaggle answers 500" in result.out
    refused(whales.run("stage=leaderboard", "kaggle.refresh=always"), "Kaggle answers 500")


# --- data ---------------------------------------------------------------------------------------------------------


def zipped(files: dict[str, bytes], link: str = "") -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as content:
        for name, body in files.items():
            content.writestr(name, body)
        if link:
            entry = zipfile.ZipInfo(link)
            entry.external_attr = 0o120777 << 16
            content.writestr(entry, "/etc/passwd")
    return packed.getvalue()


DOWNLOAD = ("stage=download", "competition=humpbacks")
FILES = {"train.csv": b"id,label\n", "train_images/a.png": b"\x89PNG" * 9000, "empty.txt": b""}


@needs_client
def test_a_competition_is_downloaded_whole_once(whales: Project, kaggle: Kaggle) -> None:
    kaggle.archive = zipped(FILES)
    result = whales.run(*DOWNLOAD)
    assert result.code == 0, result.err
    folder = whales.root / "data/humpbacks"
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert "next: ./run.sh stage=new name=humpbacks data=data/humpbacks" in result.out
    assert "GET /store/humpbacks.zip 0" in kaggle.asked
    left = {path.name for path in (whales.root / "data").iterdir()} - {"whales", "humpbacks"}
    assert left == {".humpbacks.download.json", ".humpbacks.step.lock"}
    count = len(kaggle.asked)
    assert "unpacked before" in whales.run(*DOWNLOAD).out
    assert len(kaggle.asked) == count
    refused(whales.run(*DOWNLOAD, "kaggle.slug=other"), "holds humpbacks, not other")
    kaggle.archive, kaggle.direct = zipped({"new.csv": b""}), True
    assert whales.run(*DOWNLOAD, "overwrite=true").code == 0
    assert [path.name for path in folder.iterdir()] == ["new.csv"]


@needs_client
def test_a_download_that_was_cut_short_goes_on(whales: Project, kaggle: Kaggle, monkeypatch) -> None:
    body = bytes(range(256)) * 12_000
    kaggle.archive, kaggle.cut = zipped({"big.bin": body}), 2_500_000

    def die(*_: object) -> None:  # the client would go on by itself after a pause
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(uploads.time, "sleep", die)
        assert whales.run(*DOWNLOAD).code == 130
    assert not (whales.root / "data/humpbacks").exists()
    assert whales.run(*DOWNLOAD).code == 0
    begun = int(kaggle.asked[-1].removeprefix("GET /store/humpbacks.zip "))
    assert 1_000_000 < begun <= 2_500_000, "only what was missing"
    assert (whales.root / "data/humpbacks/big.bin").read_bytes() == body


@needs_client
@pytest.mark.parametrize(
    ("archive", "words"),
    [
        (zipped({"../../configs/x.yaml": b"", "a": b""}), ["lead out of their folder: ../../configs/x.yaml"]),
        (zipped({"/tmp/x": b""}), ["/tmp/x"]),
        (zipped({"a": b""}, link="passwd"), ["passwd", "nothing was unpacked"]),
        (zipped(FILES)[:-30], ["no whole zip", "was deleted"]),
        (zipped(FILES).replace(b"id,label\n", b"id,babel\n"), ["no whole zip", "Bad CRC"]),
    ],
)
def test_an_archive_that_is_not_right_writes_nothing(whales: Project, kaggle: Kaggle, archive, words) -> None:
    kaggle.archive = archive
    before = {path for path in whales.root.rglob("*") if ".humpbacks" not in str(path)}
    refused(whales.run(*DOWNLOAD), *words)
    after = {path for path in whales.root.rglob("*") if ".humpbacks" not in str(path) and "runs" not in path.parts}
    assert after <= before
    kaggle.archive = zipped(FILES)
    assert "no whole zip" not in words or whales.run(*DOWNLOAD).code == 0, "it was deleted, and is fetched anew"


@needs_client
def test_rules_that_were_not_accepted_have_an_address(whales: Project, kaggle: Kaggle) -> None:
    kaggle.fails["DownloadDataFiles"] = (403, {"code": 403, "message": "You must accept this competition's rules"})
    refused(whales.run(*DOWNLOAD), "https://www.kaggle.com/competitions/humpbacks/rules", "must accept")


def test_a_download_is_asked_for_by_name_and_replaces_nothing_of_yours(whales: Project) -> None:
    refused(whales.run("stage=download"), "needs the competition")
    refused(whales.run("stage=download", "competition=../x"), "competition='../x'")
    refused(whales.run("stage=download", "competition=whales"), "stage=download did not make it")
    refused(whales.run("stage=download", "competition=whales", "overwrite=true"), "move it away")


# --- secrets ------------------------------------------------------------------------------------------------------

REPEATS = (403, lambda headers: {"code": 403, "message": f"who is {headers['Authorization']}? {KEY}"})
FAILURES = {
    "none": {}, "401": {"*": (401, {"code": 401, "message": KEY})}, "403": {"*": REPEATS}, "429": {"*": (429, KEY)},
    "500": {"*": (500, f"<html>{KEY}")}, "no JSON": {"*": (200, f"{{{KEY}")}, "store": {"PUT": (400, KEY)},
}  # fmt: skip
STAGES = [SUBMIT, ("stage=leaderboard", "kaggle.refresh=always"), ("stage=download", "competition=humpbacks")]


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
    told, kaggle.archive = "", zipped({"train.csv": b"id"})
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
    assert whales.run("stage=submit", "source=tiny").code == 0
    for words in STAGES:
        result = whales.run(*words, "debug=true")
        refused(result, "Kaggle cannot be reached")
        assert KEY not in result.out + result.err
    assert holding(whales.root) == []
