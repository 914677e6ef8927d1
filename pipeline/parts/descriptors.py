"""Descriptors of images for ``stage=features``: pixels in, a row of numbers out.

Form: a class with ``__init__(embed, *, …)``, ``size``, the side of the images that it reads (0: ``image_size``), and
``describe(images)``: (n, H, W, C) uint8 → (n, F) float32. embed(store, rows) → (n, F) float32 is what the run's
backbone says of images, made when it is first called. The fact ``learns`` marks a descriptor that is fitted, without
labels, on the rows that a member may learn from: ``fit(store, rows, generator)`` comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from pipeline.errors import UserError
from pipeline.registry import part

BLOCK = 256  # images that are described at a time
SMALLEST = 1e-5


class Store(Protocol):
    """Images by row number."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows → (n, H, W, C) uint8."""


Embed = Callable[[Store, np.ndarray], np.ndarray]


class Descriptor:
    """What all descriptors share."""

    def __init__(self, embed: Embed, size: int) -> None:
        self.embed, self.size = embed, size

    def fit(self, store: Store, rows: np.ndarray, generator: np.random.Generator) -> None:
        """Learn from the images of these rows, where the descriptor learns."""

    def describe(self, images: np.ndarray) -> np.ndarray:
        """(n, H, W, C) uint8 → (n, F) float32."""
        raise NotImplementedError

    def rows(self, store: Store, rows: np.ndarray) -> np.ndarray:
        """Some rows of a store, (n, F) float32, block by block."""
        if not len(rows):
            return self.describe(store.take(np.zeros(1, dtype=np.int64)))[:0]
        blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
        return np.concatenate([self.describe(store.take(block)) for block in blocks])


@part(
    source="the plainest baseline there is: LeCun et al. 1998, table 1, linear classifiers", allowed={"size": (1, 512)}
)
class raw_pixels(Descriptor):
    """The pixels themselves, of a small version of the image.

    size: its side.
    """

    def __init__(self, embed: Embed, *, size: int = 16) -> None:
        super().__init__(embed, size)

    def describe(self, images: np.ndarray) -> np.ndarray:
        """(n, size, size, C) uint8 → (n, size² · C) float32 in 0…1."""
        return images.reshape(len(images), -1).astype(np.float32) / 255


@part(
    source="Swain & Ballard 1991, colour indexing; square roots of shares: Arandjelović & Zisserman 2012",
    allowed={"bins": (2, 256), "regions": (1, 16), "size": (4, 512)},
)
class colour_histogram(Descriptor):
    """How much of the image is of each colour, in a grid of regions; the square roots of the shares.

    Up to three channels are counted together, more of them one by one. bins: cells of one histogram, shared out among
    the channels that are counted together. regions: of the grid, a side. size: side of the image that is counted.
    """

    def __init__(self, embed: Embed, *, bins: int = 64, regions: int = 2, size: int = 32) -> None:
        super().__init__(embed, size)
        if regions > size:
            raise UserError(f"colour_histogram(regions={regions}, size={size}): a region must hold a pixel")
        self.bins, self.regions = bins, regions

    def describe(self, images: np.ndarray) -> np.ndarray:
        """(n, size, size, C) uint8 → (n, regions² · cells) float32 in 0…1."""
        count, side, _, channels = images.shape
        together = channels if channels <= 3 else 1
        each = max(2, round(self.bins ** (1 / together)))
        levels = images.astype(np.int64) * each // 256
        codes = levels if together == 1 else (levels * each ** np.arange(channels)).sum(axis=3, keepdims=True)
        cells, kinds = each**together, codes.shape[3]
        place = np.arange(side) * self.regions // side
        region = place[:, None] * self.regions + place
        offset = (np.arange(count)[:, None, None] * self.regions**2 + region)[..., None] * kinds + np.arange(kinds)
        total = np.bincount((offset * cells + codes).ravel(), minlength=count * self.regions**2 * kinds * cells)
        found = total.reshape(count, self.regions**2, kinds * cells) / np.bincount(region.ravel())[:, None]
        return np.sqrt(found).reshape(count, -1).astype(np.float32)


@part(
    source="Dalal & Triggs 2005, L2-Hys blocks, the strongest channel of a pixel; the numbers of skimage.feature.hog",
    allowed={"orientations": (1, 36), "cell": (2, 64), "block": (1, 16), "size": (4, 512)},
)
class hog(Descriptor):
    """Histograms of oriented gradients: which way edges run, cell by cell, evened out over overlapping blocks.

    orientations: bins of half a turn. cell: its side in pixels. block: its side in cells. size: side of the image.
    """

    def __init__(self, embed: Embed, *, orientations: int = 9, cell: int = 8, block: int = 2, size: int = 64) -> None:
        super().__init__(embed, size)
        if cell * block > size:
            raise UserError(f"hog(cell={cell}, block={block}, size={size}): a block of cells must fit into the image")
        self.orientations, self.cell, self.block = orientations, cell, block

    def describe(self, images: np.ndarray) -> np.ndarray:
        """(n, size, size, C) uint8 → (n, blocks² · block² · orientations) float32 in 0…1."""
        across, down = self.gradient(images, 2), self.gradient(images, 1)
        length = np.hypot(across, down)
        best = length.argmax(axis=3)[..., None]
        across, down, length = (np.take_along_axis(part, best, axis=3)[..., 0] for part in (across, down, length))
        cells = self.cells(np.rad2deg(np.arctan2(down, across)) % 180, length)
        blocks = np.lib.stride_tricks.sliding_window_view(cells, (self.block, self.block), axis=(1, 2))
        found = np.moveaxis(blocks, 3, 5).reshape(*blocks.shape[:3], -1)  # (n, B, B, block · block · orientations)
        found = np.minimum(self.scaled(found), 0.2)
        return self.scaled(found).reshape(len(images), -1).astype(np.float32)

    @staticmethod
    def gradient(images: np.ndarray, axis: int) -> np.ndarray:
        """(n, H, W, C) float32, the difference of the neighbours along an axis; 0 at the border."""
        found = np.zeros(images.shape, dtype=np.float32)
        wide = images.astype(np.float32)
        inner, after, before = [[slice(None)] * 4 for _ in range(3)]
        inner[axis], after[axis], before[axis] = slice(1, -1), slice(2, None), slice(None, -2)
        found[tuple(inner)] = wide[tuple(after)] - wide[tuple(before)]
        return found

    def cells(self, angle: np.ndarray, length: np.ndarray) -> np.ndarray:
        """(n, H, W) degrees in 0…180 and lengths → (n, cells, cells, orientations), mean length of each orientation."""
        side = angle.shape[1] // self.cell
        angle, length = (part[:, : side * self.cell, : side * self.cell] for part in (angle, length))
        turn = np.minimum((angle * (self.orientations / 180)).astype(np.int64), self.orientations - 1)
        place = np.arange(side * self.cell) // self.cell
        where = np.arange(len(angle))[:, None, None] * side**2 + place[:, None] * side + place
        shape = (len(angle), side, side, self.orientations)
        total = np.bincount((where * self.orientations + turn).ravel(), length.ravel(), int(np.prod(shape)))
        return total.reshape(shape) / self.cell**2

    @staticmethod
    def scaled(blocks: np.ndarray) -> np.ndarray:
        """Blocks of length one."""
        return blocks / np.sqrt((blocks**2).sum(axis=3, keepdims=True) + SMALLEST**2)


@part(
    source="Csurka et al. 2004, bags of visual words; whitened patches, soft words: Coates, Lee & Ng 2011, sec. 3",
    learns=True,
    allowed={
        "words": (2, 10000), "patch": (2, 64), "stride": (1, 64), "regions": (1, 8), "size": (4, 512),
        "patches": (100, None),
    },
)  # fmt: skip
class visual_words(Descriptor):
    """How often each word of a codebook of patches occurs, in a grid of regions.

    The codebook is k-means over patches of the member's own training images; no label is read. A patch counts for each
    word by how much nearer than the average word it is. words: of the codebook. patch: side in pixels. stride: pixels
    between two patches. regions: of the grid, a side. size: side of the image. patches: drawn for the codebook.
    """

    def __init__(
        self,
        embed: Embed,
        *,
        words: int = 256,
        patch: int = 6,
        stride: int = 2,
        regions: int = 2,
        size: int = 32,
        patches: int = 50000,
    ) -> None:
        super().__init__(embed, size)
        if patch > size or regions > (size - patch) // stride + 1:
            raise UserError(f"visual_words(patch={patch}, stride={stride}, size={size}): too few patches an image")
        self.words, self.patch, self.stride, self.regions, self.patches = words, patch, stride, regions, patches

    def fit(self, store: Store, rows: np.ndarray, generator: np.random.Generator) -> None:
        """Whitening and words from the images of these rows."""
        from sklearn.cluster import MiniBatchKMeans

        an_image = ((self.size - self.patch) // self.stride + 1) ** 2
        most = max(1, 4 * self.patches // an_image)  # a quarter of their patches is drawn
        images = store.take(np.sort(generator.permutation(rows)[:most]))
        found = self.local(images).reshape(len(images) * an_image, -1)
        found = found[np.sort(generator.permutation(len(found))[: self.patches])]
        self.centre = found.mean(axis=0)
        values, vectors = np.linalg.eigh(np.cov(found - self.centre, rowvar=False).astype(np.float64))
        self.whitening = ((vectors / np.sqrt(np.maximum(values, 0) + 0.1)) @ vectors.T).astype(np.float32)
        seed, words = int(generator.integers(2**31)), min(self.words, len(found))
        model = MiniBatchKMeans(words, n_init=1, max_iter=20, batch_size=2048, random_state=seed)
        self.book = model.fit((found - self.centre) @ self.whitening).cluster_centers_.astype(np.float32)

    def local(self, images: np.ndarray) -> np.ndarray:
        """(n, H, W, C) uint8 → (n, P, P, D) float32, patches of mean 0 and deviation about one."""
        windows = np.lib.stride_tricks.sliding_window_view(images, (self.patch, self.patch), axis=(1, 2))
        windows = windows[:, :: self.stride, :: self.stride]
        found = windows.reshape(*windows.shape[:3], -1).astype(np.float32)
        found -= found.mean(axis=3, keepdims=True)
        return found / np.sqrt(found.var(axis=3, keepdims=True) + 10)

    def describe(self, images: np.ndarray) -> np.ndarray:
        """(n, size, size, C) uint8 → (n, regions² · words) float32."""
        found = (self.local(images) - self.centre) @ self.whitening
        squares = (found**2).sum(axis=3, keepdims=True) - 2 * (found @ self.book.T) + (self.book**2).sum(axis=1)
        far = np.sqrt(np.maximum(squares, 0))
        near = np.maximum(far.mean(axis=3, keepdims=True) - far, 0)
        place = np.arange(near.shape[1]) * self.regions // near.shape[1]
        starts = np.searchsorted(place, np.arange(self.regions))
        pooled = np.add.reduceat(np.add.reduceat(near, starts, axis=1), starts, axis=2)
        return (pooled / near.shape[1] ** 2).reshape(len(images), -1).astype(np.float32)


@part(source="off-the-shelf features of a frozen network: Donahue et al. 2014 (DeCAF); Razavian et al. 2014")
class backbone(Descriptor):
    """The pooled features of the run's backbone, which learns nothing here, scaled to length one.

    The keys ``backbone``, ``pretrained``, ``weights``, ``pool``, ``image_size`` say which; only this needs torch.
    """

    def __init__(self, embed: Embed) -> None:
        super().__init__(embed, 0)

    def rows(self, store: Store, rows: np.ndarray) -> np.ndarray:
        """Some rows of a store, (n, F) float32."""
        return self.embed(store, rows)
