"""Select: rank images without labels by what a label of theirs should teach, so that people label the best first.

Entropy, margin, disagreement of folds (and of views, with ``active.views=true``) and diversity (greedy k-centre on the
run's embedding, from the labelled images on), mixed by ``active.weights`` of their ranks; see ``pipeline/active.py``.
Members predict what nobody labelled, and two of them have seen every training label together: nothing here is a score.
``select.csv`` lists the images, the best first; ``select.html`` is a page on which people label them, and
``stage=absorb labels=FILE`` takes their labels in.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from pipeline import active, artefacts, images, labelling
from pipeline.active import DISAGREEMENT, DIVERSITY, Opinions, Space
from pipeline.artefacts import Predictions, shown
from pipeline.config import Config, flatten, scoped
from pipeline.console import Outcome, say, warn
from pipeline.errors import UserError, some
from pipeline.runs import Run
from pipeline.tasks import Task, facts, task_for

VERSION = 1  # raise it when the same files must give another ranking
TABLE, RECORD, PAGE = "select.csv", "select.json", "select.html"
SEEN = "select.npz"  # of a member: what it says where no other file of it does
TEST, UNLABELLED = "test", "unlabelled"


@dataclass(frozen=True)
class Pool:
    """The images that may be labelled. frame: columns id, file, pool (test or unlabelled), place (in that table)."""

    frame: pd.DataFrame

    @property
    def counts(self) -> str:
        """How many there are of each kind, in words."""
        kinds = self.frame["pool"].value_counts()
        words = {TEST: "test images", UNLABELLED: "unlabelled images"}
        return " and ".join(f"{kinds[kind]} {words[kind]}" for kind in words if kind in kinds)

    def places(self, kind: str) -> np.ndarray:
        """(n,) int64, the rows of a kind's own table."""
        return self.frame["place"].to_numpy(dtype=np.int64)[(self.frame["pool"] == kind).to_numpy()]


@dataclass(frozen=True)
class Work:
    """A run whose members are asked about a pool."""

    run: Run
    pool: Pool

    @cached_property
    def task(self) -> Task:
        """The run's task."""
        return task_for(self.run.config, self.run.competition)

    @cached_property
    def asked(self) -> list[tuple[int, ...]]:
        """The members that ``fold=`` asks for."""
        return self.run.asked()

    @property
    def views(self) -> bool:
        """Whether each view and scale counts as an opinion of its own."""
        return self.run.config.active.views


def run(config: Config) -> list[Outcome]:
    """Write select.csv into the run's folder, or say that it stands."""
    began = time.perf_counter()
    check_named(config)
    run = Run(config, artefacts.run_name(config))
    run = Run(run.as_trained() if run.has_networks else config, run.name)
    work = Work(run, pool_of(run))
    weights = criteria(work)
    print_ = fingerprint(work, weights)
    known = None if config.overwrite else done(run, print_)
    found = known or make(work, weights, print_)
    report(work, found)
    note = f"{found['count']} of {work.pool.counts}; {shown(run.folder / TABLE)}"
    return [Outcome("select", run.name, seconds=time.perf_counter() - began, note=note, reused=bool(known))]


def done(run: Run, print_: str) -> dict[str, Any] | None:
    """What the record says, if all that it names still stands."""
    known = artefacts.finished(run.folder / RECORD, print_, run.folder / TABLE)
    return known if known and all((run.folder / name).exists() for name in known["pages"]) else None


# --- what is asked ------------------------------------------------------------------------------------------------


def check_named(config: Config) -> None:
    """UserError for criteria that mean nothing for the task, from the config alone."""
    from pipeline.forms import FORMS, MAPS

    form = {**FORMS, **MAPS}.get(facts(config.task)["form"])
    there = active.possible(form) if form else (DIVERSITY,)
    wrong = [name for name in config.active.criteria if name not in there]
    if wrong:
        raise UserError(
            f"active.criteria={','.join(config.active.criteria)}, but {wrong[0]} means nothing for task={config.task}, "
            f"which predicts {facts(config.task)['form']}; it has {', '.join(there)}"
        )
    if config.active.views and form and form.spatial:
        raise UserError(
            f"active.views=true is not made for task={config.task}, whose maps are the mean over views; leave it out"
        )


def pool_of(run: Run) -> Pool:
    """The images without labels: test images and those of data.unlabelled, as active.pool says."""
    config, competition = run.config, run.competition
    tables = {TEST: competition.test, UNLABELLED: competition.unlabelled}
    kinds = list(tables) if config.active.pool == "all" else [config.active.pool]
    frames = [tables[kind].assign(pool=kind, place=np.arange(len(tables[kind]))) for kind in kinds]
    whole = pd.concat(frames, ignore_index=True)
    frame = whole[~whole["file"].isin(competition.train["file"])].reset_index(drop=True)
    if frame.empty:
        key = "data.unlabelled is empty" if not config.data.unlabelled else "all of them have labels"
        raise UserError(f"active.pool={config.active.pool}, but no image without a label is left: {key}")
    return Pool(frame)


def criteria(work: Work) -> dict[str, float]:
    """The criteria that the ranking mixes, with weights that sum to one; UserError where one cannot be had."""
    config, form = work.run.config, work.task.form
    named, there = config.active.criteria, active.possible(form)
    lacks = {}
    if not work.run.has_networks:
        lacks[DIVERSITY] = f"run={work.run.name} has no network that would embed images; name a run of stage=train"
    if len(work.asked) * _views(config) < 2:
        lacks[DISAGREEMENT] = "one member with one view has nobody to disagree with; ask more with fold=all, or set " \
                              "active.views=true views=identity,hflip"  # fmt: skip
    for name in named:
        if name in lacks:
            raise UserError(f"active.criteria={','.join(named)}: {name} cannot be had: {lacks[name]}")
    usual = [name for name in (active.MARGIN, DISAGREEMENT, DIVERSITY) if name in there and name not in lacks]
    chosen = named or usual
    if not chosen:
        raise UserError(f"nothing ranks images for task={config.task} here: {next(iter(lacks.values()))}")
    if not named and lacks:
        say(f"  without {', '.join(lacks)}: {next(iter(lacks.values()))}")
    weights = config.active.weights or [1.0] * len(chosen)
    return {name: weight / sum(weights) for name, weight in zip(chosen, weights, strict=True)}


def _views(config: Config) -> int:
    return len(config.views) * len(config.scales) if config.active.views else 1


def fingerprint(work: Work, weights: dict[str, float]) -> str:
    """What the ranking depends on."""
    run, config = work.run, work.run.config
    if run.has_networks:
        members = [run.trained(held_out) for held_out in work.asked]
    else:
        members = [artefacts.file_digest(_file(run, held_out)) for held_out in work.asked]
    settings = {key: value for key, value in flatten(config).items() if key.startswith("active.")}
    data = (run.competition.fingerprint, work.pool.frame[["id", "file"]].to_numpy().tolist())
    return artefacts.fingerprint("select", VERSION, members, settings, weights, scoped(config, "predict"), data)


def _file(run: Run, held_out: tuple[int, ...]) -> Any:
    """A member's test predictions; UserError with the command that makes them."""
    return run.need(held_out, "test.npz") if held_out else run.member(()) / "test.npz"


# --- what members say ---------------------------------------------------------------------------------------------


def make(work: Work, weights: dict[str, float], print_: str) -> dict[str, Any]:
    """Ask the members, choose, write the table and record it."""
    run, settings = work.run, work.run.config.active
    with artefacts.locked(run.folder):
        (run.folder / RECORD).unlink(missing_ok=True)
        kept = legible(work)
        found, mean = answers(work, kept)
        place = space(work, kept) if DIVERSITY in weights else None
        doubts = active.doubt(found, weights, len(kept))
        chosen = active.choose(doubts, settings.count, place, weights.get(DIVERSITY, 0.0))
        table = listed(work, kept, chosen, found, mean)
        artefacts.write_text(run.folder / TABLE, table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
        tests = int((table["pool"] == TEST).sum())
        pages = write_pages(work, table, None if mean is None else mean[chosen.rows], print_)
        return artefacts.finish(
            run.folder / RECORD, print_, count=len(table), tests=tests, weights=weights, pages=pages
        )


def legible(work: Work) -> np.ndarray:
    """(n,) int64, the rows of the pool whose images decode: nobody can label the others."""
    if not work.run.has_networks:
        return np.arange(len(work.pool.frame))
    broken = np.zeros(len(work.pool.frame), dtype=bool)
    for kind, store in stores_of(work):
        broken[(work.pool.frame["pool"] == kind).to_numpy()] = np.isin(work.pool.places(kind), store.broken)
    if broken.all():
        raise UserError(f"none of the {work.pool.counts} can be read; replace them")
    return np.flatnonzero(~broken)


def stores_of(work: Work) -> list[tuple[str, Any]]:
    """Image stores by kind, at the size of the run, whole images."""
    from pipeline import stores

    makers = {TEST: stores.test_store, UNLABELLED: stores.unlabelled_store}
    config = whole_images(work.run.config)
    kinds = [kind for kind in makers if len(work.pool.places(kind))]
    return [(kind, makers[kind](config, work.run.competition, config.image_size)) for kind in kinds]


def whole_images(config: Config) -> Config:
    """The config, with squares of large images made whole images: what an embedding looks at."""
    from dataclasses import replace

    tiles = config.data.resize == "tiles"
    return replace(config, data=replace(config.data, resize="stretch")) if tiles else config


def answers(work: Work, kept: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """The criteria (n,) of the kept rows, and the mean opinion (n, C), None of maps and embeddings."""
    form = work.task.form
    if active.possible(form) == (DIVERSITY,):
        return {}, None
    if form.spatial:
        from pipeline.maps import Chained

        maps = [Chained([one.values for one in said]) for said in opinions(work)]
        return active.of_maps(form, maps, kept.tolist()), None
    found = Opinions(form)
    for said in opinions(work):
        values = np.concatenate([one.values for one in said])[kept]
        for view in values.reshape(len(values), -1, len(work.task.columns)).swapaxes(0, 1):
            found.add(view)
    return found.criteria(), found.mean


def opinions(work: Work) -> Iterator[list[Predictions]]:
    """What each member says of the pool's rows: of test images, then of the others, in their order.

    With active.views a row's values are those of all views side by side.
    """
    ids = work.pool.frame["id"].to_numpy(dtype=np.str_)
    tests = (work.pool.frame["pool"] == TEST).to_numpy()
    crossed = False
    for held_out in work.asked:
        found = []
        if tests.any() and not work.views:
            test = Predictions.load(_file(work.run, held_out)).align(ids[tests], f"test predictions of {work.run.name}")
            crossed = bool(test.made_by.get("crossfit"))
            found.append(test)
        if work.views or not tests.all():
            found.append(predicted(work, held_out))
        yield found
    if crossed:
        warn(
            f"{work.run.name} learned pseudo-labels with pseudo.crossfit=true: each member has learned most test "
            "images, and is surer of them than it should be"
        )


def predicted(work: Work, held_out: tuple[int, ...]) -> Predictions:
    """What a member says of images that no other file of it speaks of; predicted unless it stands on disk."""
    run, folder = work.run, work.run.member(held_out)
    if not run.has_networks:
        raise UserError(
            f"run={run.name} has no network that could predict {work.pool.counts}; set active.pool=test, and leave "
            "active.views out"
        )
    kinds = [TEST, UNLABELLED] if work.views else [UNLABELLED]
    rows = work.pool.frame[work.pool.frame["pool"].isin(kinds)]
    path, record = folder / SEEN, folder / "seen.json"
    print_ = artefacts.fingerprint(
        "seen", run.trained(held_out), scoped(run.config, "predict"), work.views, run.competition.fingerprint,
        rows[["id", "file"]].to_numpy().tolist(),
    )  # fmt: skip
    if not artefacts.finished(record, print_, path):
        say(f"select {run.name} {folder.name}: predicting {len(rows)} images")
        record.unlink(missing_ok=True)
        predict(work, held_out, kinds, rows, path)
        artefacts.finish(record, print_)
    return Predictions.load(path)


def predict(work: Work, held_out: tuple[int, ...], kinds: list[str], rows: pd.DataFrame, path: Any) -> None:
    """Write what a member says of these rows of the pool."""
    from pipeline.hardware import Hardware
    from pipeline.prediction import open_member

    run = work.run
    machine = Hardware(**run.stored()["hardware"])
    member = open_member(run.member(held_out), run.config, run.competition, work.task, machine)
    ids = np.array([f"{kind}:{name}" for kind, name in zip(rows["pool"], rows["id"], strict=True)], dtype=np.str_)
    places = [work.pool.places(kind) for kind in kinds]
    member.write_pool(path, ids, dict(zip(kinds, places, strict=True)), work.views)


def space(work: Work, kept: np.ndarray) -> Space:
    """Where the kept images lie in the embedding of the first member asked, and how far from the labelled ones."""
    from pipeline import infer, stores
    from pipeline.embed import embed
    from pipeline.hardware import Hardware
    from pipeline.prediction import open_member

    run, held_out = work.run, work.asked[0]
    member = open_member(
        run.member(held_out), run.config, run.competition, work.task, Hardware(**run.stored()["hardware"])
    )
    config, network = whole_images(member.config), member.networks[0]
    batch = infer.batch_size(run.config.predict_batch, config.image_size)
    points = np.concatenate(
        [embed(network, store, work.pool.places(kind), batch, f"embed {kind}") for kind, store in stores_of(work)]
    )[kept]
    train = stores.train_store(config, run.competition, config.image_size)
    labelled = np.setdiff1d(np.arange(len(train)), train.broken)
    starts = range(0, len(labelled), active.BLOCK)
    blocks = (
        embed(network, train, labelled[start : start + active.BLOCK], batch, "embed labelled") for start in starts
    )
    return Space(points, active.nearest(points, blocks))


# --- what is written ----------------------------------------------------------------------------------------------


def listed(
    work: Work, kept: np.ndarray, chosen: active.Chosen, found: dict[str, np.ndarray], mean: np.ndarray | None
) -> pd.DataFrame:
    """The rows of select.csv, the best first."""
    rows = kept[chosen.rows]
    table = work.pool.frame.iloc[rows][["id", "file", "pool"]].reset_index(drop=True)
    table.insert(2, "rank", np.arange(1, len(rows) + 1))
    table["score"] = chosen.scores
    for name in active.CRITERIA:
        if name in found:
            table[name] = found[name][chosen.rows]
    if not np.isnan(chosen.near).any():
        table[DIVERSITY] = chosen.near
    if mean is not None:
        separator = work.run.config.data.separator
        table["predicted"], table["probability"] = active.guesses(work.task, mean[chosen.rows], separator)
    return table


def write_pages(work: Work, table: pd.DataFrame, values: np.ndarray | None, print_: str) -> list[str]:
    """Write the labelling pages of select.csv's rows, whose mean opinion is values (n, C); returns their names."""
    run, config = work.run, work.run.config
    for old in run.folder.glob("select*.html"):
        old.unlink()
    asked = labelling.asked(work.task, config.data.id, config.data.target, config.data.separator)
    if not config.active.page or values is None or asked is None:
        return []
    starts = range(0, len(table), config.active.page)
    names = [PAGE if start == 0 else f"select-{part + 1}.html" for part, start in enumerate(starts)]
    for part, (start, name) in enumerate(zip(starts, names, strict=True)):
        rows = range(start, min(start + config.active.page, len(table)))
        items = [one for row in rows if (one := page_item(work, asked, table.iloc[row], values[row]))]
        which = f" · page {part + 1} of {len(names)}" if len(names) > 1 else ""
        file = f"labels-{config.competition}-{run.name}{f'-{part + 1}' if part else ''}.csv"
        text = labelling.page(
            config.competition, f"{len(items)} images by {run.name}{which}", f"{print_} {part}", file, asked, items
        )
        artefacts.write_text(run.folder / name, text)
    return names


def page_item(work: Work, asked: labelling.Asked, row: pd.Series, values: np.ndarray) -> dict[str, Any] | None:
    """An image of a page; None where it cannot be read."""
    config = work.run.config
    try:
        pixels = images.read(
            row["file"], work.run.competition.folder, reader=config.data.reader, channels=config.data.channels,
            limit_pixels=round(config.data.megapixels * 1e6),
        )  # fmt: skip
    except (UserError, OSError, ValueError):
        return None
    why = " · ".join(f"{name} {row[name]:.3g}" for name in active.CRITERIA if name in row.index)
    decided = work.task.decide(values[None].astype(np.float32))[0]
    return labelling.item(asked, str(row["id"]), pixels, values, decided, f"rank {row['rank']} · {why}")


def report(work: Work, found: dict[str, Any]) -> None:
    """Say what was ranked by what, which labels that used, and how to go on."""
    run, config = work.run, work.run.config
    mixed = ", ".join(f"{name} {weight:.0%}" for name, weight in found["weights"].items())
    members = " ".join(run.member(held_out).name for held_out in work.asked)
    say(f"{shown(run.folder / TABLE)}: {found['count']} of {work.pool.counts}, the best to label first, by {mixed}")
    seen = "all training labels" if len(work.asked) > 1 or work.asked == [()] else "the labels of the other folds"
    say(f"  asked: {members}; seen: {seen}; none of this is a score")
    if found["pages"]:
        say(f"  label them in a browser: {some(shown(run.folder / name) for name in found['pages'])}")
    if work.task.form.name in labelling.KINDS:
        say(f"  when they are labelled: ./run.sh stage=absorb competition={config.competition} labels=FILE")
    else:
        say(f"  no page asks for labels of task={config.task}: label elsewhere, and put the rows into train.csv")
    if found["tests"]:
        warn(
            f"{found['tests']} of them are test images: many competitions forbid to label those by hand; read the "
            "rules, or set active.pool=unlabelled"
        )
