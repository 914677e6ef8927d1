"""What a training tells while it runs: one row an epoch in log.csv, in TensorBoard and on the terminal."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from pipeline import console
from pipeline.artefacts import write_text


class Journal:
    """The log of one member's training. log.csv is written anew each epoch from the history in the checkpoint, so
    that a training that goes on after a kill has each epoch once."""

    def __init__(self, folder: Path, history: list[dict[str, float]]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.history = folder, history
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=len(history) + 1 if history else None)

    def add(self, row: dict[str, float], lr: float, images: int, seconds: float, waited: float) -> None:
        """One epoch: its losses and scores, the learning rate of its last step, and how fast it was.

        images: trained in these seconds; waited: seconds of them spent waiting for data.
        """
        row = {**row, "lr": lr, "seconds": seconds, "images_per_second": images / seconds, "waiting": waited / seconds}
        self.history.append(row)
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        write_text(self.folder / "log.csv", buffer.getvalue())
        for name, value in row.items():
            self.board.add_scalar(name, value, int(row["epoch"]))
        self.board.flush()
        scores = "  ".join(f"{k} {v:.4f}" for k, v in row.items() if k not in ("epoch", "lr", *_SPEED))
        console.say(
            f"  {self.folder.name} epoch {row['epoch']:>2.0f}  {scores}  lr {lr:.1e}  "
            f"{row['images_per_second']:.0f} img/s, {row['waiting']:.0%} waiting  {seconds:.1f} s"
        )

    def close(self) -> None:
        """Write out what TensorBoard still holds."""
        self.board.close()


_SPEED = ("seconds", "images_per_second", "waiting")
