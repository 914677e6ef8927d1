"""stage=search: strategies against slow references, trials that read one fold nowhere, a search that goes on."""

from __future__ import annotations

import collections
import csv
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import small_training as small
import yaml

from pipeline import config, evaluate, genotypes, plots, registry, searching, training
from pipeline.errors import Diverged
from pipeline.searched import Found, Inner, Trial, front

SPACE = "small(stages=2,kinds=['plain','residual'],kernels=[3,5],widths=[4,8],depths=[1,2],groups=[1],pools=['max'])"
QUICK = ["stage=search", f"search.space={SPACE}", "search.strategy=evolution(population=2,sample=2)", "search.trials=4",
         "search.epochs=1", "train.checkpoint_seconds=0"]  # fmt: skip


@pytest.fixture
def root(project) -> Path:
    small.write(project.root, rows=36, folds=3)
    return project.root


def space(text: str = "small()", size: int = 16):
    return registry.build("architectures", text)(size)


def generator(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- spaces ---------------------------------------------------------------------------------------------------------


def choices(text: str) -> list[object]:
    """What a genotype chose, one after the other."""
    made = genotypes.read(text)
    each = [(one.kind, one.kernel, one.width, one.depth, one.groups) for one in made.stages]
    return [*(part for stage in each for part in stage), made.norm, made.pool]


def test_a_space_draws_all_of_it_and_a_mutation_changes_one_choice() -> None:
    own = space("small(stages=2,widths=[8,16],groups=[1,4],pools=['max','conv'],norms=['batch','group'])")
    drawn = [genotypes.read(own.draw(generator(seed))) for seed in range(300)]
    assert {one.kind for made in drawn for one in made.stages} == set(genotypes.KINDS.values())
    assert [{made.stages[place].width for made in drawn} for place in (0, 1)] == [{8, 16}, {16, 32}]
    assert {made.norm for made in drawn} == {"batch", "group"}
    changed = collections.Counter()
    for seed, made in enumerate(drawn):
        after = own.mutate(str(made), generator(seed, 1))
        other = genotypes.read(after)
        moved = [k for k, (a, b) in enumerate(zip(choices(str(made)), choices(after), strict=True)) if a != b]
        kinds = [place for place in moved if place in (0, 5)]
        assert moved == kinds or len(moved) == 1 or len(kinds) == 1, "a new kind may bring or drop groups"
        assert after != str(made)
        assert {one.width for one in other.stages} <= {8, 16, 32}
        changed[moved[0] if moved else "expansion"] += 1
    assert len(changed) >= 12, "every choice is changed by some mutation"


def test_the_space_of_timm_is_names_patterns_and_sizes() -> None:
    own = space("timm(names=['resnet1[0-9]*','mobilenetv3_small_050'],most=6)", 32)
    assert {"resnet10t", "resnet18", "mobilenetv3_small_050"} <= set(own.names)
    assert own.mutate(own.draw(generator(0)), generator(1)) in own.names
    assert [own.fits(count) for count in (5_900_000, 6_100_000)] == [True, False]


REFUSED = {
    "search.space=small(kernals=[3])": "did you mean kernels?",
    "search.space=small(kinds=['plane'])": "kinds='plane'",
    "search.space=small(kernels=[4])": "4 is none of 3, 5, 7",
    "search.space=small(widths=[])": "at least one",
    "search.space=small(depths=[1,1])": "each choice once",
    "search.space=small(stages=8)": "leaves nothing",
    "search.space=smal()": "did you mean small?",
    "search.space=timm(names=['resnet81'])": "did you mean resnet18?",
    "search.space=timm(names=['nosuch*'])": "no name in timm is like",
    "search.space=timm(least=5,most=1)": "least is above most",
    "search.strategy=evolutoin()": "did you mean evolution?",
    "search.strategy=gumbel(start=1.0,end=2.0)": "the temperature falls",
    "search.strategy=gumbel(width=5)": "widths are 8, 16, 24, 32",
    "search.strategy=gumbel() search.space=timm()": "has whole nets",
    "pretrained=true": "add pretrained=false",
    "stem=small()": "leave it out",
    "search.inner=0": "both 0",
    "train.soft=soft": "leaves unread",
    "devices=2": "set devices=1",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_does_not_fit_is_refused_before_any_data(project, root, words: str) -> None:
    ended = project.run("stage=search", *words.split())
    assert ended.code == 2
    assert REFUSED[words] in ended.err
    assert not (root / "folds").exists()


# --- strategies -----------------------------------------------------------------------------------------------------


def toy(text: str) -> float:
    """A score that only the genotype decides: blocks of kernel 5 are good, plain ones bad."""
    return sum((one.kernel == 5) - (one.kind == "p") + one.depth / 10 for one in genotypes.read(text).stages)


def slow_evolution(own, trials: int, population: int, sample: int) -> list[str]:
    """Real et al. 2019, algorithm 1, line by line, with a queue and a history."""
    queue: collections.deque = collections.deque()
    history = []
    while len(history) < trials:
        numbers = generator(len(history))
        if len(history) < population:
            model = own.draw(numbers)
        else:
            picks = [queue[place] for place in numbers.integers(len(queue), size=sample).tolist()]
            parent = picks[0]
            for one in picks[1:]:
                if toy(one) > toy(parent):
                    parent = one
            model = own.mutate(parent, numbers)
        queue.append(model)
        history.append(model)
        if len(queue) > population:
            queue.popleft()
    return history


@pytest.mark.parametrize(("population", "sample"), [(5, 3), (8, 1), (1, 2)])
def test_evolution_ages_and_holds_tournaments(population: int, sample: int) -> None:
    own = space()
    searcher = registry.build("searchers", f"evolution(population={population},sample={sample})")(own)
    history: list[tuple[str, float]] = []
    while len(history) < 30:
        model = next(searcher.proposals(history, generator(len(history))))
        history.append((model, toy(model)))
    assert [model for model, _ in history] == slow_evolution(own, 30, population, sample)


def test_evolution_climbs_where_random_search_does_not() -> None:
    def last(strategy: str) -> float:
        searcher, history = registry.build("searchers", strategy)(space()), []
        while len(history) < 80:
            model = next(searcher.proposals(history, generator(len(history))))
            history.append((model, toy(model)))
        return float(np.mean([score for _, score in history[-20:]]))

    assert last("evolution(population=12,sample=6)") > last("random_search()") + 1


# --- costs, front, winner -------------------------------------------------------------------------------------------


def trial(cost: float, score: float, ended: str = "done") -> Trial:
    return Trial("small_image()", cost, round(cost), score, 0.01, ended, 1.0)


def test_the_front_holds_what_nothing_beats() -> None:
    drawn = [(float(cost), float(score)) for cost, score in generator(3).integers(0, 8, (40, 2))]
    for sign in (1, -1):
        best = front(drawn, sign)
        worth = [(cost, sign * score) for cost, score in drawn]
        slow = {point for point, (cost, own) in zip(drawn, worth, strict=True)
                if not any((c < cost and s >= own) or (c <= cost and s > own) for c, s in worth)}  # fmt: skip
        assert {drawn[at] for at in best} == slow
        assert len(best) == len(slow)
        assert [drawn[at][0] for at in best] == sorted(drawn[at][0] for at in best)


def test_costs_are_the_sum_of_the_weights_and_measured_once(root, monkeypatch, tmp_path) -> None:
    run = Inner(small.config(search__cost="milliseconds"), "tiny")
    text = "searched(stages='r3w8x1,i5w16e4x2', norm='batch', pool='conv')"
    costs = searching.Costs(run, tmp_path)
    for backbone in (text, "small_image(width=4)", "mobilenetv3_small_050"):
        whole = searching.built(run, backbone)
        assert costs.weights(backbone) == sum(weight.numel() for weight in whole.parameters())
    asked = []
    monkeypatch.setitem(searching.MEASURES, "milliseconds", lambda run, piece: asked.append(str(piece)) or 2.0)
    assert costs.of(text) == 4.0
    assert len(asked) == 2
    assert searching.Costs(run, tmp_path).of(text) == 4.0, "another process reads what was measured"
    assert len(asked) == 2


def test_a_row_error_is_that_of_a_mean_and_of_draws(root) -> None:
    task = searching.task_for(small.config(), Inner(small.config(), "tiny").competition)
    truth = np.arange(200) % 3
    values = np.eye(3, dtype=np.float32)[(truth + (generator(0).random(200) < 0.3)) % 3]
    own = evaluate.metric("accuracy()", task)
    share = own(truth, values)
    expected = math.sqrt(share * (1 - share) / 199)
    assert evaluate.row_error(own, truth, values) == pytest.approx(expected)
    drawn = evaluate.row_error(evaluate.metric("f1_macro()", task), truth, values)
    assert 0.5 * expected < drawn < 2 * expected


# --- rows -----------------------------------------------------------------------------------------------------------


def test_no_trial_reads_the_fold_that_stays_unread(root, project, tmp_path) -> None:
    """With other labels in that fold, weights, predictions and score are the same to the last bit."""
    assert project.run("stage=split").code == 0
    asked = small.config(search__epochs=1, search__fold=2, search__inner=0)
    found = []
    for name, shift in (("as_they_are", 0), ("poisoned", 1)):
        run = Inner(config.replace(asked, epochs=1), "tiny")
        rows = run.folds == 2
        targets = run.competition.targets.copy()
        labels = targets.loc[rows, "label"].map({"a": "b", "b": "c", "c": "a"} if shift else lambda label: label)
        targets.loc[rows, "label"] = labels
        run.__dict__["competition"] = dataclasses.replace(run.competition, targets=targets)
        score = searching.score_of(run, tmp_path / name)
        found.append((score, small.weights(tmp_path / name / "best.ckpt")))
        table = training.materials(run, searching.task_for(run.config, run.competition), run.held_out)[0]
        assert set(run.folds[table.rows]) == {1}
        assert set(run.folds[run.rows]) == {0}
    assert found[0][0] == found[1][0]
    assert small.same(found[0][1], found[1][1])


# --- the stage ------------------------------------------------------------------------------------------------------


def rows_of(root: Path, name: str = "tiny-searched") -> list[dict[str, str]]:
    return list(csv.DictReader((root / f"runs/noise/search/{name}/trials.csv").open()))


def test_a_search_writes_a_model_and_goes_on_with_the_same_draws(project, root, monkeypatch) -> None:
    ended = project.run(*QUICK)
    assert ended.code == 0, ended.err
    whole, folder = rows_of(root), root / "runs/noise/search/tiny-searched"
    assert [row["trial"] for row in whole] == ["1", "2", "3", "4", "reference"]
    text = (root / "configs/model/tiny-searched.yaml").read_text()
    layer = yaml.safe_load(text)
    best = max(whole[:4], key=lambda row: (float(row["score"]), -float(row["cost"])))
    assert (layer["backbone"], layer["tuned"], layer["epochs"]) == (best["backbone"], [1], 3)
    for words in ("4 trials of 1 epoch, evolution(", "fold 0 was not read", "tuned on fold 1: its OOF there is",
                  "weights of the backbone", "./run.sh stage=search competition=noise model=tiny", " ± "):  # fmt: skip
        assert words in text.replace("\n# ", " "), words
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert not [*folder.rglob("*.ckpt")], "trials keep nothing large"
    again = project.run(*QUICK)
    assert again.out.strip() in ended.out, "nothing is trained twice"

    shown_first = text
    trained, fit = [], training.fit_member

    def killed(run, *rest, **more):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(run.config.backbone)
        return fit(run, *rest, **more)

    monkeypatch.setattr(training, "fit_member", killed)
    assert project.run(*QUICK, "overwrite=true").code == 130
    monkeypatch.setattr(training, "fit_member", fit)
    assert project.run(*QUICK).code == 0
    assert [row["backbone"] for row in rows_of(root)] == [row["backbone"] for row in whole]
    assert [row["score"] for row in rows_of(root)] == [row["score"] for row in whole]
    now = (root / "configs/model/tiny-searched.yaml").read_text()
    assert yaml.safe_load(now) == yaml.safe_load(shown_first)

    trained.clear()
    more = project.run(*QUICK, "search.trials=5")
    assert more.code == 0, more.err
    assert [row["backbone"] for row in rows_of(root)][:4] == [row["backbone"] for row in whole[:4]]
    other = project.run(*QUICK, "lr=1e-3")
    assert (other.code, "lr: 0.003 → 0.001" in other.err, "search.name=tiny-searched-2" in other.err) == (2, True, True)

    ended = project.run("stage=train", "model=tiny-searched", "epochs=1", "fold=1")
    assert ended.code == 0, ended.err
    assert "tuned on fold 1" in ended.out


def scored(monkeypatch) -> list[str]:
    """Trials that take no time: the score says how deep a net is; returns the networks in their order."""
    seen: list[str] = []

    def score_of(run, folder):
        folder.mkdir(parents=True, exist_ok=True)
        seen.append(run.config.backbone)
        if "p5" in run.config.backbone:
            raise Diverged("the loss is nan; lower lr")
        return 0.5 + toy(run.config.backbone) / 100 if "searched" in run.config.backbone else 0.5, 0.01

    monkeypatch.setattr(searching, "score_of", score_of)
    return seen


def test_a_limit_holds_and_a_space_may_be_used_up(project, root, monkeypatch) -> None:
    seen = scored(monkeypatch)
    ended = project.run(*QUICK, "search.limit=3000")
    assert ended.code == 0, ended.err
    begun = root / "runs/noise/search/tiny-searched/begun.json"
    content = json.loads(begun.read_text())
    del content["settings"]["consistency"]
    begun.write_text(json.dumps(content))
    count = len(seen)
    for _ in range(2):  # the first makes trials as a version without that key would
        ended = project.run(*QUICK, "search.limit=3000")
        assert ended.code == 0, ended.err
        assert len(seen) == 2 * count
    assert all(int(row["weights"]) <= 3000 for row in rows_of(root)[:4])
    ended = project.run(*QUICK, "search.limit=50", "search.name=none")
    assert ended.code == 2
    assert "the cheapest has" in ended.err
    tiny = SPACE.replace("stages=2", "stages=1").replace("'plain',", "").replace("[3,5]", "[3]").replace("[4,8]", "[4]")
    ended = project.run(*QUICK, f"search.space={tiny}", "search.name=used-up", "search.strategy=random_search()")
    assert ended.code == 0, ended.err
    assert "all 2 networks that there are" in ended.out
    ended = project.run(*QUICK, f"search.space={tiny}", "search.name=half", "search.limit=1000")
    assert (ended.code, len(rows_of(root, "half"))) == (0, 2), "the other one is beyond the limit"
    assert len(rows_of(root, "used-up")) == 3


def test_a_diverged_trial_counts_and_a_budget_leaves_the_best_so_far(project, root, monkeypatch) -> None:
    seen = scored(monkeypatch)
    words = [*QUICK, "search.strategy=random_search()", "search.trials=12"]
    monkeypatch.setattr(searching.budget, "over", lambda: len(seen) > 8)
    ended = project.run(*words, "budget=1h")
    assert ended.code == 0, ended.err
    assert "8 of 12 trials are finished; all finished work is kept" in ended.out
    first = (root / "configs/model/tiny-searched.yaml").read_text()
    assert "8 trials of 12, unfinished, of 1 epoch" in first
    monkeypatch.setattr(searching.budget, "over", lambda: False)
    ended = project.run(*words)
    assert ended.code == 0, ended.err
    assert len(seen) == 13
    table = rows_of(root)
    assert {row["ended"] for row in table} == {"done", "diverged"}
    assert "unfinished" not in (root / "configs/model/tiny-searched.yaml").read_text()
    (root / "configs/model/tiny-searched.yaml").write_text("lr: 0.1\n")
    ended = project.run(*words, "search.choose=cheapest")
    assert (ended.code, "did not write it" in ended.err) == (2, True)


def test_folds_must_leave_rows_to_learn_from(project, root) -> None:
    ended = project.run(*QUICK, "search.inner=3")
    assert (ended.code, "search.inner=3, but the folds are 0–2" in ended.err) == (2, True)
    (root / "folds/noise.csv").unlink()
    ended = project.run(*QUICK, "folds.count=2")
    assert (ended.code, "no row is left to learn from" in ended.err) == (2, True)


def test_the_cheapest_within_an_error_of_the_best(root, monkeypatch, tmp_path) -> None:
    trials = [trial(9, 0.90), trial(1, 0.895), trial(2, 0.899), trial(0.5, 0.80), trial(0.1, 0.99, "diverged")]
    run = Inner(small.config(search__choose="cheapest"), "tiny")
    found = Found(run, tmp_path, trials, trial(5, 0.85))
    gain = lambda self, base, other: (trials[int(other)].score - trials[int(base)].score, 0.006)  # noqa: E731
    monkeypatch.setattr(Found, "_gain", gain)
    assert found.winner == 1
    assert Found(Inner(small.config(), "tiny"), tmp_path, trials, trial(5, 0.85)).winner == 0
    assert found.ranked == [0, 2, 1, 3]


@pytest.mark.parametrize(("costs", "shown"), [((0.15, 0.35, 0.9), "0.4"), ((20e3, 90e3, 400e3), "50k")])
def test_costs_are_drawn_in_their_unit(monkeypatch, tmp_path, costs, shown) -> None:
    """Tenths of a millisecond are no "400m" of them."""
    drawn = []
    monkeypatch.setattr(plots, "_write", lambda figure, path: (drawn.append(figure), path)[1])
    trials = [(cost, 0.5 + place / 10) for place, cost in enumerate(costs)]
    plots.front("found", "cost", "accuracy()", trials, trials, (*trials[1], 0.01), None, 0.0, tmp_path / "p.png")
    ticks = [tick.get_text() for tick in drawn[0].axes[0].get_xticklabels()]
    assert shown in ticks
    assert not any(text.endswith("m") for text in ticks)
