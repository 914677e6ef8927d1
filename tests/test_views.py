"""Views against numpy, their exact undoing, and the symmetry that the competition declares."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.parts.views import expand
from pipeline.symmetry import check_symmetry

EXACT = ["identity", "hflip", "vflip", "transpose", "rot90", "rot180", "rot270", "d4"]


def batch(height: int = 5, width: int = 7) -> torch.Tensor:
    return torch.arange(2 * 3 * height * width).reshape(2, 3, height, width).float()


@pytest.mark.parametrize("name", EXACT)
def test_undo_is_exact_for_any_size(name: str) -> None:
    for view in expand([name]):
        assert torch.equal(view.undo(view.apply(batch())), batch())


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("hflip", np.fliplr),
        ("vflip", np.flipud),
        ("transpose", np.transpose),
        ("rot90", np.rot90),
        ("rot180", lambda image: np.rot90(image, 2)),
        ("rot270", lambda image: np.rot90(image, 3)),
    ],
)
def test_view_is_numpys(name: str, reference) -> None:
    (view,) = expand([name])
    image = batch()[0, 0].numpy()
    np.testing.assert_array_equal(view.apply(batch())[0, 0].numpy(), reference(image))


def test_d4_is_the_whole_group() -> None:
    views = expand(["d4()"])
    seen = {view.apply(batch(4, 4)).numpy().tobytes() for view in views}
    assert len(views) == len(seen) == 8
    twice = {one.apply(other.apply(batch(4, 4))).numpy().tobytes() for one in views for other in views}
    assert twice == seen


@pytest.mark.parametrize(("x", "y"), [(1, 0), (0, -2), (2, 1), (-3, -1), (9, 0)])
def test_shift_moves_right_and_down_and_repeats_the_edge(x: int, y: int) -> None:
    (view,) = expand([f"shift(x={x},y={y})"])
    image, moved = batch(), view.apply(batch())
    for row in range(5):
        for column in range(7):
            source = image[:, :, min(max(row - y, 0), 4), min(max(column - x, 0), 6)]
            assert torch.equal(moved[:, :, row, column], source)
    back = view.undo(moved)
    rows, columns = slice(max(-y, 0), 5 - max(y, 0)), slice(max(-x, 0), max(7 - max(x, 0), 0))
    assert torch.equal(back[:, :, rows, columns], image[:, :, rows, columns])


def test_five_crop_shows_corners_and_centre() -> None:
    views = {view.name: view for view in expand(["five_crop(share=0.5)"])}
    assert list(views) == [
        f"five_crop(share=0.5,at={place})"
        for place in ("top_left", "top_right", "bottom_left", "bottom_right", "centre")
    ]
    image = torch.zeros(1, 1, 8, 8)
    image[..., :4, 4:] = 1
    means = [float(view.apply(image).mean()) for view in views.values()]
    assert means == [0, 1, 0, 0, 0.25]
    assert all(view.undo is None for view in views.values())
    whole = torch.rand(1, 3, 8, 8)
    assert torch.equal(expand(["five_crop(share=1.0)"])[0].apply(whole), whole)


def test_expand_flattens_in_order_and_drops_what_is_there_already() -> None:
    names = [view.name for view in expand(["identity", "hflip()", "d4", "shift(x=1,y=2)", "shift(y=2, x=1)"])]
    assert names[:3] == ["identity()", "hflip()", "rot90()"]
    assert names[-1] == "shift(x=1,y=2)"
    assert len(names) == len(set(names)) == 9


def test_symmetry_must_be_declared() -> None:
    check_symmetry(["identity()", "shift(x=2)", "five_crop"], "none")
    check_symmetry(["hflip"], "hflip")
    check_symmetry(["d4", "hflip", "rot90"], "d4")
    check_symmetry(["light()", "none()"], "none", "augments")
    with pytest.raises(
        UserError, match=r"rot90\(\) needs symmetry=d4.*symmetry=hflip.*configs/competition/whales\.yaml"
    ):
        check_symmetry(["hflip", "rot90()"], "hflip", competition="whales")
    with pytest.raises(UserError, match=r"augment: flips needs symmetry=hflip.*declares symmetry=none"):
        check_symmetry(["flips"], "none", "augments")
