"""stage=adopt: predictions from elsewhere become a run like any other, or nothing is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_competition as small

from pipeline.artefacts import Predictions
from pipeline.competition import load
from pipeline.errors import UserError
from pipeline.folds import ensure_folds
from pipeline.runs import Run, predicted_runs
from pipeline.stages import adopt

COLUMNS = ["cat", "dog", "owl"]


@pytest.fixture
def root(project) -> Path:
    small.write(project.root)
    ensure_folds(small.config(), load(small.config()))
    return project.root


def values_of(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(3), size=rows)


def write_csv(path: Path, ids, values, columns=COLUMNS, key="id") -> None:
    order = [COLUMNS.index(name) for name in columns]
    rows = ((name, *(repr(float(v)) for v in row[order])) for name, row in zip(ids, values, strict=True))
    small.table(path, ",".join([key, *columns]), rows)


@pytest.fixture
def files(root) -> dict[str, np.ndarray]:
    """oof.csv in reversed order of rows and classes, test.csv in the plain one."""
    ids = load(small.config()).train["id"].to_numpy()
    oof, test = values_of(len(ids), 1), values_of(4, 2)
    write_csv(root / "oof.csv", ids[::-1], oof[::-1], COLUMNS[::-1])
    write_csv(root / "test.csv", small.TEST_IDS, test)
    return {"ids": ids, "oof": oof, "test": test}


def settings(**changes):
    return small.config(**{"run": "mate", "oof": "oof.csv", "test": "test.csv", **changes})


def test_csv_becomes_a_run(root, files, capsys):
    [outcome] = adopt.run(settings())
    run = Run(small.config(), "mate")
    np.testing.assert_allclose(run.oof().values, files["oof"], atol=1e-6)
    assert run.oof().ids.tolist() == files["ids"].tolist()
    assert [p.made_by["adopted"] for p in run.tests()] == [True, True]
    for member in run.tests():
        np.testing.assert_allclose(member.values, files["test"], atol=1e-6)
    share = (files["oof"].argmax(1) == np.arange(12) % 3).mean()
    assert outcome.score.startswith(f"{share:.4f} ± ")
    assert outcome.score.endswith(" OOF")
    assert outcome.score in capsys.readouterr().out
    assert [found.name for found in predicted_runs(small.config())] == ["mate"]


def test_npz_and_a_foreign_id_column(root, files):
    Predictions(files["ids"], files["oof"], "probability").save(root / "oof.npz")
    write_csv(root / "test.csv", small.TEST_IDS, files["test"], key="image")
    adopt.run(settings(oof=str(root / "oof.npz")))
    np.testing.assert_allclose(Run(small.config(), "mate").oof().values, files["oof"], atol=1e-6)


def test_again_is_reused_and_other_contents_need_overwrite(root, files):
    first = adopt.run(settings())[0]
    again = adopt.run(settings())[0]
    assert again.reused
    assert again.score == first.score
    write_csv(root / "test.csv", small.TEST_IDS, values_of(4, 3))
    before = {path: path.read_bytes() for path in (root / "runs").rglob("*.npz")}
    with pytest.raises(UserError, match=r"runs/whales/mate exists.*overwrite=true"):
        adopt.run(settings())
    assert before == {path: path.read_bytes() for path in (root / "runs").rglob("*.npz")}
    assert not adopt.run(settings(overwrite=True))[0].reused
    np.testing.assert_allclose(Run(small.config(), "mate").tests()[0].values, values_of(4, 3), atol=1e-6)


def test_a_trained_run_is_not_overwritten(root, files):
    small.predict(small.config(), "resnet18", values_of(4, 5))
    with pytest.raises(UserError, match="exists"):
        adopt.run(settings(run="resnet18"))


def spoil(root: Path, files: dict[str, np.ndarray], how: str) -> None:
    ids, oof = list(files["ids"]), files["oof"].copy()
    if how == "missing id":
        ids, oof = ids[1:], oof[1:]
    elif how == "extra id":
        ids, oof = [*ids, "xyz"], np.vstack([oof, oof[:1]])
    elif how == "duplicate id":
        ids[1] = ids[0]
    elif how == "not finite":
        oof[3, 0] = np.nan
    elif how == "out of range":
        oof[3] = [1.5, -0.25, -0.25]
    elif how == "sum":
        oof[3] *= 0.9
    write_csv(root / "oof.csv", ids, oof)
    text = (root / "oof.csv").read_text()
    changed = {"class": ("owl", "fish"), "text": ("\n003a,", "\n003a,oops"), "empty": (text, "")}
    if how in changed:
        (root / "oof.csv").write_text(text.replace(*changed[how]))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("missing id", "1 ids have no prediction: 000a"),
        ("extra id", "1 ids that the competition's table has not: xyz"),
        ("duplicate id", "duplicate ids: 000a"),
        ("not finite", "no finite number for ids 003a"),
        ("text", "no finite number for ids 003a"),
        ("out of range", "outside 0…1 for ids 003a"),
        ("sum", "do not sum to one for ids 003a"),
        ("class", "at odds: fish, owl"),
        ("empty", "is empty"),
    ],
)
def test_bad_input_writes_nothing(root, files, how, says):
    spoil(root, files, how)
    with pytest.raises(UserError, match=says):
        adopt.run(settings())
    assert not (root / "runs").exists()


def test_bad_test_file_writes_nothing_either(root, files):
    write_csv(root / "test.csv", small.TEST_IDS[:3], files["test"][:3])
    with pytest.raises(UserError, match=r"test\.csv: 1 ids have no prediction: 001"):
        adopt.run(settings())
    Predictions(small.TEST_IDS, files["test"][:, :2], "probability").save(root / "test.npz")
    with pytest.raises(UserError, match="2 columns for 3 classes"):
        adopt.run(settings(test="test.npz"))
    Predictions(small.TEST_IDS, files["test"], "logit").save(root / "test.npz")
    with pytest.raises(UserError, match="'logit'"):
        adopt.run(settings(test="test.npz"))
    assert not (root / "runs").exists()


def test_rounded_sums_are_scaled_with_a_warning(root, files, capsys):
    write_csv(root / "oof.csv", files["ids"], files["oof"] * 1.004)
    adopt.run(settings())
    assert "12 rows do not quite sum to one" in capsys.readouterr().err
    np.testing.assert_allclose(Run(small.config(), "mate").oof().values.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"run": ""}, "needs run="),
        ({"oof": ""}, "needs oof="),
        ({"test": "nowhere.csv"}, "no such file"),
        ({"run": "level2"}, "holds the stacks"),
        ({"run": "../up"}, "plain name"),
    ],
)
def test_arguments(root, files, changes, says):
    with pytest.raises(UserError, match=says):
        adopt.run(settings(**changes))
