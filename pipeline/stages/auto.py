"""Auto: nets, image sizes, epochs and steps that fit a budget on this machine, by short measurements; then the recipe.

The choice is written down before the first step, in ``runs/<competition>/auto-<budget>.json`` and in model files, and
is not measured again: the same command goes on where it was stopped, on another machine too.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import yaml

from pipeline import artefacts, budget, limited, planning
from pipeline.artefacts import shown
from pipeline.competition import Competition, load
from pipeline.config import Config, compose, read_named, replace, root, scoped
from pipeline.console import Outcome, say, warn
from pipeline.errors import UserError
from pipeline.folds import ensure_folds
from pipeline.planning import Candidate, Choice, Pace, Plan
from pipeline.runs import Run
from pipeline.stages import all as recipe

MEASURING = 0.15  # of the budget, after which no further net is measured
CHOSEN = ("backbone", "image_size", "epochs", "model", "models", "stage", "overwrite", "run")  # not for the recipe


def run(config: Config) -> list[Outcome]:
    """Measure, choose, write the model files, and run the recipe within what is left of the budget."""
    began = time.perf_counter()
    limit = budget.limit()
    if limit is None:
        raise UserError("stage=auto needs to know how long it may take: budget=2h, or 30m")
    if config.run:
        raise UserError(f"run={config.run}, but stage=auto names its runs by the budget; leave run out")
    competition = load(config)
    ensure_folds(config, competition)
    record = artefacts.runs_folder(config) / f"auto-{config.budget}.json"
    print_ = fingerprint(config, competition)
    made = None if config.overwrite else artefacts.finished(record, print_)
    reused = made is not None
    if made is None:
        check_free(config, record)
        made = artefacts.finish(record, print_, **choose(config, competition, limit))
    names = write(config, made["layers"])
    for line in made["lines"]:
        say(line)
    say(f"  {shown(record)}, {', '.join(f'configs/model/{name}.yaml' for name in names)}")
    outcome = Outcome("auto", names[0], seconds=time.perf_counter() - began, note=made["note"], reused=reused)
    return [outcome, *recipe.run(settings(config, names, made["recipe"]))]


def fingerprint(config: Config, competition: Competition) -> str:
    """Of what the choice depends on; not of the machine, where a stopped command may go on elsewhere."""
    asked = dict(scoped(config, "run"))
    return artefacts.fingerprint(
        "auto", asked, config.models, vars(config.auto), competition.fingerprint, config.budget
    )


def settings(config: Config, names: list[str], steps: str) -> Config:
    """The recipe's config: that of the command, with the models that were written."""
    kept = {key: text for key, text in config.arguments.items() if key not in CHOSEN and not key.startswith("auto.")}
    return compose({**kept, "stage": "all", "models": ",".join(names), "recipe": steps})


# --- measuring ------------------------------------------------------------------------------------------------------


def choose(config: Config, competition: Competition, limit: budget.Limit) -> dict[str, Any]:
    """The plan as plain values: model layers, the recipe, and the lines that tell it."""
    sample = Run(config, "auto")
    folds, after = sample.count, limited.afterwards(config, sample, limit)
    paces, notes = measured(config, limit, folds, after, len(competition.test))
    seconds = planning.TRAINING * max(limit.left() - after, 1.0)
    share = len(competition.test) / max(len(competition.train), 1)
    plan = planning.plan(paces, seconds, folds, config.epochs, share)
    return {
        "layers": [planning.layer(choice) for choice in plan.choices],
        "recipe": "auto_pseudo" if plan.pseudo else "auto",
        "lines": told(config, paces, notes, plan, seconds, folds),
        "note": "; ".join(f"{one.pace.candidate}, {one.epochs} epochs" for one in plan.choices),
    }


def measured(config: Config, limit: budget.Limit, folds: int, after: float, test: int) -> tuple[list[Pace], list[str]]:
    """The paces of the candidates, and why others have none; after: seconds kept for what follows the trainings."""
    paces: list[Pace] = []
    notes: list[str] = []
    whole = limit.left()
    for candidate in planning.candidates(config):
        if paces and whole - limit.left() > MEASURING * whole:
            notes.append(f"{candidate} and what follows: not measured, {MEASURING:.0%} of the budget are used up")
            break
        try:
            pace = measure(config, candidate, test)
        except (UserError, RuntimeError) as fault:
            notes.append(f"{candidate}: {str(fault).splitlines()[0]}")
            continue
        paces.append(pace)
        say(f"  {candidate}: {pace.epoch:.3g} s an epoch of a member")
        if planning.hopeless(pace, planning.TRAINING * (limit.left() - after), folds, config.epochs):
            notes.append(f"what is larger than {candidate}: not measured")
            break
    if not paces:
        raise UserError(f"none of the nets can be trained here: {'; '.join(notes)}; name others, auto.backbones=…")
    return paces, notes


def measure(config: Config, candidate: Candidate, test: int) -> Pace:
    """A few training steps and a part of a validation of a member that is then thrown away."""
    from pipeline import pace

    own = planning.layer(Choice(Pace(candidate, 1.0, 0.0), config.epochs))
    run = Run(with_layer(config, own), "auto")
    speed = pace.measured(run)
    predicting = speed.validation * (1 + test * run.count / max(len(run.scored), 1))
    looks = len(config.views) * len(config.scales)
    return Pace(candidate, speed.batches * speed.batch + speed.validation, predicting * looks)


def with_layer(config: Config, layer: dict[str, Any]) -> Config:
    """The config with a model file's settings; those of the command line beat them."""
    given = {key: value for key, value in layer.items() if key not in config.arguments or key in CHOSEN}
    return replace(config, **{key.replace(".", "__"): value for key, value in given.items()})


def told(
    config: Config, paces: list[Pace], notes: list[str], plan: Plan, seconds: float, folds: int
) -> list[str]:  # fmt: skip
    """What was measured and chosen, and why."""
    width = max(len(str(pace.candidate)) for pace in paces)
    lines = [f"auto: budget={config.budget}; {budget.spell(seconds)} of it for {folds} folds of each net"]
    for pace in paces:
        fits = pace.epochs(seconds, folds)
        lines.append(f"  {pace.candidate!s:<{width}}  {pace.epoch:>7.3g} s an epoch of a member  {fits:>4} epochs fit")
    lines += [f"  left out: {note}" for note in notes]
    return [*lines, *(f"  → {reason}" for reason in plan.reasons), f"  about {budget.spell(plan.seconds)} in all"]


# --- writing --------------------------------------------------------------------------------------------------------


def names_of(config: Config, count: int) -> list[str]:
    """Of the model files: auto_2h, auto_2h_second."""
    return [f"auto_{config.budget}{ending}" for ending in ("", "_second")][:count]


def check_free(config: Config, record: Path) -> None:
    """Never write over a model file that an earlier choice did not write."""
    before = artefacts.recorded(record) or {}
    for name, layer in zip(names_of(config, 2), [*before.get("layers", []), None, None], strict=False):
        path = root() / "configs/model" / f"{name}.yaml"
        if path.exists() and not config.overwrite and (layer is None or read_named("model", name) != layer):
            raise UserError(
                f"{shown(path)} exists and stage=auto did not write it as it is; overwrite=true replaces it"
            )
    if before and not config.overwrite:
        warn(f"{shown(record)} was made for other settings or data, and is measured anew")


def write(config: Config, layers: list[dict[str, Any]]) -> list[str]:
    """The model files; those that stand as they should are left alone."""
    names = names_of(config, len(layers))
    for name, layer in zip(names, layers, strict=True):
        path = root() / "configs/model" / f"{name}.yaml"
        if not path.exists() or read_named("model", name) != layer:
            head = f"# Chosen by ./run.sh stage=auto budget={config.budget} for {config.competition}, by speed alone.\n"
            artefacts.write_text(path, head + yaml.safe_dump(layer, sort_keys=False, allow_unicode=True, width=1000))
    return names
