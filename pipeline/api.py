"""The stages from Python, for notebooks: the command line's configs, checks and artefacts, and nothing of its own.

    from pipeline import Competition

    digits = Competition("digits", models=["small_image"])
    digits.train(fold=0, epochs=2)
    digits.train().predict().stack().submit()
    digits.oof("small_image").values

Every stage is a method, also one that was added yesterday; its arguments are the keys of ``./run.sh help config``, with
two underscores for a dot: ``digits.train(train__seconds=90, loss="focal(gamma=2.0)")``.
"""

from __future__ import annotations

import contextlib
import html
import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import artefacts, config, console, stages
from pipeline.artefacts import Predictions
from pipeline.config import Config
from pipeline.console import Outcome
from pipeline.errors import OutOfTime, UserError, nearest

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.runs import Run


class Competition:
    """A competition's stages as methods; each returns a ``Competition`` too, with the ``outcomes`` of what it did.

    name: of a file in ``configs/competition/``; without one, what ``configs/default.yaml`` names. root: the project's
    folder; None: ``PIPELINE_ROOT``, or where this package lies. settings: keys for all stages, as on the command line;
    those of a single call beat them. Raises UserError where the command line would end with exit code 2.
    """

    def __init__(self, name: str = "", *, root: str | Path | None = None, **settings: Any) -> None:
        self.root = Path(root).resolve() if root else config.root()
        self.settings = _texts({"competition": name, **settings} if name else settings)
        self.outcomes: list[Outcome] = []
        with self._inside():
            config.compose(self.settings)  # a wrong name or value is told here

    @classmethod
    def new(cls, name: str, data: str | Path, *, root: str | Path | None = None, **settings: Any) -> Competition:
        """Write ``configs/competition/<name>.yaml`` from an unzipped folder, as ``stage=new`` does."""
        maker = cls._of(Path(root).resolve() if root else config.root(), {})
        maker._perform("new", {"name": name, "data": str(data), **settings})
        return cls(name, root=maker.root)

    @classmethod
    def _of(cls, root: Path, settings: dict[str, str]) -> Competition:
        """One whose settings were checked, or are not yet complete."""
        made = cls.__new__(cls)
        made.root, made.settings, made.outcomes = root, settings, []
        return made

    def __getattr__(self, stage: str) -> Callable[..., Competition]:
        if stage.startswith("_") or stage not in stages.names():
            there = [name for name in dir(self) if not name.startswith("_")]
            raise AttributeError(f"a competition has no stage {stage!r}{nearest(stage, there)}")

        def perform(**settings: Any) -> Competition:
            return self._perform(stage, settings)

        perform.__name__, perform.__qualname__ = stage, f"Competition.{stage}"
        perform.__doc__ = importlib.import_module(f"pipeline.stages.{stage}").__doc__
        return perform

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *stages.names()})

    def __repr__(self) -> str:
        words = " ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"<{words or 'the competition of configs/default.yaml'}>" + (
            f"\n{console.table(self.outcomes)}" if self.outcomes else ""
        )

    def _repr_html_(self) -> str:
        if not self.outcomes:
            return f"<code>{html.escape(repr(self))}</code>"
        shown = self.table.drop(columns=["facts", "reused"]).round({"seconds": 1})
        return str(shown.loc[:, (shown != "").any()].to_html(index=False))

    @property
    def table(self) -> pd.DataFrame:
        """The closing table of the last stage: step, run, score, nested, private, seconds, note, reused, facts."""
        import pandas as pd

        return pd.DataFrame([vars(outcome) for outcome in self.outcomes])

    def config(self, **settings: Any) -> Config:
        """The settled config that a stage would get with these settings."""
        with self._inside():
            return config.compose({**self.settings, **_texts(settings)})

    def run(self, name: str = "") -> Run:
        """A run on the disk: its folder, truth and predictions; name: of the run, else the first model's."""
        from pipeline.runs import Run

        with self._inside():
            settled = self.config()
            return Run(settled, artefacts.safe_name(name, "run") if name else artefacts.run_name(settled))

    def oof(self, run: str = "") -> Predictions:
        """A run's out-of-fold predictions, each row by the member that did not learn from it."""
        with self._inside():
            return self.run(run).oof()

    def test(self, run: str = "") -> Predictions:
        """A run's test predictions, the mean of its members."""
        with self._inside():
            return Predictions.mean(self.run(run).tests())

    def curves(self, run: str = "") -> pd.DataFrame:
        """What each epoch of a run's members was like: their ``log.csv``, with the column ``member`` before."""
        import pandas as pd

        logs = sorted(self.run(run).folder.glob("*/log.csv"))
        if not logs:
            raise UserError(f"{self.run(run).name} has no log.csv; train it first")
        return pd.concat([pd.read_csv(log).assign(member=log.parent.name) for log in logs], ignore_index=True)

    def submission(self, name: str = "stack") -> pd.DataFrame:
        """A submission as it was written."""
        import pandas as pd

        with self._inside():
            path = artefacts.submissions_folder(self.config()) / f"{artefacts.safe_name(name, 'submission')}.csv"
            if not path.is_file():
                raise UserError(f"{artefacts.shown(path)} does not exist; make it with submit() or stack()")
            return pd.read_csv(path, dtype=str, keep_default_na=False)

    def _perform(self, stage: str, settings: dict[str, Any]) -> Competition:
        done = self._of(self.root, self.settings)
        with self._inside():
            try:
                done.outcomes = stages.perform({**self.settings, **_texts({**settings, "stage": stage})}, alone=False)
            except OutOfTime as end:
                console.say(f"{end}; all finished work is kept. The same call goes on")
        return done

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """While the project is that of ``root``."""
        before = os.environ.get("PIPELINE_ROOT")
        os.environ["PIPELINE_ROOT"] = str(self.root)
        try:
            yield
        finally:
            if before is None:
                del os.environ["PIPELINE_ROOT"]
            else:
                os.environ["PIPELINE_ROOT"] = before


def _texts(settings: dict[str, Any]) -> dict[str, str]:
    """Python's values as the command line writes them, by the keys' full names."""
    return config.parse_arguments([f"{key.replace('__', '.')}={_text(key, value)}" for key, value in settings.items()])


def _text(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_text(key, item) for item in value)}]"
    if isinstance(value, (str, int, float, Path)):
        return str(value)
    raise UserError(f"{key.replace('__', '.')}={value!r} is a {type(value).__name__}; give text, a number or a list")
