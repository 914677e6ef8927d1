"""What a training tells while it runs: one row an epoch in log.csv, TensorBoard, a tracker, and on the terminal."""

from __future__ import annotations

import csv
import io
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline import console, hardware, ranks
from pipeline.artefacts import write_text
from pipeline.config import Config
from pipeline.tracking import Tracking


class Journal:
    """The log of one member's training. log.csv is written anew each epoch from the history in the checkpoint, so
    that a training that goes on after a kill has each epoch once. Of several processes the first one writes."""

    def __init__(self, folder: Path, history: list[dict[str, float]], config: Config) -> None:
        self.folder, self.history = folder, history
        self.tracking = Tracking(config, folder)
        self.done = len(history)  # epochs of an earlier process

    @cached_property
    def board(self) -> Any:
        """TensorBoard's writer; made when there is something to write, since its import is as long as timm's."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.done + 1 if self.done else None)

    def add(self, row: dict[str, float], lr: float, images: int, seconds: float, waited: float) -> None:
        """One epoch: its losses and scores, the learning rate of its last step, and how fast it was.

        images: trained in these seconds; waited: seconds of them spent waiting for data. memory_gb is the peak since
        the process began: of the GPU's memory if there is one at work, else the process's own.
        """
        speed = (seconds, images / seconds, waited / seconds, hardware.peak_memory() / 1e9)
        row = {**row, "lr": lr, **dict(zip(_SPEED, speed, strict=True))}
        self.history.append(row)
        if ranks.rank():
            return
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(row), restval=0, lineterminator="\n")  # an older version told less
        writer.writeheader()
        writer.writerows(self.history)
        write_text(self.folder / "log.csv", buffer.getvalue())
        for name, value in row.items():
            self.board.add_scalar(name, value, int(row["epoch"]))
        self.board.flush()
        self.tracking.add(self.history)
        scores = "  ".join(f"{k} {v:.4f}" for k, v in row.items() if k not in ("epoch", "lr", *_SPEED))
        console.say(
            f"  {self.folder.name} epoch {row['epoch']:>2.0f}  {scores}  lr {lr:.1e}  "
            f"{row['images_per_second']:.0f} img/s, {row['waiting']:.0%} waiting, {row['memory_gb']:.1f} GB  "
            f"{seconds:.1f} s",
            member=f"{self.folder.parent.name}/{self.folder.name}",
            figures=row,
        )

    def close(self) -> None:
        """Write out what TensorBoard and the tracker still hold."""
        if "board" in vars(self):
            self.board.close()
        self.tracking.close()


_SPEED = ("seconds", "images_per_second", "waiting", "memory_gb")
