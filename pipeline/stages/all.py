"""All: the recipe, an ordered list of stages; finished steps are skipped, an interrupted one goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import artefacts, console, limited, stages
from pipeline.config import Config, compose, read_yaml, replace, root
from pipeline.console import Outcome, say
from pipeline.errors import OutOfTime, UserError, nearest, some
from pipeline.stages.sanity import CheckFailed


def run(config: Config) -> list[Outcome]:
    """Run the recipe's steps in order and print the closing table."""
    steps = plan(config)
    outcomes: list[Outcome] = []
    recipe = limited.Recipe(config, [step for _, step in steps])
    try:
        number = 0
        for group in grouped(steps):
            for title, _ in group:
                number += 1
                say(f"[{number}/{len(steps)}] {title}")
            outcomes += run_steps([step for _, step in group], recipe)
    finally:
        console.close(outcomes)
    rows = [{k: v for k, v in vars(outcome).items() if k not in ("seconds", "reused")} for outcome in outcomes]
    artefacts.write_json(artefacts.runs_folder(config) / f"recipe-{config.recipe}.json", rows)
    if recipe.left_out:
        raise OutOfTime(f"budget={config.budget} left out or stopped {', '.join(dict.fromkeys(recipe.left_out))}")
    return outcomes


def grouped(steps: list[tuple[str, Config]]) -> list[list[tuple[str, Config]]]:
    """The steps in groups that run at the same time: of one each, unless members may be side by side."""
    groups: list[list[tuple[str, Config]]] = []
    for title, step in steps:
        if groups and stages.go_together(groups[-1][-1][1], step):
            groups[-1].append((title, step))
        else:
            groups.append([(title, step)])
    return groups


def run_steps(steps: list[Config], recipe: limited.Recipe) -> list[Outcome]:
    """Run a step, or several together, as far as the budget allows; a failed sanity check warns: a recipe must end."""
    fitted = [recipe.fitting(step) for step in steps]
    outcomes = [_unfinished(step, why) for step, why in fitted if why]
    left = [step for step, why in fitted if not why]
    try:
        rows = stages.run_together(left) if len(left) > 1 else [row for step in left for row in run_step(step)]
    except OutOfTime as end:
        rows = [_unfinished(step, recipe.stop(step, end)) for step in left]
    return outcomes + rows


def _unfinished(step: Config, why: str) -> Outcome:
    name = artefacts.run_name(step)
    say(f"  {step.stage} {name}: {why}")
    return Outcome(step.stage, name, note=why)


def run_step(step: Config) -> list[Outcome]:
    """Run one step; a failed sanity check warns, since a recipe must end."""
    try:
        return stages.run_stage(step)
    except CheckFailed as failed:
        console.warn(str(failed))
        return [Outcome(step.stage, artefacts.run_name(step), note="a check failed, see above")]


def plan(config: Config) -> list[tuple[str, Config]]:
    """The title and settings of every step, checked before the first one starts."""
    if config.fold != ["all"]:
        raise UserError(
            f"stage=all runs all folds, but fold={','.join(config.fold)}; leave fold out, or run the stages alone"
        )
    path = Path(f"configs/recipe/{config.recipe}.yaml")
    there = sorted(found.stem for found in (root() / "configs/recipe").glob("*.yaml"))
    if config.recipe not in there:
        raise UserError(f"recipe={config.recipe}, but there are {', '.join(there)}{nearest(config.recipe, there)}")
    content = read_yaml(path)
    listed = content.get("steps") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{path} must hold steps: a list of stages, such as - stage: train")
    return [settings for step in listed for settings in _expand(config, _mapping(step, path), path)]


def _expand(config: Config, step: dict[str, Any], path: Path) -> list[tuple[str, Config]]:
    """model: all gives a step for each of models; first and last name one of them."""
    stage = str(step.pop("stage"))
    stages.check_name(stage)
    if stage == "all":
        raise UserError(f"{path}: a recipe cannot hold stage: all")
    given = config.arguments.get("model")
    models = [given] if given else config.models
    names = {"all": models, "first": models[:1], "last": models[-1:]}
    wanted, title = step.pop("model", "first"), f"{stage} {{}}" if "model" in step or stage == "train" else stage
    chosen = names.get(wanted, [given or wanted])
    arguments = {k: v for k, v in config.arguments.items() if k not in ("stage", "model", "run")}
    run = config.arguments.get("run", "")
    settings = []
    for model in chosen:
        own = compose(arguments, {**step, "model": model})
        name = own.run or (f"{run}-{model}" if run and len(models) > 1 else run)
        if stage == "distill" and name:  # the student is a run of its own, never its teacher's
            name = f"{name}-distilled"
        settings.append((title.format(name or model), replace(own, stage=stage, run=name)))
    return settings


def _mapping(step: Any, path: Path) -> dict[str, Any]:
    if isinstance(step, str):
        return {"stage": step}
    if not isinstance(step, dict) or "stage" not in step:
        raise UserError(
            f"{path}: {step!r} is no step; write - stage: NAME with the keys it changes, of {some(stages.names(), 20)}"
        )
    return dict(step)
