"""stage=stack: members, nested cross-validation, choice, what is written, and what is reused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_competition as small
import small_tasks

from pipeline import config as configs
from pipeline import evaluate, members, nested, registry
from pipeline.artefacts import Predictions
from pipeline.competition import load
from pipeline.errors import UserError
from pipeline.folds import ensure_folds
from pipeline.forms import CLASSES
from pipeline.nested import Candidate, Table, choose, nested_values
from pipeline.runs import Run
from pipeline.stages import stack
from pipeline.tasks import task_for
from pipeline.tasks.multiclass import Multiclass

ROWS, FOLDS = 150, 3
TASK = Multiclass(small.CLASSES)
CHEAP = ["single()", "mean()", "rank_mean()", "hill_climb(rounds=10)", "ridge()", "logistic()"]


def metric(call: str, task=TASK) -> evaluate.Metric:
    return evaluate.metric(call, task)


@pytest.fixture
def root(project) -> Path:
    """The small competition with 150 rows in 3 folds, which are not in the order of the table."""
    folder = small.write(project.root)
    picture = (folder / "train_images" / "000a.png").read_bytes()
    ids = [f"{row:03d}a" for row in range(ROWS)]
    for name in ids:
        (folder / "train_images" / f"{name}.png").write_bytes(picture)
    labels = [small.CLASSES[row % 3] for row in range(ROWS)]
    small.table(folder / "train.csv", "id,label", zip(ids, labels, strict=True))
    write_folds(project.root, np.random.default_rng(0).permutation(ROWS) % FOLDS)
    return project.root


def write_folds(root: Path, folds: np.ndarray) -> None:
    (root / "folds").mkdir(exist_ok=True)
    rows = ((f"{row:03d}a", fold, "", small.CLASSES[row % 3]) for row, fold in enumerate(folds))
    small.table(root / "folds" / "whales.csv", "id,fold,group,label", rows)


def settings(**changes):
    return small.config(**{"stack__methods": CHEAP, "stack__decisions": ["none"], "folds__count": FOLDS, **changes})


def folds_of(root: Path) -> np.ndarray:
    lines = (root / "folds" / "whales.csv").read_text().split()[1:]
    return np.array([int(line.split(",")[1]) for line in lines])


def add_run(root: Path, name: str, strength: float, seed: int, truth: np.ndarray | None = None) -> np.ndarray:
    """A run whose OOF knows of the truth as much as strength says; its test rows differ from fold to fold."""
    generator, folds = np.random.default_rng(seed), folds_of(root)
    truth = np.arange(ROWS) % 3 if truth is None else truth
    values = softmax(generator.normal(size=(ROWS, 3)) + strength * np.eye(3)[truth])
    ids = np.array([f"{row:03d}a" for row in range(ROWS)])
    for fold in range(FOLDS):
        folder = root / "runs" / "whales" / name / f"fold{fold}"
        rows = generator.permutation(np.flatnonzero(folds == fold))  # the order in a file says nothing
        Predictions(ids[rows], values[rows], "probability").save(folder / "oof.npz")
        Predictions(np.array(small.TEST_IDS), softmax(generator.normal(size=(4, 3))), "probability").save(
            folder / "test.npz"
        )
    return values


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits)
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def level2(root: Path, name: str = "stack") -> Path:
    return root / "runs" / "whales" / "level2" / name


def test_writes_nested_and_test_predictions(root, capsys):
    a, b = add_run(root, "a", 1.5, 1), add_run(root, "b", 1.5, 2)
    [outcome] = stack.run(settings(stack__choose="ridge", stack__members=["b", "a"]))
    values, truth, folds = np.stack([b, a], axis=1), np.arange(ROWS) % 3, folds_of(root)
    nested, test = (Predictions.load(level2(root) / f"{name}.npz") for name in ("nested", "test"))

    def fitted(rows):
        return registry.build("level2", "ridge()")(CLASSES).fit(values[rows], truth[rows], metric("accuracy()"))

    for fold in range(FOLDS):  # by hand: what the fold's rows get comes from the other folds alone
        rows = folds == fold
        np.testing.assert_allclose(nested.values[rows], fitted(~rows).predict(values[rows]), atol=1e-6)
    ids = list(small.TEST_IDS)
    answers = []
    for fold in range(FOLDS):
        parts = [Predictions.load(root / f"runs/whales/{name}/fold{fold}/test.npz").align(ids) for name in ("b", "a")]
        answers.append(fitted(slice(None)).predict(np.stack([part.values for part in parts], axis=1)))
    np.testing.assert_allclose(test.values, np.mean(answers, axis=0), atol=1e-6)
    assert nested.ids.tolist() == load(settings()).train["id"].tolist()
    assert test.ids.tolist() == ids
    assert (outcome.step, outcome.run, outcome.reused) == ("stack", "stack", False)
    share = (nested.values.argmax(1) == truth).mean()
    assert outcome.nested.startswith(f"{share:.4f} ± ")
    assert outcome.facts["nested"] == pytest.approx(share)
    printed = capsys.readouterr().out
    assert "second-order leak" in printed
    assert printed.count("→") == 1
    assert all(call in printed for call in CHEAP)


def test_level2_json_says_what_was_made(root):
    add_run(root, "a", 0.5, 1)
    add_run(root, "b", 2.5, 2)
    stack.run(settings(stack__choose="single"))
    made = json.loads((level2(root) / "level2.json").read_text())
    assert made["method"] == "single()"
    assert made["weights"] == {"a": 0.0, "b": 1.0}
    assert made["members"] == ["a", "b"]
    assert made["columns"] == ["cat", "dog", "owl"]
    assert [entry["method"] for entry in made["nested"]] == CHEAP
    assert len(made["nested"][0]["folds"]) == FOLDS
    assert "second order" in made["leak"]
    stored = stack.read_stacker(level2(root))
    fresh = softmax(np.random.default_rng(0).normal(size=(6, 3)))
    assert stored.predict(np.stack([1 - fresh, fresh], axis=1)).tolist() == pytest.approx(fresh, abs=1e-6)


@pytest.mark.parametrize("call", ["lightgbm()", "cnn()"])
def test_stored_stacker_predicts_the_same_bytes(root, call):
    add_run(root, "a", 1.0, 1)
    add_run(root, "b", 1.0, 2)
    stack.run(settings(stack__methods=[call]))
    values = np.stack([softmax(np.random.default_rng(s).normal(size=(9, 3))) for s in (1, 2)], axis=1)
    oof = np.stack([np.zeros((ROWS, 3), np.float32)] * 2, axis=1)
    for member, name in enumerate("ab"):
        for fold in range(FOLDS):
            part = Predictions.load(root / f"runs/whales/{name}/fold{fold}/oof.npz")
            oof[[int(i[:3]) for i in part.ids], member] = part.values
    fresh = registry.build("level2", call)(CLASSES).fit(oof, np.arange(ROWS) % 3, metric("accuracy()"))
    assert stack.read_stacker(level2(root)).predict(values).tobytes() == fresh.predict(values).tobytes()


def test_same_bytes_and_reuse(root):
    add_run(root, "a", 1.0, 1)
    add_run(root, "b", 1.0, 2)
    asked = settings()
    first = stack.run(asked)[0]
    files = {path.name: path.read_bytes() for path in level2(root).iterdir() if path.name != "stack.json"}
    again = stack.run(asked)[0]
    assert again.reused
    assert (again.nested, again.note, again.facts) == (first.nested, first.note, first.facts)
    (level2(root) / "stack.json").unlink()
    assert not stack.run(asked)[0].reused
    assert files == {path.name: path.read_bytes() for path in level2(root).iterdir() if path.name != "stack.json"}
    (level2(root) / "test.npz").unlink()
    assert not stack.run(asked)[0].reused


@pytest.mark.parametrize("change", ["oof", "test", "member", "method", "choice", "folds"])
def test_what_changes_is_stacked_anew(root, change):
    add_run(root, "a", 1.0, 1)
    add_run(root, "b", 1.0, 2)
    asked = settings()
    stack.run(asked)
    path = root / "runs/whales/a/fold1" / f"{change}.npz"
    if change in ("oof", "test"):
        before = Predictions.load(path)
        Predictions(before.ids, before.values[::-1], before.space).save(path)
    elif change == "member":
        add_run(root, "c", 1.0, 3)
    elif change == "folds":
        write_folds(root, (folds_of(root) + 1) % FOLDS)
        add_run(root, "a", 1.0, 1)
        add_run(root, "b", 1.0, 2)
    changes = {"method": {"stack__methods": CHEAP[:2]}, "choice": {"stack__choose": "mean"}}
    assert not stack.run(settings(**changes.get(change, {})))[0].reused


def test_reuse_imports_no_heavy_library(root):
    add_run(root, "a", 1.0, 1)
    stack.run(settings())
    code = (
        "import sys, small_competition as s; from pipeline.stages import stack;"
        f"c = s.config(stack__methods={CHEAP!r}, stack__decisions=['none'], folds__count={FOLDS});"
        "assert stack.run(c)[0].reused;"
        "print([m for m in ('torch', 'sklearn', 'lightgbm', 'xgboost', 'scipy') if m in sys.modules])"
    )
    here = Path(__file__).parent
    environment = {**os.environ, "PIPELINE_ROOT": str(root), "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert answer.stdout.strip().splitlines()[-1:] == ["[]"], answer.stdout + answer.stderr


# --- members ------------------------------------------------------------------------------------------------------


def test_all_takes_what_is_finished_and_not_rejected(root, capsys):
    for seed, name in enumerate(("b", "a", "partial", "refused", "everything")):
        add_run(root, name, 1.0, seed)
    runs = root / "runs" / "whales"
    (runs / "partial" / "fold1" / "test.npz").unlink()
    (runs / "refused" / "status.json").write_text('{"rejected": "no gain"}')
    (runs / "everything" / "full").mkdir()
    (runs / "everything" / "fold0" / "test.npz").rename(runs / "everything" / "full" / "test.npz")
    for fold in range(FOLDS):
        for path in (runs / "everything" / f"fold{fold}").iterdir():
            path.unlink()
    assert stack.run(settings())[0].note.endswith("over a, b")
    printed = capsys.readouterr().out
    assert "partial is left out: fold1/test.npz is missing" in printed
    assert "refused is left out: rejected (no gain)" in printed
    assert "everything is left out: trained on everything (fold=full)" in printed
    assert stack.run(settings())[0].reused  # the level2 folder is no member
    assert stack.run(settings(stack__members=["refused", "a"]))[0].note.endswith("over refused, a")


def test_a_named_run_without_predictions_is_an_error(root):
    add_run(root, "a", 1.0, 1)
    (root / "runs/whales/a/fold2/oof.npz").unlink()
    with pytest.raises(UserError, match=r"a/fold2/oof\.npz does not.*stage=predict competition=whales run=a fold=2"):
        stack.run(settings(stack__members=["a"]))
    with pytest.raises(UserError, match=r"stack\.members=b, but .*fold0/oof\.npz"):
        stack.run(settings(stack__members=["b"]))
    with pytest.raises(UserError, match="no run with predictions of all 3 folds"):
        stack.run(settings())
    assert not level2(root).exists()


def test_nothing_is_written_on_bad_predictions(root):
    add_run(root, "a", 1.0, 1)
    add_run(root, "b", 1.0, 2)
    path = root / "runs/whales/b/fold1/oof.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    with pytest.raises(UserError, match=r"b/fold1/oof\.npz is damaged"):
        stack.run(settings())
    part = Predictions.load(root / "runs/whales/b/fold0/oof.npz")
    part.save(path)
    assert "made on other folds" in members.why_not(Run(settings(), "b"), FOLDS)
    with pytest.raises(UserError, match="other rows than fold 1: the run was made on other folds"):
        stack.run(settings(stack__members=["a", "b"]))
    path.write_bytes(whole)
    for fold in range(FOLDS):
        for name in ("oof", "test"):
            part = Predictions.load(path := root / f"runs/whales/b/fold{fold}/{name}.npz")
            Predictions(part.ids, part.values[:, :2], part.space).save(path)
    with pytest.raises(UserError, match="run b predicts 2 columns, but the task has 3"):
        stack.run(settings())
    assert not level2(root).exists()


def test_one_run_is_enough(root):
    values = add_run(root, "a", 1.5, 1)
    stack.run(settings())
    made = json.loads((level2(root) / "level2.json").read_text())
    by_method = {entry["method"]: entry for entry in made["nested"]}
    assert by_method["single()"]["score"] == pytest.approx((values.argmax(1) == np.arange(ROWS) % 3).mean())
    assert by_method["single()"]["gain"] == 0
    assert "logistic()" in by_method


# --- methods and choice -------------------------------------------------------------------------------------------


def test_methods_by_name_and_all(root):
    everything = stack.methods(small.config(), 1e3)
    assert everything[:3] == ["single()", "mean()", "rank_mean()"]
    assert {"logistic()", "lightgbm()", "cnn()"} <= set(everything)
    assert stack.methods(small.config(), 1e15) == ["single()", "mean()", "rank_mean()", "hill_climb()"]
    asked = small.config(stack__methods=["mean", "ridge(penalty=2.0)"], stack__choose="logistic")
    assert stack.methods(asked, 1e15) == ["mean()", "ridge(penalty=2.0)", "logistic()"]


@pytest.mark.parametrize("change", [{"stack__methods": ["lightgmb"]}, {"stack__choose": "lightgmb"}])
def test_wrong_names_fail_before_data_is_read(project, change):
    small.write(project.root)
    asked = small.config(**change)
    (project.root / "data").rename(project.root / "elsewhere")
    with pytest.raises(UserError, match="did you mean lightgbm"):
        stack.run(asked)


def test_wrong_decisions_fail_before_data_is_read(project):
    small.write(project.root)
    asked = small.config(stack__decisions=["tresholds"])
    (project.root / "data").rename(project.root / "elsewhere")
    with pytest.raises(UserError, match="did you mean thresholds"):
        stack.run(asked)


def candidates(truth: np.ndarray, wrong: dict[str, list[int]]) -> list[Candidate]:
    found = []
    for order, (call, rows) in enumerate(wrong.items()):
        values = np.eye(3)[truth]
        values[rows] = np.roll(values[rows], 1, axis=1)
        found.append(Candidate(call, order, values, None, 0.0, 0.0))  # type: ignore[arg-type]
    return found


def test_choice_is_the_simplest_within_one_paired_standard_error():
    truth = np.arange(90) % 3
    table = Table(["a"], np.eye(3)[truth][:, None], truth, truth, metric("accuracy()"))
    far = {"single()": list(range(20)), "mean()": list(range(12)), "ridge()": list(range(4)), "cnn()": list(range(3))}
    assert choose(candidates(truth, far), table)[0].call == "ridge()"  # one row apart: 1/90 ± 1/90
    assert stack.choose("mean", candidates(truth, far), table)[0].call == "mean()"
    clear = {"single()": list(range(20)), "ridge()": list(range(9)), "cnn()": []}
    chosen, reason = choose(candidates(truth, clear), table)
    assert chosen.call == "cnn()"
    assert "nothing simpler" in reason
    same = {"single()": [1], "mean()": [1]}
    assert choose(candidates(truth, same), table)[0].call == "single()"
    # as many wrong, but other rows: the paired error is wide, so the simple one stays
    other = {"single()": list(range(6)), "cnn()": list(range(10, 14))}
    assert choose(candidates(truth, other), table)[0].call == "single()"


def test_choice_minds_the_direction_of_the_metric():
    truth = np.arange(90) % 3
    good, poor = np.full((90, 3), 0.1) + 0.7 * np.eye(3)[truth], np.full((90, 3), 1 / 3)
    table = Table(["a"], good[:, None], truth, truth, metric("log_loss()"))
    pair = [Candidate("single()", 0, poor, None, 0, 0), Candidate("cnn()", 5, good, None, 0, 0)]  # type: ignore[arg-type]
    assert choose(pair, table)[0].call == "cnn()"


@pytest.mark.parametrize("call", ["single()", "hill_climb()", "ridge()", "logistic()", "mlp(steps=60)", "lightgbm()"])
def test_nested_scores_stay_at_chance_on_shuffled_labels(call):
    generator = np.random.default_rng(0)
    rows, members, score = 400, 6, metric("accuracy()")
    truth = generator.integers(4, size=rows)
    values = np.stack([softmax(2 * generator.normal(size=(rows, 4))) for _ in range(members)], axis=1)
    table = Table([str(m) for m in range(members)], values, truth, generator.permutation(rows) % 5, score)
    chance, se = 0.25, np.sqrt(0.25 * 0.75 / rows)
    assert abs(score(truth, nested_values(call, table)) - chance) < 3 * se
    if call in ("logistic()", "mlp(steps=60)", "lightgbm()"):  # what an unfair score would show
        naive = registry.build("level2", call)(CLASSES).fit(values, truth, score).predict(values)
        assert score(truth, naive) > chance + 3 * se


# --- every task ---------------------------------------------------------------------------------------------------

TASKS = {
    "multiclass": "accuracy()", "binary": "f1_macro()", "multilabel": "f1_macro()", "ordinal": "quadratic_kappa()",
    "regression": "rmse()", "circular(period=24)": "circular_mae(period=24)",
}  # fmt: skip
QUICK = {
    "classes": ["single()", "mean()", "rank_mean()", "ridge()", "logistic()"],
    "labels": ["single()", "mean()", "rank_mean()", "ridge()", "logistic()"],
    "numbers": ["single()", "mean()", "ridge()", "lightgbm()"],
}


def drawn(project, task: str, metric_: str, **changes):
    """A drawn competition of a task with folds; the config, the task and its truth."""
    small_tasks.write(project.root, task, rows=90)
    asked = configs.compose({"competition": "drawn", "metric": metric_, "folds.count": "3"})
    asked = configs.replace(asked, **changes)
    ensure_folds(asked, load(asked))
    return asked, task_for(asked, load(asked))


def guesses(asked, task, name: str, seed: int, noise: float = 0.5) -> None:
    """A run that knows of the truth what noise leaves."""
    run, generator = Run(asked, name), np.random.default_rng(seed)
    certain = task.soft(task.targets(run.competition.targets)).astype(np.float64)
    spread = noise * generator.normal(size=certain.shape) * (1 if task.form.bounded else certain.std(axis=0))
    values = task.form.finish(certain + spread + (noise if task.form.simplex else 0))
    ids = run.competition.train["id"].to_numpy()
    for fold in range(run.count):
        rows = run.folds == fold
        Predictions(ids[rows], values[rows], task.space).save(run.member((fold,)) / "oof.npz")
        test = values[: len(run.competition.test)]
        Predictions(run.competition.test["id"].to_numpy(), test, task.space).save(run.member((fold,)) / "test.npz")


@pytest.mark.parametrize("task", TASKS)
def test_every_task_stacks_and_submits(project, task):
    asked, known = drawn(project, task, TASKS[task])
    asked = configs.replace(asked, stack__methods=QUICK[known.form.name])
    guesses(asked, known, "a", 1)
    guesses(asked, known, "b", 2)
    [outcome] = stack.run(asked)
    folder = project.root / "runs/drawn/level2/stack"
    made = json.loads((folder / "level2.json").read_text())
    nested_values = Predictions.load(folder / "nested.npz")
    run = Run(asked, "a")
    scored = evaluate.metric(asked.metric, known)(run.truth(known), nested_values.align(load(asked).train["id"]).values)
    assert made["score"]["score"] == pytest.approx(scored)
    assert outcome.facts["nested"] == pytest.approx(scored)
    assert (made["decision"] is None) == (outcome.facts["decision"] is None)
    assert (project.root / "submissions/drawn/stack.csv").is_file()
    assert stack.run(asked)[0].reused
    assert max(entry["gain"] for entry in made["nested"]) > 0, "two runs with independent noise beat one"


def test_a_method_that_does_not_take_the_form_is_named(project):
    asked, _ = drawn(project, "regression", "rmse()")
    with pytest.raises(UserError, match="task=regression has numbers; methods that take them: single, mean"):
        stack.run(configs.replace(asked, stack__methods=["logistic"]))
    with pytest.raises(UserError, match=r"stack.choose=cnn, but task=regression"):
        stack.run(configs.replace(asked, stack__choose="cnn"))
    everything = stack.methods(asked, 1e3)
    assert "ridge()" in everything
    assert not {"rank_mean()", "logistic()", "cnn()"} & set(everything)


# --- decisions ----------------------------------------------------------------------------------------------------


def rare_labels(project, **changes):
    """Label values that are right in order, but too low by a factor."""
    asked, task = drawn(project, "multilabel", "f1_macro()", stack__methods=["single"], **changes)
    run, generator = Run(asked, "low"), np.random.default_rng(3)
    truth = task.targets(run.competition.targets)
    values = (0.3 * (0.1 + 0.8 * truth) + 0.05 * generator.random(truth.shape)).astype(np.float32)
    ids = run.competition.train["id"].to_numpy()
    for fold in range(3):
        rows = run.folds == fold
        Predictions(ids[rows], values[rows], task.space).save(run.member((fold,)) / "oof.npz")
        test = Predictions(run.competition.test["id"].to_numpy(), values[fold : fold + 12], task.space)
        test.save(run.member((fold,)) / "test.npz")
    return asked, task, values, truth


def test_a_decision_that_gains_is_applied_to_each_member(project, capsys):
    asked, _, values, truth = rare_labels(project)
    [outcome] = stack.run(asked)
    folder = project.root / "runs/drawn/level2/stack"
    made = json.loads((folder / "level2.json").read_text())
    assert made["decision"] == "threshold()"
    assert 0.1 < made["parameters"]["threshold"] < 0.35
    assert outcome.note == "single() + threshold() over low"
    assert made["score"]["score"] == pytest.approx(1.0)
    assert made["nested"][0]["score"] < 0.1
    assert made["decisions"][0]["decision"] == "default"
    decision = stack.read_decision(folder)
    test = Predictions.load(folder / "test.npz").values
    np.testing.assert_allclose(
        test, np.mean([decision.apply(values[fold : fold + 12]) for fold in range(3)], axis=0), atol=1e-6
    )
    stored = Predictions.load(folder / "nested.npz").values
    assert ((stored > 0.5) == (truth > 0.5)).all()
    printed = capsys.readouterr().out
    assert "decisions on single(), nested in the same way; paired gain over the default" in printed
    assert "applied: threshold()" in printed
    (folder / "decision.npz").unlink()
    assert not stack.run(asked)[0].reused


def test_nested_decisions_come_from_the_other_folds(project):
    asked, _, values, truth = rare_labels(project)
    table = stack.read_table(asked, [Run(asked, "low")], task_for(asked, load(asked)), None)
    for call in ("threshold()", "thresholds()"):
        found = nested.nested_decision(call, values, table)
        for fold in range(3):
            rows = table.folds == fold
            others = nested.fit_decision(call, values, table, ~rows)
            assert found[rows].tobytes() == others.apply(values[rows]).tobytes()
            changed = truth.copy()
            changed[rows] = 1 - changed[rows]  # what the fold's own labels say changes nothing for it
            told = Table(["low"], table.values, changed, table.folds, table.metric)
            other = nested.nested_decision(call, values, told)
            assert other[rows].tobytes() == found[rows].tobytes()


def test_decisions_can_be_switched_off_and_named(project, capsys):
    asked, *_ = rare_labels(project, stack__decisions=["none"])
    stack.run(asked)
    made = json.loads((project.root / "runs/drawn/level2/stack/level2.json").read_text())
    assert (made["decision"], made["parameters"], len(made["decisions"])) == (None, None, 1)
    assert stack.read_decision(project.root / "runs/drawn/level2/stack") is None
    assert "decisions on" not in capsys.readouterr().out
    stack.run(configs.replace(asked, stack__decisions=["thresholds(shrink=5.0)"]))
    made = json.loads((project.root / "runs/drawn/level2/stack/level2.json").read_text())
    assert made["decision"] == "thresholds(shrink=5.0)"
    assert set(made["parameters"]["thresholds"]) == {"bright", "glaring", "striped"}
    with pytest.raises(UserError, match="stack.decisions=class_weights, but it takes classes, and the task has labels"):
        stack.run(configs.replace(asked, stack__decisions=["class_weights"]))


def test_the_default_decision_is_kept_where_nothing_gains(root, capsys):
    add_run(root, "a", 1.5, 1)
    [outcome] = stack.run(settings(stack__decisions=["all"], stack__methods=["single"]))
    assert outcome.facts["decision"] is None
    printed = capsys.readouterr().out
    assert "class_weights()" in printed
    assert "kept: default decision" in printed


# --- one fold -----------------------------------------------------------------------------------------------------


def test_a_fixed_holdout_is_dealt_into_random_parts(root, capsys):
    folds = np.where(np.arange(ROWS) % 3 == 0, -1, 0)
    write_folds(root, folds)
    values = softmax(np.random.default_rng(0).normal(size=(ROWS, 3)) + 2 * np.eye(3)[np.arange(ROWS) % 3])
    ids, rows = np.array([f"{row:03d}a" for row in range(ROWS)]), np.flatnonzero(folds == 0)
    folder = root / "runs/whales/a/fold0"
    Predictions(ids[rows], values[rows], "probability").save(folder / "oof.npz")
    Predictions(np.array(small.TEST_IDS), values[:4], "probability").save(folder / "test.npz")
    asked = settings(stack__methods=["single", "ridge"], folds__method="given()")
    [outcome] = stack.run(asked)
    printed = capsys.readouterr().out
    assert "nested CV on 5 random parts of the only fold" in printed
    assert "test predictions are its own" in printed
    stored = Predictions.load(level2(root) / "nested.npz")
    assert stored.ids.tolist() == ids[rows].tolist()
    assert " ± " in outcome.nested, "over the parts"
    assert nested.parts(np.zeros(3, np.int64), 0).tolist() != [0, 0, 0]
    assert len(np.unique(nested.parts(np.zeros(100, np.int64), 0))) == 5
    assert nested.parts(folds, 0) is folds


# --- side features ------------------------------------------------------------------------------------------------


def add_column(root: Path, name: str, cells: list[object]) -> None:
    """A column of train.csv, and of a test.csv."""
    folder = root / "data/whales"
    lines = (folder / "train.csv").read_text().split()
    small.table(folder / "train.csv", f"{lines[0]},{name}", zip(lines[1:], cells, strict=True))
    small.table(folder / "test.csv", f"id,{name}", zip(small.TEST_IDS, cells[:4], strict=True))


@pytest.mark.parametrize("informative", [True, False])
def test_side_features_are_taken_where_they_tell_and_left_where_they_do_not(root, capsys, informative):
    generator = np.random.default_rng(0)
    truth = np.arange(ROWS) % 3
    told = truth + 0.2 * generator.normal(size=ROWS) if informative else generator.normal(size=ROWS)
    add_column(root, "depth", [f"{cell:.4f}" for cell in told])
    add_run(root, "a", 1.0, 1)
    calls = ["single", "lightgbm(rounds=30)", "lightgbm(rounds=30,features=true)"]
    asked = settings(stack__methods=calls, data__features=["depth"], data__test_csv="test.csv")
    [outcome] = stack.run(asked)
    made = json.loads((level2(root) / "level2.json").read_text())
    assert (outcome.facts["method"] == "lightgbm(rounds=30, features=True)") == informative
    if informative:
        assert "depth" in made["features"]
        assert made["score"]["score"] > 0.8
    else:
        assert made["features"] is None
    test = Predictions.load(level2(root) / "test.npz")
    assert np.isfinite(test.values).all()
    assert stack.run(asked)[0].reused
    add_column(root, "depth", [f"{cell:.4f}" for cell in told[::-1]])
    assert not stack.run(asked)[0].reused


def test_features_are_offered_by_all_unless_switched_off(root):
    asked = settings(stack__methods=["all"])
    assert "lightgbm(features=True)" in stack.methods(asked, 1e3)
    assert "lightgbm(features=True)" not in stack.methods(configs.replace(asked, stack__features=False), 1e3)
    with pytest.raises(UserError, match="stack.features=false; set it to true"):
        stack.methods(settings(stack__methods=["lightgbm(features=true)"], stack__features=False), 1e3)
    picture = small.cv2.imencode(".png", np.zeros((9, 5, 3), np.uint8))[1].tobytes()
    (root / "data/whales/train_images/000a.png").write_bytes(picture)
    add_run(root, "a", 1.0, 1)
    calls, side = stack.with_features(asked, load(asked), ["single()", "lightgbm(features=True)"])
    assert side is not None
    assert len(calls) == 2
    assert stack.with_features(asked, load(asked), ["single()", "lightgbm()"])[1] is None


def test_features_that_do_not_vary_are_none(project):
    folder = small.write(project.root)
    for path in [*folder.glob("*_images/*.png")]:
        path.write_bytes((folder / "train_images/000a.png").read_bytes())
    asked = small.config(stack__methods=["single", "lightgbm(features=true)"])
    with pytest.raises(UserError, match=r"lightgbm\(features=true\) reads side features, but there are none that vary"):
        stack.with_features(asked, load(asked), ["lightgbm(features=True)"])
    offered = small.config(stack__methods=["all"])
    assert stack.with_features(offered, load(offered), ["mean()", "lightgbm(features=True)"]) == (["mean()"], None)
