"""Views: changes of the input at prediction (test-time augmentation), most of which can be undone on maps.

Form: ``f(*, …) -> list[View]``. The fact ``symmetry`` is what the competition must declare for the label to stay true;
``takes`` leaves out masks where a view cannot be undone. Nothing here imports torch at module level, so that a view's
symmetry can be checked without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline import registry
from pipeline.registry import part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class View:
    """One way to look at a batch.

    name: unique and readable, the call-string of the view. apply: (B, C, H, W) → images of the same size, but for
    those that swap H and W. undo: maps (B, C, H, W) of the changed image → maps of the original; None where it cannot.
    """

    name: str
    apply: Callable[[Tensor], Tensor]
    undo: Callable[[Tensor], Tensor] | None


def expand(call_strings: Iterable[str]) -> list[View]:
    """All views of these call-strings, in order, each name once."""
    views = {view.name: view for text in call_strings for view in registry.build("views", text)()}
    return list(views.values())


@part(source="the baseline", symmetry="none")
def identity() -> list[View]:
    """The image as it is."""
    return [View("identity()", lambda x: x, lambda x: x)]


@part(source="Krizhevsky et al. 2012, sec. 4.1", symmetry="hflip")
def hflip() -> list[View]:
    """Left and right swapped."""
    return [View("hflip()", _hflip, _hflip)]


@part(source="Dieleman et al. 2015, sec. 5", symmetry="d4")
def vflip() -> list[View]:
    """Top and bottom swapped."""
    return [View("vflip()", _vflip, _vflip)]


@part(source="Dieleman et al. 2015, sec. 5", symmetry="d4")
def transpose() -> list[View]:
    """Rows and columns swapped."""
    return [View("transpose()", _transpose, _transpose)]


@part(source="Dieleman et al. 2015, sec. 5", symmetry="d4")
def rot90() -> list[View]:
    """A quarter turn, counter-clockwise."""
    return [View("rot90()", _rot90, _rot270)]


@part(source="Dieleman et al. 2015, sec. 5", symmetry="d4")
def rot180() -> list[View]:
    """Half a turn."""
    return [View("rot180()", _rot180, _rot180)]


@part(source="Dieleman et al. 2015, sec. 5", symmetry="d4")
def rot270() -> list[View]:
    """Three quarter turns, counter-clockwise."""
    return [View("rot270()", _rot270, _rot90)]


@part(source="Cohen & Welling 2016, sec. 4.1, the symmetries of the square", symmetry="d4")
def d4() -> list[View]:
    """The eight flips and rotations of a square."""
    last = View("antitranspose()", _antitranspose, _antitranspose)
    return [*identity(), *rot90(), *rot180(), *rot270(), *hflip(), *vflip(), *transpose(), last]


@part(source="Simard et al. 2003, sec. 2", symmetry="none", allowed={"x": (-1000, 1000), "y": (-1000, 1000)})
def shift(*, x: int = 1, y: int = 0) -> list[View]:
    """The image moved; the edge's pixels fill what comes free.

    x, y: pixels to the right and down. Undoing is exact but for the |x| columns and |y| rows moved out of sight.
    """
    return [View(f"shift(x={x},y={y})", lambda batch: _shift(batch, x, y), lambda maps: _shift(maps, -x, -y))]


@part(
    source="Krizhevsky et al. 2012, sec. 4.1",
    symmetry="none",
    takes=("classes", "labels", "numbers", "embeddings"),
    allowed={"share": (0.1, 1)},
)
def five_crop(*, share: float = 0.875) -> list[View]:
    """The four corners and the centre, each enlarged to the whole (bilinear); cannot be undone.

    share: side of a crop as a share of the image's.
    """
    places = {"top_left": (0, 0), "top_right": (0, 2), "bottom_left": (2, 0), "bottom_right": (2, 2), "centre": (1, 1)}
    return [_crop(f"five_crop(share={share},at={name})", share, *halves) for name, halves in places.items()]


def _crop(name: str, share: float, down: int, right: int) -> View:
    """A crop that begins at down/2 and right/2 of the room there is."""

    def apply(batch: Tensor) -> Tensor:
        from torch.nn.functional import interpolate

        height, width = batch.shape[-2:]
        rows, columns = max(round(height * share), 1), max(round(width * share), 1)
        top, left = (height - rows) * down // 2, (width - columns) * right // 2
        crop = batch[..., top : top + rows, left : left + columns]
        return interpolate(crop, size=(height, width), mode="bilinear", align_corners=False)

    return View(name, apply, None)


def _shift(batch: Tensor, x: int, y: int) -> Tensor:
    """out[row, column] = batch[row - y, column - x], clamped to the edge: exact for every dtype."""
    import torch

    rows, columns = (torch.arange(length, device=batch.device) for length in batch.shape[-2:])
    batch = batch.index_select(-2, (rows - y).clamp(0, len(rows) - 1)) if y else batch
    return batch.index_select(-1, (columns - x).clamp(0, len(columns) - 1)) if x else batch


def _hflip(batch: Tensor) -> Tensor:
    return batch.flip(-1)


def _vflip(batch: Tensor) -> Tensor:
    return batch.flip(-2)


def _rot180(batch: Tensor) -> Tensor:
    return batch.flip(-2, -1)


def _transpose(batch: Tensor) -> Tensor:
    return batch.transpose(-2, -1)


def _rot90(batch: Tensor) -> Tensor:
    return batch.rot90(1, (-2, -1))


def _rot270(batch: Tensor) -> Tensor:
    return batch.rot90(3, (-2, -1))


def _antitranspose(batch: Tensor) -> Tensor:
    return batch.transpose(-2, -1).flip(-2, -1)
