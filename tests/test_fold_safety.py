"""Law 1, mechanism by mechanism: what a member may learn from, read from the tables that reach it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import small_training as small

from pipeline import infer, runs, training
from pipeline.artefacts import Predictions
from pipeline.competition import load
from pipeline.folds import read_folds
from pipeline.runs import Run
from pipeline.tasks.multiclass import Multiclass

CLASSES = "abc"


@pytest.fixture
def root(project) -> Path:
    """32 training rows in two folds and 8 test rows, whose ids are those of the first training rows."""
    small.write(project.root)
    share_ids(project.root)
    assert project.run("stage=split").code == 0
    return project.root


def share_ids(root: Path) -> None:
    """The same ids in both tables, for different images: a000 is a training row and a test row."""
    folder = root / "data/noise"
    for path in (folder / "test_images").iterdir():
        path.rename(path.with_name(path.name.replace("b", "a")))
    sample = folder / "sample_submission.csv"
    sample.write_text(sample.read_text().replace("\nb", "\na"))


def folds() -> np.ndarray:
    return read_folds(small.config(), load(small.config()))


def give(run: str, fold: int, test: np.ndarray, oof: np.ndarray | None = None) -> None:
    """Predictions of a run on disk, as stage=predict would leave them."""
    competition, folder = load(small.config()), Run(small.config(), run).member((fold,))
    rows = np.flatnonzero(folds() == fold)
    oof = np.full((len(rows), 3), 1 / 3) if oof is None else oof
    Predictions(competition.train["id"].to_numpy()[rows], oof, "probability").save(folder / "oof.npz")
    Predictions(competition.test["id"].to_numpy(), test, "probability").save(folder / "test.npz")


def certain(classes: list[int], confidence: float | list[float] = 0.98) -> np.ndarray:
    """(N, 3) rows that are sure of these classes."""
    confidence = np.broadcast_to(confidence, len(classes))[:, None]
    return np.where(np.eye(3)[classes] > 0, confidence, (1 - confidence) / 2)


def labels(root: Path, run: str, number: int) -> pd.DataFrame:
    return pd.read_csv(root / f"runs/noise/{run}/labels-r{number}.csv")


@pytest.fixture
def teacher(root, project) -> str:
    """A trained run whose two members answer the test rows each in their own way."""
    assert project.run("stage=train").code == project.run("stage=predict").code == 0
    give("tiny", 0, certain([0] * 8, [0.99, 0.95, 0.91, 0.9, 0.85, 0.7, 0.6, 0.5]))
    give("tiny", 1, certain([1, 2] * 4, 0.97))
    return "tiny"


def tables(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], training.Table]:
    """What each member is given to learn from, by run and member, filled as they train."""
    seen = {}
    made = training.member_table

    def spy(run, task, held_out, broken):
        table = seen[run.name, run.member(held_out).name] = made(run, task, held_out, broken)
        return table

    monkeypatch.setattr(training, "member_table", spy)
    return seen


# --- training and prediction --------------------------------------------------------------------------------------


def test_no_member_learns_or_validates_with_the_wrong_rows(root, project, monkeypatch):
    seen, asked = tables(monkeypatch), []
    predict = infer.predict

    def spy(model, task, store, rows, *rest):
        asked.append((len(store), rows.tolist()))
        return predict(model, task, store, rows, *rest)

    monkeypatch.setattr(infer, "predict", spy)
    assert project.run("stage=train", "epochs=1").code == 0
    own = [np.flatnonzero(folds() == fold).tolist() for fold in (0, 1)]
    assert seen["tiny", "fold0"].rows.tolist() == own[1]
    assert seen["tiny", "fold1"].rows.tolist() == own[0]
    assert asked == [(32, own[0]), (32, own[1])], "each member validates on its own fold alone"
    truth = Multiclass(CLASSES).targets(load(small.config()).targets)
    assert seen["tiny", "fold0"].targets.tolist() == truth[own[1]].tolist()
    asked.clear()
    assert project.run("stage=predict").code == 0
    assert asked == [(32, own[0]), (8, list(range(8))), (32, own[1]), (8, list(range(8)))]
    oof = [Predictions.load(root / f"runs/noise/tiny/fold{fold}/oof.npz").ids for fold in (0, 1)]
    ids = load(small.config()).train["id"].to_numpy()
    assert [part.tolist() for part in oof] == [ids[rows].tolist() for rows in own]


def test_skipped_broken_images_are_not_learned_from_but_predicted(root, project, monkeypatch):
    seen = tables(monkeypatch)
    ids = load(small.config()).train["id"].to_numpy()
    row = int(np.flatnonzero(folds() == 1)[0])
    (root / f"data/noise/train_images/{ids[row]}.png").write_bytes(b"no image")
    stopped = project.run("stage=train", "fold=0", "epochs=1")
    assert stopped.code == 2
    assert ids[row] in stopped.err
    assert "data.skip_broken=true" in stopped.err
    assert project.run("stage=train", "epochs=1", "data.skip_broken=true").code == 0
    assert row not in seen["tiny", "fold0"].rows
    assert len(seen["tiny", "fold0"].rows) == (folds() == 1).sum() - 1
    assert project.run("stage=predict", "data.skip_broken=true").code == 0
    assert ids[row] in Predictions.load(root / "runs/noise/tiny/fold1/oof.npz").ids


# --- pseudo-labels ------------------------------------------------------------------------------------------------


def test_pseudo_labels_of_a_member_come_from_that_member_alone(root, project, teacher, monkeypatch):
    seen = tables(monkeypatch)
    ended = project.run("stage=pseudo", "pseudo.threshold=0.9", "pseudo.weight=0.5")
    assert ended.code == 0, ended.err
    made = labels(root, "tiny-r1", 1)
    ids = load(small.config()).test["id"].tolist()
    first, second = made[made["for_fold"] == 0], made[made["for_fold"] == 1]
    assert first["id"].tolist() == ids[:4], "0.9 is sure enough"
    assert first["label"].tolist() == ["a"] * 4
    assert second["id"].tolist() == ids
    assert second["label"].tolist() == ["b", "c"] * 4
    for fold, joined in ((0, first), (1, second)):
        table = seen["tiny-r1", f"fold{fold}"]
        own = np.flatnonzero(folds() != fold)
        assert table.rows.tolist() == [*own, *(32 + ids.index(name) for name in joined["id"])]
        assert table.weights.tolist() == [1] * len(own) + [0.5] * len(joined)
        expected = Multiclass(CLASSES).soft(Multiclass(CLASSES).targets(joined[["label"]]))
        np.testing.assert_array_equal(table.targets[len(own) :], expected)
    assert "4–8 of 8 test rows a member" in ended.out


def test_pseudo_images_are_those_of_the_test_set(root, project, teacher, monkeypatch):
    """The ids stand in both tables, so that a label put on the training image of that name would show."""
    from pipeline.data import Loader

    loaders = []
    init = Loader.__init__
    monkeypatch.setattr(Loader, "__init__", lambda self, *args: (init(self, *args), loaders.append(self))[0])
    assert project.run("stage=pseudo", "pseudo.threshold=0.9", "epochs=1").code == 0
    import cv2

    loader = loaders[1]  # of fold 1: all eight test rows joined
    images = loader.images.take(loader.table.rows[-8:])
    paths = [root / "data/noise/test_images" / f"{name}.png" for name in load(small.config()).test["id"]]
    np.testing.assert_array_equal(images[..., 0], [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths])


def test_cap_soft_labels_and_crossfit(root, project, teacher):
    ids = np.array(load(small.config()).test["id"])
    assert project.run("stage=pseudo", "pseudo.threshold=0.9", "pseudo.cap=2").code == 0
    made = labels(root, "tiny-r1", 1)
    assert made[made["for_fold"] == 0]["id"].tolist() == ids[:2].tolist(), "the surest two"
    assert made[made["for_fold"] == 1]["label"].value_counts().to_dict() == {"b": 2, "c": 2}

    assert project.run("stage=pseudo", "pseudo.threshold=0.9", "pseudo.soft=true", "overwrite=true").code == 0
    made = labels(root, "tiny-r1", 1)
    values = made[made["for_fold"] == 0][["p:a", "p:b", "p:c"]].to_numpy()
    np.testing.assert_allclose(values[:, 0], [0.99, 0.95, 0.91, 0.9], atol=1e-6)

    assert project.run("stage=pseudo", "pseudo.threshold=0.1", "pseudo.crossfit=true", "overwrite=true").code == 0
    made, parts = labels(root, "tiny-r1", 1), runs.test_parts(8, 2, small.config().folds.seed)
    for fold in (0, 1):
        assert made[made["for_fold"] == fold]["id"].tolist() == ids[parts != fold].tolist()
    members = [Predictions.load(root / f"runs/noise/tiny-r1/fold{fold}/test.npz") for fold in (0, 1)]
    combined = Run(small.config(), "tiny-r1").tests()
    for row, part in enumerate(parts):
        for answer in combined:
            np.testing.assert_array_equal(answer.values[row], members[part].values[row])


def gaining(monkeypatch: pytest.MonkeyPatch, *gains: float) -> None:
    """Let the rounds gain as prepared, with a standard error of 0.1."""
    left = list(gains)
    monkeypatch.setattr("pipeline.stages.pseudo.compare", lambda teacher, student: (left.pop(0), 0.1))


def test_each_round_has_its_threshold_and_labels_from_the_round_before(root, project, teacher, monkeypatch):
    gaining(monkeypatch, 0.2, 0.2, 0.2)
    seen = tables(monkeypatch)
    ended = project.run("stage=pseudo", "pseudo.rounds=3", "pseudo.threshold=0.95,0.34", "epochs=3")
    assert ended.code == 0, ended.err
    assert ended.out.count("used further") == 3
    assert [f"confidence ≥ {t}" in ended.out for t in (0.95, 0.34)] == [True, True]
    assert len(labels(root, "tiny-r1", 1).query("for_fold == 0")) == 2
    for number in (2, 3):
        made = labels(root, f"tiny-r{number}", number)
        for fold in (0, 1):
            before = Predictions.load(root / f"runs/noise/tiny-r{number - 1}/fold{fold}/test.npz")
            sure = before.values.max(axis=1) >= 0.34
            own = made[made["for_fold"] == fold]
            assert own["id"].tolist() == before.ids[sure].tolist()
            assert own["label"].tolist() == [CLASSES[k] for k in before.values[sure].argmax(axis=1)]
            assert len(seen[f"tiny-r{number}", f"fold{fold}"]) == (folds() != fold).sum() + sure.sum()


def test_rounds_train_as_the_run_but_for_what_the_command_line_says(root, project, teacher, monkeypatch):
    gaining(monkeypatch, 0.2, 0.2)
    ended = project.run("stage=pseudo", "pseudo.rounds=2", "pseudo.threshold=0.9,0.34", "epochs=2", "lr=1e-4")
    assert ended.code == 0, ended.err
    made = {run: Run(small.config(), run).stored()["settings"] for run in ("tiny", "tiny-r1", "tiny-r2")}
    assert made["tiny-r1"] | {"train.labels": ""} == made["tiny"] | {"epochs": 2, "lr": 1e-4}
    assert (made["tiny-r2"]["epochs"], made["tiny-r2"]["lr"]) == (2, 1e-4)
    assert made["tiny"]["epochs"] != 2
    plain = project.run("stage=pseudo", "pseudo.threshold=0.9")
    assert plain.code == 2
    assert "the round tiny-r1 was trained with epochs=2, lr=0.0001; give that again to go on with it" in plain.err


def test_a_rejected_round_ends_them_stays_on_disk_and_is_not_stacked(root, project, teacher, monkeypatch):
    gaining(monkeypatch, 0.05)
    ended = project.run("stage=pseudo", "pseudo.rounds=3", "pseudo.threshold=0.9")
    assert ended.code == 0
    assert "kept on disk, not used further" in ended.out
    assert (root / "runs/noise/tiny-r1/fold0/test.npz").exists()
    assert not (root / "runs/noise/tiny-r2").exists()
    assert Run(small.config(), "tiny-r1").rejected
    stacked = project.run("stage=stack", "stack.methods=mean")
    assert stacked.code == 0
    assert "tiny-r1 is left out: rejected" in stacked.out
    again = project.run("stage=pseudo", "pseudo.rounds=3", "pseudo.threshold=0.9")
    assert "train tiny-r1 fold" not in again.out


def test_other_labels_for_a_finished_round_are_refused(root, project, teacher):
    assert project.run("stage=pseudo", "pseudo.threshold=0.9").code == 0
    first = (root / "runs/noise/tiny-r1/labels-r1.csv").read_bytes()
    refused = project.run("stage=pseudo", "pseudo.threshold=0.5")
    assert refused.code == 2
    assert "labels-r1.csv came out differently" in refused.err
    assert "overwrite=true" in refused.err
    assert (root / "runs/noise/tiny-r1/labels-r1.csv").read_bytes() == first
    assert project.run("stage=pseudo", "pseudo.threshold=0.5", "overwrite=true").code == 0
    assert (root / "runs/noise/tiny-r1/labels-r1.csv").read_bytes() != first


@pytest.mark.parametrize(
    ("words", "says"),
    [(["fold=full"], "fold=all"), (["run=no"], "train it"), (["pseudo.threshold=1.1"], "≤ 1")],
)
def test_pseudo_says_what_to_do(root, project, teacher, words, says):
    stopped = project.run("stage=pseudo", *words)
    assert stopped.code == 2
    assert says in stopped.err
    assert stopped.err.count("\n") == 1


def test_a_round_without_sure_rows_is_a_warning_and_the_last(root, project, teacher, monkeypatch):
    gaining(monkeypatch, 0.5)
    ended = project.run("stage=pseudo", "pseudo.rounds=3", "pseudo.threshold=0.9,0.999")
    assert ended.code == 0
    assert ended.err == (
        "warning: no test row of tiny-r1 is as sure as pseudo.threshold=0.999: there is no round 2; lower it\n"
    )
    assert not (root / "runs/noise/tiny-r2").exists()
    assert project.run("stage=stack", "stack.methods=mean").code == 0


# --- distillation -------------------------------------------------------------------------------------------------


def soft(root: Path, run: str, name: str) -> Predictions:
    return Predictions.load(root / f"runs/noise/{run}/soft/{name}.npz")


def test_a_student_learns_from_its_own_folds_teacher(root, project, teacher, monkeypatch):
    from pipeline.prediction import Member

    labelled, seen = [], tables(monkeypatch)
    rows_of = Member.train_rows
    monkeypatch.setattr(
        Member, "train_rows", lambda self, rows: (labelled.append((self.folder_name, rows)), rows_of(self, rows))[1],
    )  # fmt: skip
    init = Member.__init__

    def named(self, folder, *rest):
        init(self, folder, *rest)
        self.folder_name = f"{folder.parent.name}/{folder.name}"

    monkeypatch.setattr(Member, "__init__", named)
    ended = project.run("stage=distill", "distill.alpha=0.3", "distill.temperature=3")
    assert ended.code == 0, ended.err
    assert [name for name, _ in labelled[:2]] == ["tiny/fold0", "tiny/fold1"]
    for fold in (0, 1):
        own = np.flatnonzero(folds() != fold)
        np.testing.assert_array_equal(labelled[fold][1], own)
        table = seen["tiny-distilled", f"fold{fold}"]
        np.testing.assert_array_equal(table.rows, own)
        assert table.share.tolist() == [np.float32(0.3)] * len(own)
        np.testing.assert_array_equal(table.soft, soft(root, "tiny-distilled", f"fold{fold}").values)
    assert "leak" not in ended.out


def test_soft_labels_of_oof_name_their_leak(root, project, teacher):
    oof = [certain([fold + 1] * int((folds() == fold).sum()), 0.8) for fold in (0, 1)]
    for fold in (0, 1):
        give("tiny", fold, certain([0] * 8), oof[fold])
    assert project.run("stage=distill", "distill.source=oof").code == 0
    for fold in (0, 1):
        np.testing.assert_allclose(soft(root, "tiny-distilled", f"fold{fold}").values, oof[1 - fold], atol=1e-6)
    from pipeline.stages import distill

    [outcome] = distill.run(small.config(distill__source="oof"))
    assert "second-order leak" in outcome.note


def test_teachers_are_averaged_and_label_the_test_rows_too(root, project, teacher, monkeypatch):
    assert project.run("stage=train", "run=other", "seed=5", "backbone=small_image(width=6)").code == 0
    assert project.run("stage=predict", "run=other").code == 0
    seen = tables(monkeypatch)
    words = ("stage=distill", "distill.unlabelled=true")
    for name in ("tiny", "other"):
        assert project.run(*words, f"distill.teacher={name}", f"run=of-{name}", "epochs=1").code == 0
    assert project.run(*words, "distill.teacher=tiny,other", "run=both").code == 0
    for fold in (0, 1):
        for file in (f"fold{fold}", f"fold{fold}-test"):
            alone = [soft(root, f"of-{name}", file) for name in ("tiny", "other")]
            both = soft(root, "both", file)
            assert both.ids.tolist() == alone[0].ids.tolist()
            np.testing.assert_allclose(both.values, (alone[0].values + alone[1].values) / 2, atol=1e-6)
            assert not np.allclose(alone[0].values, alone[1].values)
        tests = Predictions.load(root / f"runs/noise/tiny/fold{fold}/test.npz")
        np.testing.assert_array_equal(soft(root, "of-tiny", f"fold{fold}-test").values, tests.values)
        table, own = seen["both", f"fold{fold}"], (folds() != fold).sum()
        assert table.rows[own:].tolist() == list(range(32, 40))
        assert table.share.tolist() == [0.5] * own + [1] * 8, "the true label of a test row has no share"


def test_pair_teachers_saw_neither_fold(root, project, monkeypatch):
    assert project.run("stage=split", "folds.count=3", "overwrite=true").code == 0
    seen = tables(monkeypatch)
    assert project.run("stage=train", "folds.count=3").code == project.run("stage=predict", "folds.count=3").code == 0
    ended = project.run("stage=distill", "distill.source=pair", "folds.count=3")
    assert ended.code == 0, ended.err
    pairs = sorted(name for run, name in seen if run == "tiny" and "_" in name)
    assert pairs == ["fold0_1", "fold0_2", "fold1_2"]
    for name in pairs:
        held_out = [int(fold) for fold in name.removeprefix("fold").split("_")]
        assert seen["tiny", name].rows.tolist() == np.flatnonzero(~np.isin(folds(), held_out)).tolist()
    ids = load(small.config()).train["id"].to_numpy()
    for fold in range(3):
        assert set(soft(root, "tiny-distilled", f"fold{fold}").ids) == set(ids[folds() != fold])


def test_pair_needs_a_teacher_that_learned_from_the_truth_alone(root, project, teacher, monkeypatch):
    gaining(monkeypatch, 0.5)
    assert project.run("stage=pseudo", "pseudo.threshold=0.9").code == 0
    assert project.run("stage=distill", "distill.teacher=tiny", "run=student").code == 0
    for name in ("tiny-r1", "student"):
        stopped = project.run("stage=distill", "distill.source=pair", f"distill.teacher={name}", "run=more")
        assert stopped.code == 2
        assert "distill.teacher=RUN" in stopped.err
    stopped = project.run("stage=distill", "distill.source=pair", "run=more")
    assert "teacher tiny," in stopped.out, "of all runs only tiny learned from the truth alone"
    assert "folds.count=3 or more" in stopped.err


def test_a_student_is_no_teacher_unless_named(root, project, teacher):
    right = [certain(truth_of(fold), 0.9) for fold in (0, 1)]
    assert project.run("stage=distill", "run=student").code == 0
    for fold in (0, 1):
        give("student", fold, certain([0] * 8), right[fold])  # better than tiny
    assert "teacher tiny," in project.run("stage=distill", "run=next", "epochs=1").out
    assert "teacher student," in project.run("stage=distill", "run=third", "distill.teacher=student", "epochs=1").out


def test_a_student_keeps_its_teacher_though_a_better_run_was_made_meanwhile(root, project, teacher):
    assert project.run("stage=distill", "run=student").code == 0
    assert project.run("stage=train", "run=later").code == project.run("stage=predict", "run=later").code == 0
    for fold in (0, 1):
        give("later", fold, certain([0] * 8), certain(truth_of(fold), 0.9))
    again = project.run("stage=distill", "run=student")
    assert again.code == 0, again.err
    assert "teacher tiny," in again.out
    assert "teacher later," in project.run("stage=distill", "run=student", "overwrite=true").out


def truth_of(fold: int) -> list[int]:
    truth = Multiclass(CLASSES).targets(load(small.config()).targets)
    return truth[folds() == fold].tolist()


def test_an_adopted_run_teaches_by_oof_alone(root, project):
    competition = load(small.config())
    for name, table in (("oof", competition.train), ("test", competition.test)):
        rows = [f"{row},0.5,0.3,0.2" for row in table["id"]]
        (root / f"{name}.csv").write_text("\n".join(["id,a,b,c", *rows]) + "\n")
    assert project.run("stage=adopt", "run=mate", "oof=oof.csv", "test=test.csv").code == 0
    for source in ("member", "pair"):
        stopped = project.run("stage=distill", "distill.teacher=mate", f"distill.source={source}")
        assert stopped.code == 2
        assert stopped.err.count("\n") == 1
        assert "an adopted run has none" in stopped.err
        assert "distill.source=oof" in stopped.err
    ended = project.run("stage=distill", "distill.teacher=mate", "distill.source=oof", "distill.unlabelled=true")
    assert ended.code == 0, ended.err
    np.testing.assert_allclose(soft(root, "tiny-distilled", "fold0").values, [[0.5, 0.3, 0.2]] * 16, atol=1e-6)


def test_predictions_missing_for_a_teacher(root, project):
    stopped = project.run("stage=distill")
    assert stopped.code == 2
    assert "no predicted run to learn from" in stopped.err
    assert project.run("stage=train", "fold=0").code == 0
    stopped = project.run("stage=distill", "distill.teacher=tiny")
    assert stopped.code == 2
    assert "stage=train competition=noise run=tiny fold=0" in stopped.err
    assert not (root / "runs/noise/tiny-distilled").exists()


def test_a_recipe_under_a_name_of_its_own_distils_into_a_run_of_its_own(root, project):
    words = ("recipe=default", "run=mine", "epochs=1", "pseudo.threshold=0.3", "stack.methods=single")
    assert project.run("stage=all", *words).code == 0
    assert Run(small.config(), "mine-distilled").stored()["settings"]["train.soft"]
    assert not Run(small.config(), "mine").stored()["settings"]["train.soft"]
    stopped = project.run("stage=distill", "run=mine", "distill.teacher=mine", "overwrite=true")
    assert stopped.code == 2
    assert "run=mine is no student" in stopped.err
    assert (root / "runs/noise/mine/fold0/best.ckpt").exists()


def test_runs_of_other_folds_are_left_out_and_said(root, project):
    for stage in ("train", "predict"):
        assert project.run(f"stage={stage}", "epochs=1").code == 0
    assert project.run("stage=split", "folds.seed=7", "overwrite=true").code == 0
    stopped = project.run("stage=stack", "folds.seed=7", "stack.methods=single")
    assert stopped.code == 2
    assert "made on other folds; train it again" in stopped.out


# --- models of descriptors ----------------------------------------------------------------------------------------


def test_what_is_fitted_to_descriptors_sees_the_members_own_rows_alone(root, project, monkeypatch):
    """The codebook, scales and components, and the model with all that it chooses; labels of no other row."""
    from pipeline import description
    from pipeline.parts import classifiers, descriptors

    books, tables, fitted = [], [], []
    fit_words, scaled, fit = descriptors.visual_words.fit, description.scaled, classifiers.logistic.fit

    def spy_words(self, store, rows, generator):
        books.append(rows.tolist())
        fit_words(self, store, rows, generator)

    def spy_model(self, rows, targets, groups):
        fitted.append((len(rows), targets.argmax(axis=1).tolist(), groups.tolist()))
        return fit(self, rows, targets, groups)

    monkeypatch.setattr(descriptors.visual_words, "fit", spy_words)
    monkeypatch.setattr(classifiers.logistic, "fit", spy_model)
    monkeypatch.setattr(
        description, "scaled", lambda *parts: (tables.append([len(p) for p in parts]), scaled(*parts))[1]
    )
    words = "visual_words(words=4,patch=4,size=8)"
    ended = project.run("stage=features", f"features.descriptors=raw_pixels(size=8),{words}")
    assert ended.code == 0, ended.err
    own = [np.flatnonzero(folds() != fold).tolist() for fold in (0, 1)]
    truth = Multiclass(CLASSES).targets(load(small.config()).targets)
    assert books == own
    assert tables == [[16, 16, 8]] * 4
    assert fitted == [(16, truth[rows].tolist(), folds()[rows].tolist()) for rows in own]


def test_what_scales_descriptors_is_that_of_the_first_table():
    from pipeline.description import principal, scaled

    generator = np.random.default_rng(0)
    known, wanted, test = (generator.normal(m, 1 + m, (40, 6)).astype(np.float32) for m in (0, 5, 9))
    tables = scaled(known, wanted, test)
    np.testing.assert_allclose(tables[0].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(tables[0].std(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(tables[1], (wanted - known.mean(axis=0)) / known.std(axis=0), rtol=1e-4)
    again = scaled(known, 100 * wanted, test[:3])
    assert (again[0] == tables[0]).all()
    shorter = [part[:, :2] for part in principal([known, wanted, test], 6)]
    for part, other in zip(shorter, principal([known, 7 * wanted, test], 2), strict=True):
        if other.shape == part.shape and part is not shorter[1]:
            np.testing.assert_allclose(other, part, atol=1e-4)
