"""stage=stack of embeddings: what is written, submitted, reused, and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import small_tasks

from pipeline import fused, fusing, ranking, submission
from pipeline.__main__ import main
from pipeline.artefacts import Predictions
from pipeline.competition import load
from pipeline.config import compose, root
from pipeline.folds import ensure_folds
from pipeline.forms import EMBEDDING, unit
from pipeline.ranking import Search
from pipeline.tasks import task_for

WIDTHS = {"one": 6, "two": 10}


@pytest.fixture(params=small_tasks.ROLES)
def drawn(request, tmp_path, monkeypatch):
    """A drawn competition of each role, with two runs of different widths, whose members have spaces of their own."""
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    shutil.copytree(small_tasks.SOURCE / "configs", tmp_path / "configs")
    small_tasks.write_retrieval(tmp_path, request.param, identities=12)
    config = compose({"competition": "drawn", "model": "tiny"})
    competition = load(config)
    folds, tests = ensure_folds(config, competition), competition.test["id"].tolist()
    names, ids = competition.targets.iloc[:, 0].to_numpy(), competition.train["id"].to_numpy()
    for seed, (run, width) in enumerate(WIDTHS.items()):
        for fold in (0, 1):
            folder = tmp_path / "runs/drawn" / run / f"fold{fold}"
            rows = np.flatnonzero(folds == fold)
            embed(names[rows], ids[rows], width, [seed, fold]).save(folder / "oof.npz")
            embed([name[:5] for name in tests], tests, width, [seed, fold]).save(folder / "test.npz")
    return config


def embed(identities, ids, width: int, seed: list[int]) -> Predictions:
    """Each identity around a direction of its own."""
    generator = np.random.default_rng(seed)
    centres = {name: generator.normal(size=width) for name in sorted(set(identities))}
    noise = 0.9 * generator.normal(size=(len(ids), width))
    return Predictions(ids, unit(np.stack([centres[name] for name in identities]) + noise), EMBEDDING)


def level2() -> Path:
    return root() / "runs/drawn/level2/stack"


def joined(run: str) -> np.ndarray:
    """(n, 2 D): both members of a run side by side."""
    ids = Predictions.load(root() / f"runs/drawn/{run}/fold0/test.npz").ids
    both = [Predictions.load(root() / f"runs/drawn/{run}/fold{fold}/test.npz").align(ids).values for fold in (0, 1)]
    return np.concatenate(both, axis=1) / np.float32(np.sqrt(2))


def test_writes_fused_embeddings_and_submits_their_lists(drawn, capsys):
    assert main(["stage=stack", "stack.choose=mean", "stack.decisions=query_expansion(k=1)"]) == 0
    made = json.loads((level2() / "level2.json").read_text())
    nested, test = (Predictions.load(level2() / f"{name}.npz") for name in ("nested", "test"))
    assert nested.values.shape[1] == sum(WIDTHS.values())
    halves = [joined(run) for run in WIDTHS]
    np.testing.assert_allclose(test.values @ test.values.T, np.mean([h @ h.T for h in halves], axis=0), atol=1e-5)
    assert (made["method"], made["members"]) == ("mean", ["one", "two"])
    assert [one["method"] for one in made["nested"]][2:] == ["mean", "weights", "ranks"]
    assert [one["decision"].partition("(")[0] for one in made["decisions"]] == ["none", "query_expansion"]
    calls = made["settings"]["rerankings"]
    printed = capsys.readouterr().out
    assert "second-order leak" in printed
    assert printed.count("→") == 2
    assert f"{made['score']['score']:.4f}" in printed
    competition = load(drawn)
    task = task_for(drawn, competition)
    path = root() / "submissions/drawn/stack.csv"
    frame = submission.read(path, competition.sample, task.allowed(competition.sample))
    asked = frame["id"].tolist()
    shelf = [name for name in test.ids if name not in asked] or asked
    points, gallery = test.align(asked).values, test.align(shelf).values
    search = Search(points, points, alone=True) if shelf == asked else Search(points, gallery)
    places = ranking.reranked(search, calls).nearest(2)[1]
    assert frame["matches"].tolist() == [" ".join(shelf[place] for place in row) for row in places]


@pytest.mark.parametrize("drawn", ["gallery"], indirect=True)
def test_fused_ranks_stand_behind_what_the_user_set(drawn):
    """Their widths are those of one member, and serve all members side by side."""
    words = ["stage=stack", "stack.choose=ranks", "rerankings=query_expansion(k=1)"]
    assert main(words) == 0
    made = json.loads((level2() / "level2.json").read_text())
    assert made["settings"]["rerankings"] == ["query_expansion(k=1, alpha=3.0)", "reciprocal_ranks(widths=[3, 5])"]
    assert (level2() / "test.npz").is_file()
    facts = json.loads((root() / "submissions/drawn/stack.json").read_text())
    assert facts["nested"]["score"] == made["score"]["score"]


@pytest.mark.parametrize("drawn", ["pool"], indirect=True)
def test_finished_work_is_reused_until_something_changes(drawn, monkeypatch):
    words, built = ["stage=stack", "stack.decisions=none"], []
    build = fusing.build
    monkeypatch.setattr(fusing, "build", lambda *given: built.append(given) or build(*given))
    assert [main(words), main(words), len(built)] == [0, 0, 1]
    before = (level2() / "test.npz").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(fused, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main([*words, "rerankings=diffusion()"]) == 130
    assert not (level2() / "stack.json").exists(), "no record stands beside what it does not describe"
    assert [main(words), len(built)] == [0, 3]
    assert (level2() / "test.npz").read_bytes() == before


@pytest.mark.parametrize("drawn", ["gallery"], indirect=True)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stack.methods=ridge()"], "stack.methods=ridge(), but searches are fused by single, mean, weights, ranks"),
        (["stack.decisions=thresholds()"], "stack.decisions=thresholds()"),
        (["stack.choose=median"], "stack.choose=median, but searches are fused by"),
        (["stack.members=three"], "stage=predict competition=drawn run=three fold=0"),
    ],
)
def test_bad_input_is_one_message(drawn, words, message, capsys):
    assert main(["stage=stack", *words]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert not level2().exists()
