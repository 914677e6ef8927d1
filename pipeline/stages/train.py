"""Train members of a run: fold=0 | 0,2 | all | full; goes on where it was killed."""

from __future__ import annotations

import math
import os
import time

import numpy as np

from pipeline import advice, artefacts, evaluate, launch, limited, registry
from pipeline.artefacts import shown
from pipeline.competition import load
from pipeline.config import Config
from pipeline.console import Outcome, say, warn
from pipeline.errors import OutOfTime, UserError
from pipeline.folds import ensure_folds
from pipeline.rules import followers
from pipeline.runs import Run
from pipeline.tasks import task_for

OWN_FOLD = "selected on its own fold"
MOST_UNPAIRED = 0.5  # of the rows; more is worth a warning


def run(config: Config) -> list[Outcome]:
    """Train the members that ``fold=`` asks for; finished ones are left as they are."""
    return together([config])


def together(configs: list[Config]) -> list[Outcome]:
    """Train the members of several runs, side by side where the config says so."""
    runs = [begin(config) for config in configs]
    members = [(run, held_out) for run in runs for held_out in run.asked()]
    try:
        done = launch.each(WORK, members)
    except UserError:
        for run in runs:
            if not any(run.folder.rglob("*.ckpt")):
                run.file.unlink(missing_ok=True)  # nothing was trained, so that the mended settings are welcome
        raise
    except OutOfTime as end:
        raise OutOfTime("; ".join(f"{run.name}: {limited.stopped(run)}" for run in runs)) from end
    outcomes = []
    for run, span in zip(runs, launch.spans(members, done), strict=True):
        began = time.perf_counter() - span
        own = {held_out: at for (other, held_out), at in zip(members, done, strict=True) if other is run}
        if run.config.select == "common":
            choose_common_epoch(run)
        advise(run, [held_out for held_out, at in own.items() if at is not None])
        outcomes.append(outcome(run, time.perf_counter() - began, all(at is None for at in own.values())))
    return outcomes


def begin(config: Config) -> Run:
    """The run, with its settings compared or written; of a cluster, the machine that begins it writes them."""
    ensure_folds(config, load(config))
    run = Run(config, artefacts.run_name(config))
    if launch.elsewhere(config):
        run.expect()
    else:
        settle(run)
    if hint := advice.small_images(config):
        say(f"  {hint}")
    return run


def settle(run: Run, joining: bool = False) -> None:
    """Write what defines the run, and how long it trains."""
    run.settle(joining)
    if run.config.train.seconds:
        from pipeline import pace

        pace.settle(run)


def train(run: Run, held_out: tuple[int, ...]) -> None:
    """Train one member unless it is finished."""
    if not run.stored():  # this is the machine that begins it
        settle(run, joining=True)
    if run.is_trained(held_out):
        return
    folder = run.member(held_out)
    record, print_ = folder / "train.json", run.fingerprint_of(held_out)
    with artefacts.locked(folder):
        if run.is_trained(held_out):  # while this process waited
            return
        if record.exists() and not (folder / "best.ckpt").exists() and run.config.select != "last":
            (folder / "last.ckpt").unlink(missing_ok=True)  # it holds other weights than those of the chosen epoch
        limited.begin_member(run)
        from pipeline.training import train_member

        say(f"train {run.name} {folder.name}")
        if held_out == run.asked()[0]:
            warn_of_batches(run, held_out)
        artefacts.finish(record, print_, **train_member(run, held_out, print_))


def open_materials(run: Run, held_out: tuple[int, ...]) -> None:
    """Decode the images, and find the copies among outside ones, before several processes want them."""
    from pipeline import training

    training.materials(run, task_for(run.config, run.competition), held_out)


WORK = launch.Work("train", Run.is_trained, train, open_materials)


def warn_of_batches(run: Run, held_out: tuple[int, ...]) -> None:
    """Warn where batches are not those that the sampler means, and where losses of pairs find hardly any pair."""
    config = run.config
    arguments = registry.complete_arguments("samplers", config.sampler)
    meant = [arguments[name] for name in registry.facts("samplers", config.sampler).get("batch", ())]
    if meant and math.prod(meant) != config.batch_size:
        warn(
            f"sampler={config.sampler} makes batches of {math.prod(meant)} rows, but batch_size={config.batch_size} "
            f"cuts them elsewhere; set batch_size={math.prod(meant)}"
        )
    pairs = [call for call in config.pairs if not registry.facts("pairs", call).get("learned")]
    if pairs and (share := unpaired(run, held_out)) > MOST_UNPAIRED:
        p = max(2, config.batch_size // 4)
        warn(
            f"pairs={','.join(pairs)}: {share:.0%} of the rows meet none of their class in their batch, or none of "
            f"another, and teach nothing there; set sampler=identities(p={p},k=4) batch_size={4 * p}"
        )


def unpaired(run: Run, held_out: tuple[int, ...]) -> float:
    """The share of the first epoch's rows without a row of their own class or one of another in their batch."""
    config = run.config
    taught = task_for(config, run.competition).taught(run.competition.targets)[run.learned(held_out)]
    classes = taught.argmax(axis=1) if taught.ndim == 2 else taught
    weights = [np.ones(len(classes), dtype=np.float32)]
    given = [classes, *weights * bool(registry.facts("samplers", config.sampler).get("weighs"))]
    order = registry.build("samplers", config.sampler)(*given, np.random.default_rng([config.seed, 0]))
    size = min(config.batch_size, len(classes)) // config.devices or 1  # pairs are found within a device's share
    batches = classes[order[: len(classes) // size * size]].reshape(-1, size)
    same = np.array([(batch[:, None] == batch).sum(axis=1) for batch in batches])
    return float(((same == 1) | (same == size)).mean())


def advise(run: Run, trained: list[tuple[int, ...]]) -> None:
    """Say what the curves of the members trained now tell, if they tell something."""
    if not trained:
        return
    initial = artefacts.read_json(run.member(trained[0]) / "train.json").get("initial")
    folders = [run.member(held_out) for held_out in trained]
    logs = [advice.log(min(folder.rglob("log.csv"), default=folder / "log.csv")) for folder in folders]  # of one seed
    for line in advice.read_folds(logs, advice.facts(run.paced()[0], initial)):
        say(f"  advice: {line}")


def choose_common_epoch(run: Run) -> None:
    """select=common: once all folds are trained, the epoch with the best mean score predicts in each of them."""
    from pipeline.checkpoint import epoch_weights

    members = [run.member((fold,)) for fold in range(run.count)]
    if not all((member / "train.json").exists() for member in members):
        say("  select=common: the epoch is chosen once all folds are trained; until then the last one predicts")
        return
    records = [artefacts.read_json(member / "train.json") for member in members]
    shortest = min(len(facts["scores"]) for facts in records)  # with train.patience some folds stop earlier
    scores = np.array([facts["scores"][:shortest] for facts in records])
    better = evaluate.direction(run.config.metric)
    epoch = int((better * scores.mean(axis=0)).argmax()) + 1
    for member, facts in zip(members, records, strict=True):
        chosen = epoch_weights(member, epoch)
        if chosen.exists():
            os.replace(chosen, member / "best.ckpt")
            for other in member.glob("epoch*.ckpt"):
                other.unlink()
        if facts.get("common_epoch") != epoch:  # the record changes, so that older predictions are made anew
            artefacts.write_json(member / "train.json", {**facts, "common_epoch": epoch})
    say(f"  select=common: epoch {epoch} predicts in all folds")


def outcome(run: Run, seconds: float, reused: bool) -> Outcome:
    """The row of the closing table: the validation scores of the trained folds."""
    config = run.config
    records = {fold: run.member((fold,)) / "train.json" for fold in range(run.count)}
    facts = {fold: artefacts.read_json(path) for fold, path in records.items() if path.exists()}
    asked = [held_out[0] for held_out in run.asked() if held_out]
    final = [_final(facts[fold], config.select) for fold in asked if fold in facts and facts[fold]["scores"]]
    if not final:
        return Outcome("train", run.name, "no score: trained on everything", seconds=seconds, reused=reused)
    error = f" ± {np.std(final, ddof=1) / np.sqrt(len(final)):.4f}" if len(final) > 1 else ""
    note = {"last": "", "best": OWN_FOLD, "common": "one epoch for all folds"}[config.select]
    if config.train.patience:
        note = f"{note or 'last epoch'}, stopped early on its own fold"
    if following := followers(config):
        note = "; ".join(filter(None, [note, f"{OWN_FOLD}: {' '.join(following)}"]))
    note = "; ".join(part for part in (note, run.mark) if part)
    folds = "all folds" if len(final) == run.count else f"fold {','.join(map(str, asked))}"
    say(f"{shown(run.folder)}: {config.metric} {np.mean(final):.4f}{error} on {folds}" + (f" ({note})" if note else ""))
    score = f"{np.mean(final):.4f}{error}"
    return Outcome("train", run.name, score, seconds=seconds, reused=reused, note=note, facts={"folds": final})


def _final(facts: dict, select: str) -> float:
    if "final" in facts:  # of several epochs or seeds together
        return facts["final"]
    epoch = {"best": facts["best_epoch"], "common": facts.get("common_epoch", 0)}.get(select, 0)
    return facts["scores"][epoch - 1]  # 0: the last
