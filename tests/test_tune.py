"""stage=tune: spaces are checked whole, slots are trained once whatever dies, what comes out is marked."""

from __future__ import annotations

import csv
import json
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import small_training as small
import yaml

from pipeline import config as settings
from pipeline import recommended, registry, spaces, training, tuning
from pipeline.errors import Diverged, UserError
from pipeline.parts.augments import augmenter
from pipeline.spaces import Choice, Range, Space
from pipeline.study import Study, mend

LR = "tune.space=lr=log(1e-3,3e-2)"
QUICK = [LR, "tune.method=random", "tune.prune=none", "tune.trials=3", "tune.coarse_epochs=1", "tune.fine_trials=1",
         "tune.fine_epochs=2", "train.checkpoint_seconds=0"]  # fmt: skip


@pytest.fixture
def root(project) -> Path:
    small.write(project.root)
    return project.root


@pytest.fixture
def searched(project, root):
    """A project with a finished small search, and the folder of it."""
    ended = project.run("stage=tune", *QUICK)
    assert ended.code == 0, ended.err
    return ended, root / "runs/noise/tune/tiny-tuned"


def read(*space: str, **changes: object) -> Space:
    return spaces.read(small.config(tune__space=list(space), **changes))


def picker(seed: int):
    generator = random.Random(seed)

    def pick(dimension):
        if isinstance(dimension, Choice):
            return generator.choice(list(dimension.options))
        return generator.randint(dimension.low, dimension.high) if dimension.whole else generator.uniform(
            dimension.low, dimension.high
        )  # fmt: skip

    return pick


# --- spaces ---------------------------------------------------------------------------------------------------------


def test_ranges_stand_for_values_for_arguments_and_inside_choices(root):
    space = read(
        "lr=log(1e-5, 1e-2)",
        "head=choice(linear(), mlp(hidden=int(16, 64), dropout=uniform(0, 0.5)))",
        "optim=adam(betas=(uniform(0.8, 0.98), 0.999))",
        "pretrained=choice(true, false)",
        "loss=ohem(k=uniform(0.5, 1), loss=focal(gamma=uniform(1, 3)))",
    )
    assert list(space.dimensions()) == [
        "lr", "head", "head.mlp.hidden", "head.mlp.dropout", "optim.adam.betas.1", "pretrained", "loss.ohem.k",
        "loss.ohem.loss.focal.gamma",
    ]  # fmt: skip
    assert space.dimensions()["lr"] == Range("lr", 1e-5, 1e-2, whole=False, log=True)
    for seed in range(5):
        made = space.settings(picker(seed))
        assert re.fullmatch(r"linear\(\)|mlp\(hidden=\d\d, dropout=[\d.e-]+\)", made["head"])
        assert isinstance(made["lr"], float)
        assert isinstance(made["pretrained"], bool)
        assert len(f"{made['lr']:g}".lstrip("0.").partition("e")[0]) <= 4, "three digits are enough"
        settings.replace(small.config(), **made)


REFUSED = {
    "batch_size=choice(8, 16)": "stage=find_batch",
    "train.accumulate=int(1, 4)": "stage=find_batch",
    "epochs=int(1, 9)": "tune.coarse_epochs",
    "seed=int(0, 9)": "luck",
    "metric=choice(accuracy(), log_loss())": "competition",
    "views=choice(hflip())": "does not change how a model learns",
    "data.folder=choice(a, b)": "does not change how a model learns",
    "lr=log(0, 1)": "0 < low < high",
    "lr=log(1e-2, 1e-3)": "0 < low < high",
    "lr=uniform(1)": "two numbers",
    "head=mlp(hidden=int(1.5, 4))": "two whole numbers",
    "lr=log(1e-3, 1) x": "cannot be read",
    "lr=0.1": "holds no range",
    "lr": "neither key=range nor one of notes, policy",
    "lrr=log(1e-3, 1)": "did you mean lr?",
    "head=linear(dropot=uniform(0, 0.5))": "did you mean dropout?",
    "head=linear(dropout=uniform(0, 1.5))": "≤ 0.99",
    "head=choice(linear(), mpl(hidden=int(8, 16)))": "did you mean mlp?",
    "head=choice(linear(), choice(mlp(hidden=int(8, 0x)))": "cannot be read",
    "augment=choice(none(), flips())": "symmetry=hflip",
    "augment=choice(rand_augment(magnitude=int(1, 3)), rand_augment(magnitude=int(7, 9)))": "two different ranges",
    "head=choice(linear(), linear())": "twice",
    "image_size=int(2, 32)": "≥ 4",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_does_not_fit_is_refused_before_any_work(root, text):
    with pytest.raises(UserError) as caught:
        read(text)
    assert REFUSED[text] in str(caught.value)
    assert not (root / "runs").exists()


def test_a_key_is_tuned_once(root):
    with pytest.raises(UserError, match="lr is there twice"):
        read("lr=log(1e-4, 1e-3)", "notes")


def test_the_grid_is_as_fine_as_the_trials_allow(root):
    space = read("lr=log(1e-4, 1e-2)", "head=choice(linear(), linear(dropout=uniform(0.1, 0.5)))")
    assert len(space.grid(6)) == len(space.grid(11)) == 6, "2 rates × (linear, and 2 dropouts)"
    finer = space.grid(12)
    assert len(finer) == 12, "3 rates × (linear, and 3 dropouts)"
    assert sorted({trial["lr"] for trial in finer}) == [1e-4, 1e-3, 1e-2]
    assert len({json.dumps(trial) for trial in finer}) == 12
    with pytest.raises(UserError, match="tune.method=grid needs 6 trials"):
        space.grid(5)
    assert len(read("head=choice(linear(), mlp())").grid(50)) == 2


@pytest.mark.parametrize(
    ("trials", "keys"),
    [
        (9, ["lr"]),
        (10, ["lr", "optim"]),
        (15, ["lr", "optim", "head"]),
        (20, ["lr", "finetune", "optim", "head"]),
        (25, ["lr", "finetune", "augment", "optim", "head"]),
        (30, ["lr", "finetune", "augment", "optim", "head", "loss"]),
    ],
)
def test_the_notes_order_grows_with_the_trials(root, trials, keys):
    space = read("notes", tune__trials=trials, pretrained=True, loss="cross_entropy()")
    assert list(space.nodes) == keys


def test_the_notes_ranges_fit_optimizer_and_start(root):
    def rates(**changes):
        lr = read("notes", tune__trials=5, **changes).dimensions()["lr"]
        return lr.low, lr.high

    assert rates(lr=3e-3) == (1e-3, 1e-2)
    assert rates(lr=3e-4, pretrained=True) == (1e-5, 1e-3)
    assert rates(lr=3e-2, optim="sgd()") == (1e-3, 0.1)
    assert rates(lr=0.02, optim="muon()") == (0.002, 0.2), "others: around the config's own"
    assert rates(lr=0.1) == (1e-3, 0.3), "widened to hold the config's"
    momentum = read("notes", tune__trials=40, optim="sgd(momentum=0.5)").settings(picker(0))["optim"]
    assert re.fullmatch(r"sgd\(momentum=0\.\d+, weight_decay=[\d.e-]+\)", momentum)
    assert "finetune" not in read("notes", tune__trials=40).nodes, "nothing pretrained, nothing to fine-tune"


def test_every_loss_and_augmentation_that_is_recommended_exists(root):
    for name, (argument, _) in recommended.LOSSES.items():
        assert argument in registry.find("losses", name).arguments
    for name, ranges in recommended.MAGNITUDES.items():
        assert ranges.keys() <= registry.find("augments", name).arguments.keys()
    assert not {name for kind in registry.kinds() for name in registry.parts(kind)} & {*spaces.RANGES, "choice"}


@pytest.mark.parametrize("symmetry", ["none", "hflip", "d4"])
def test_a_policy_is_an_augment_that_works_and_keeps_to_the_symmetry(root, symmetry):
    space = read("policy", symmetry=symmetry)
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8)
    seen = ""
    for seed in range(12):
        made = space.settings(picker(seed))["augment"]
        changed = augmenter(registry.build("augments", made)(8))(image, seed)
        assert changed.shape == image.shape
        seen += made
    assert ("flips" in seen, "d4" in seen) == (symmetry != "none", symmetry == "d4")


def test_nothing_leaves_an_item_out_of_its_list(root):
    space = read("augment=compose(parts=[choice(nothing, cutout()), light(scale=uniform(0, 0.2))])")
    texts = {space.settings(picker(seed))["augment"].partition("light")[0] for seed in range(8)}
    assert texts == {"compose(parts=['", "compose(parts=['cutout()', '"}


# --- slots ----------------------------------------------------------------------------------------------------------

ONE = ["lr=log(1e-4, 1e-1)", "head=choice(linear(), mlp(hidden=int(8, 64)))"]


def study(folder: Path, slots: int = 4, **options) -> Study:
    return Study(folder, "coarse", read(*ONE), 1, slots, **options)


def test_the_same_slot_picks_the_same_values(root, tmp_path):
    def picked(folder: str, order: list[int]) -> dict:
        own = study(tmp_path / folder, seed=3)
        return {number: own.settings(number, own.begin(number)) for number in order}

    assert picked("a", [0, 1, 2]) == picked("b", [2, 0, 1])
    assert len({str(made) for made in picked("c", [0, 1, 2, 3]).values()}) == 4


def test_tpe_learns_where_the_best_trials_lie(root, tmp_path):
    own = study(tmp_path / "a", slots=30, method="tpe")
    for number in range(30):
        trial = own.begin(number)
        made = own.settings(number, trial)
        own.end(trial, -abs(np.log10(made["lr"]) + 3), 1, made)
    errors = [-slot.score for slot in own.finished()]
    assert np.median(errors[20:]) < 0.7 * np.median(errors[:10])
    assert max(own.importance(), key=own.importance().get) == "lr"


def test_a_schedule_of_epochs_keeps_its_shape_in_short_trials(root):
    run = tuning.Run(small.config(schedule="steps(at=(4,))", epochs=6), "tiny")
    short = tuning.trial_run(run, {"lr": 0.1}, 3).config
    assert (short.epochs, registry.parse(short.schedule).arguments["at"]) == (3, [4 / 6])
    named = tuning.trial_run(run, {"schedule": "ladder(at=(1,2,3))"}, 3).config
    assert registry.parse(named.schedule).arguments["at"] == [1 / 6, 2 / 6, 3 / 6]


@pytest.mark.parametrize("prune", ["median", "asha"])
def test_a_weak_trial_is_pruned_and_counts_as_finished(root, tmp_path, prune):
    import optuna

    own = study(tmp_path / "a", slots=7, prune=prune)
    for number in range(6):
        trial = own.begin(number)
        made = own.settings(number, trial)
        own.report(trial, 0, 0.5 + number / 100)
        own.end(trial, 0.9, 2, made)
    trial = own.begin(6)
    made = own.settings(6, trial)
    with pytest.raises(optuna.TrialPruned):
        own.report(trial, 0, 0.1)
    own.end(trial, float("nan"), 1, made, "pruned")
    last = own.finished()[-1]
    assert (last.number, last.ended, last.score, last.settings) == (6, "pruned", 0.1, made)


def test_a_metric_where_less_is_better_is_turned_around(root, tmp_path):
    own = Study(tmp_path / "a", "coarse", read(*ONE), -1, 1)
    trial = own.begin(0)
    own.report(trial, 0, 0.7)
    own.end(trial, 0.7, 1, own.settings(0, trial))
    assert own.finished()[0].score == 0.7
    assert own.study.best_value == -0.7


def test_a_held_slot_is_nobody_elses_and_an_open_trial_without_a_holder_is_taken_up(root, tmp_path):
    own, other = study(tmp_path / "a"), study(tmp_path / "a")
    with own.claimed(0) as mine:
        trial = own.begin(0)
        made = own.settings(0, trial)
        with other.claimed(0) as theirs, other.claimed(1) as free:
            assert (mine, theirs, free) == (True, False, True)
    assert own.finished() == [], "its process died"
    with other.claimed(0) as theirs:
        again = other.begin(0)
        assert (theirs, again.number, other.settings(0, again)) == (True, trial.number, made)


def test_a_torn_line_at_the_end_of_the_journal_is_mended(root, tmp_path):
    own = study(tmp_path / "a")
    own.end(trial := own.begin(0), 0.5, 1, own.settings(0, trial))
    path = tmp_path / "a" / "trials.log"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 4, "worker')
    again = study(tmp_path / "a")
    again.end(trial := again.begin(1), 0.6, 1, again.settings(1, trial))
    assert [slot.score for slot in study(tmp_path / "a").finished()] == [0.5, 0.6]
    for content in (b"", b"no end", b"one\n"):
        path.write_bytes(content)
        mend(path)
        assert path.read_bytes() == (b"one\n" if content == b"one\n" else b"")


# --- the stage ------------------------------------------------------------------------------------------------------


def trials(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "trials.csv").open()))


def test_a_search_writes_a_model_that_says_how_it_was_made(project, searched):
    ended, folder = searched
    rows = trials(folder)
    assert [(row["trainings"], row["ended"], row["epochs"]) for row in rows] == [
        *[("coarse", "done", "1")] * 3, *[("fine", "done", "2")] * 2,
    ]  # fmt: skip
    path = project.root / "configs/model/tiny-tuned.yaml"
    text, layer = path.read_text(), yaml.safe_load(path.read_text())
    best = max((row for row in rows if row["trainings"] == "coarse"), key=lambda row: float(row["score"]))
    assert layer["lr"] == float(best["lr"])
    assert rows[3]["lr"] == "", "the config as it stands trains beside the best"
    assert (layer["tuned"], layer["backbone"], layer["epochs"]) == ([0], "small_image(width=4)", 3)
    for words in ("tuned on fold 0: its OOF there is optimistic", "3 trials of 1 epoch", "accuracy()",
                  "./run.sh stage=tune competition=noise model=tiny", "gain over the config as it stands"):  # fmt: skip
        assert words in text
    assert "optimistic" in ended.out
    assert not list(folder.rglob("*.ckpt")), "trials keep nothing large"
    for name in ("parallel.png", "importance.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    again = project.run("stage=tune", *QUICK)
    assert again.code == 0
    assert "epoch  1" not in again.out
    assert again.out.strip() in ended.out


def test_every_table_shows_that_a_run_was_tuned(project, searched):
    mark = "tuned on fold 0: its OOF there is optimistic"
    for words in (["stage=train"], ["stage=predict"]):
        ended = project.run(*words, "model=tiny-tuned", "epochs=1")
        assert (ended.code, ended.out.count(mark)) == (0, 1), ended.err
    assert yaml.safe_load((project.root / "runs/noise/tiny-tuned/config.yaml").read_text())["settings"]["tuned"] == [0]
    ended = project.run("stage=stack", "stack.methods=mean", "stack.decisions=none")
    assert mark in ended.out, ended.err


def test_nothing_is_written_over_without_being_asked(project, searched):
    path = project.root / "configs/model/tiny-tuned.yaml"
    more = [*QUICK, "tune.fine_trials=0"]
    ended = project.run("stage=tune", *[word for word in QUICK if "space" not in word], "tune.space=lr=log(1e-3,1e-2)")
    assert ended.code == 2
    assert "space: ['lr=log(1e-3,3e-2)'] → ['lr=log(1e-3,1e-2)']" in ended.err
    assert "tune.name=tiny-tuned-2" in ended.err
    path.write_text(path.read_text() + "# mine\n")
    ended = project.run("stage=tune", *more)
    assert ended.code == 2
    assert "configs/model/tiny-tuned.yaml exists" in ended.err
    ended = project.run("stage=tune", *more, "tune.trials=1", "overwrite=true")
    assert ended.code == 0, ended.err
    assert "# mine" not in path.read_text()
    assert len(trials(searched[1])) == 1


def test_more_trials_go_on_from_those_there_are(project, searched, monkeypatch):
    trained = []
    whole = training.fit_member
    monkeypatch.setattr(
        training, "fit_member", lambda run, *rest: trained.append(run.config.epochs) or whole(run, *rest)
    )
    before = trials(searched[1])[:3]
    ended = project.run("stage=tune", *QUICK, "tune.trials=4")
    assert ended.code == 0, ended.err
    assert trials(searched[1])[:3] == before
    assert trained.count(1) == 1


def test_an_interrupted_search_goes_on_where_it_was(project, searched, monkeypatch):
    reference = trials(searched[1])
    whole, seen = Study.report, []

    def report(self, trial, step, score):
        whole(self, trial, step, score)
        seen.append((self.name.partition("-")[0], step))
        if seen.count(("coarse", 0)) == 2 or ("fine", 1) in seen:
            raise KeyboardInterrupt

    monkeypatch.setattr(Study, "report", report)
    words = ["stage=tune", *QUICK, "tune.name=again"]
    assert project.run(*words).code == 130
    seen.clear()
    assert project.run(*words).code == 130, "a fine trial, after its last epoch"
    monkeypatch.setattr(Study, "report", whole)
    ended = project.run(*words)
    assert ended.code == 0, ended.err
    assert "going on from" in ended.out
    folder = project.root / "runs/noise/tune/again"
    assert trials(folder) == reference
    assert (folder / "trials.log").read_text().count('"user_attr":{"slot":') == 5, "no slot was begun twice"


def test_two_processes_share_a_search_and_find_the_same(project, searched):
    words = ["stage=tune", *QUICK, "tune.name=shared"]
    other = small.process(project.root, *words)
    first = next(line for line in other.stdout if line.startswith("coarse"))
    ended = project.run(*words)
    out, err = other.communicate(timeout=120)
    assert (ended.code, other.returncode) == (0, 0), ended.err + err
    begun = re.findall(r"^((?:coarse|fine) \d)/", first + out + ended.out, flags=re.MULTILINE)
    assert sorted(begun) == ["coarse 1", "coarse 2", "coarse 3", "fine 1", "fine 2"], "each slot once"
    assert trials(project.root / "runs/noise/tune/shared") == trials(searched[1])


@pytest.mark.faults
def test_a_killed_processs_slot_is_done_by_the_other(project, searched):
    words = ["stage=tune", *QUICK, "tune.name=killed"]
    first = small.process(project.root, *words)
    for line in first.stdout:
        if line.startswith("coarse 2"):
            break
    first.kill()
    first.wait()
    ended = project.run(*words)
    assert ended.code == 0, ended.err
    assert trials(project.root / "runs/noise/tune/killed") == trials(searched[1])


def test_the_same_settings_are_trained_once(project, root):
    words = ["tune.method=random", "tune.trials=4", "tune.coarse_epochs=1", "tune.fine_trials=3", "tune.fine_epochs=1"]
    ended = project.run("stage=tune", "tune.space=head=choice(linear(),mlp(hidden=8))", *words)
    assert ended.code == 0, ended.err
    rows = trials(root / "runs/noise/tune/tiny-tuned")
    assert len({(row["head"], row["score"]) for row in rows[:4]}) == 2
    assert ended.out.count("whose score it shares") == 2
    assert [row["head"] for row in rows[4:]].count("") == 1, "the config as it stands"
    assert len(rows) == 4 + 1 + 2, "and each of the two"


def test_several_folds_score_a_trial_together(project, root):
    ended = project.run("stage=tune", *QUICK, "tune.folds=0,1", "tune.trials=1")
    assert ended.code == 0, ended.err
    folder = root / "runs/noise/tune/tiny-tuned"
    logs = [list(csv.DictReader((folder / f"trials/coarse-000/fold{fold}/log.csv").open())) for fold in (0, 1)]
    first = trials(folder)[0]
    assert float(first["score"]) == pytest.approx(np.mean([float(log[-1]["score"]) for log in logs]))
    assert first["epochs"] == "2"
    text = (root / "configs/model/tiny-tuned.yaml").read_text()
    assert "tuned on folds 0, 1: its OOF there is optimistic" in text


def test_trials_that_diverge_count_and_the_others_go_on(project, root, monkeypatch):
    whole = training.fit_member

    def fit_member(run, *rest):
        if run.config.lr > 5e-3:
            raise Diverged("the loss is nan")
        return whole(run, *rest)

    monkeypatch.setattr(training, "fit_member", fit_member)
    words = ["tune.method=grid", "tune.trials=3", "tune.coarse_epochs=1", "tune.fine_trials=0"]
    ended = project.run("stage=tune", "tune.space=lr=log(1e-4,1e-2)", *words)
    assert ended.code == 0, ended.err
    assert [row["ended"] for row in trials(root / "runs/noise/tune/tiny-tuned")] == ["done", "done", "diverged"]
    assert "1 diverged" in ended.out
    ended = project.run("stage=tune", "tune.space=lr=log(1e-2,1)", *words, "tune.name=wild")
    assert ended.code == 2
    assert "lower lr" in ended.err


def test_trials_hold_out_the_folds_that_score_them_and_their_schedule_is_their_own(root, project, monkeypatch):
    seen = []

    def fit_member(run, held_out, machine, folder, watch):
        table = training.materials(run, tuning.task_for(run.config, run.competition), held_out)[0]
        assert not set(table.rows) & set(np.flatnonzero(run.folds == held_out[0]))
        seen.append((held_out, run.config.epochs, run.config.select, run.config.seed))
        raise Diverged("enough")

    monkeypatch.setattr(training, "fit_member", fit_member)
    ended = project.run("stage=tune", *QUICK, "tune.folds=1", "epochs=7", "select=best", "seed=5")
    assert ended.code == 2
    assert seen == [((1,), 1, "last", 5)] * 3
    ended = project.run("stage=tune", *QUICK, "tune.folds=2")
    assert (ended.code, "tune.folds=2, but the folds are 0–1" in ended.err) == (2, True)


def test_without_optuna_the_message_names_the_install_command(project, root, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    ended = project.run("stage=tune")
    assert ended.code == 2
    assert ".venv/bin/pip install -c constraints.txt" in ended.err
