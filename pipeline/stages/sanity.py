"""Sanity: does the model start right, learn one batch by heart, and learn at all? Seconds, before hours."""

from __future__ import annotations

import time

from pipeline import advice, artefacts
from pipeline.competition import load
from pipeline.config import Config, scoped
from pipeline.console import Outcome, say
from pipeline.errors import UserError
from pipeline.folds import ensure_folds
from pipeline.runs import Run


class CheckFailed(UserError):
    """A sanity check failed: exit code 2 alone, a warning in a recipe."""


def run(config: Config) -> list[Outcome]:
    """Print pass or fail for each check; raise CheckFailed if one failed."""
    began = time.perf_counter()
    ensure_folds(config, load(config))
    run = Run(config, artefacts.run_name(config))
    record, print_ = run.folder / "sanity.json", artefacts.fingerprint(scoped(config, "run"), run.inputs())
    with artefacts.locked(run.folder, step=True):
        before = artefacts.finished(record, print_)
        if before is None:
            from pipeline.checks import all_checks

            say(f"sanity {run.name}")
            before = artefacts.finish(record, print_, checks=[vars(check) for check in all_checks(run)])
    checks = before["checks"]
    for check in checks:
        say(f"  {'pass' if check['passed'] else 'FAIL'}  {check['name']}: {check['seen']}")
    if hint := advice.small_images(config):
        say(f"  {hint}")
    failed = [check for check in checks if not check["passed"]]
    if failed:
        what = "; ".join(f"{check['name']} ({check['seen']}): {check['advice']}" for check in failed)
        raise CheckFailed(f"sanity of {run.name}: {what}")
    return [Outcome("sanity", run.name, seconds=time.perf_counter() - began, note=f"{len(checks)} checks passed")]
