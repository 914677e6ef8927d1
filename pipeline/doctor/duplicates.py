"""Which images are the same: exactly, or as copies that were compressed, resized, mirrored or turned.

Search: a perceptual hash in the manner of pHash, the low frequencies (DCT) of the small grey image, kept as numbers
instead of bits. A mirrored image has the same frequencies with other signs, a turned one with rows and columns
swapped, so absolute values, each pair across the diagonal in order, are the same for all eight symmetries. They move
less than the pixels do, so a ball around them, searched in a k-d tree, loses no copy and compares few pairs.

Confirmation: hits are compared on pixels, under the best of the eight symmetries, and beside what is usual around
them. Shirts on black look alike; a copy is far nearer to its source than the source is to its other neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.console import progress
from pipeline.doctor.survey import SIDE, Survey
from pipeline.hardware import physical_cores

LOW = 8  # frequencies a side that are hashed
AXES = 16  # of which the widest directions span the k-d tree
REACH = 0.25  # radius of the search, in lengths of a standardised image; resized copies lie within 0.2
NEIGHBOURS = 6  # candidates an image; larger families are joined through each other
USUAL = 10  # the distance to this neighbour is what is usual around an image
ALIKE, VARIED = (
    0.2,
    0.3,
)  # share of the usual distance within which an image is a copy: in sets of look-alikes, of photographs
COARSE = 0.45  # the same where one of the two has fewer pixels than the tiny picture
SAMPLE, DENSE = 500, 0.5  # rows that tell what is usual in the set; share of it that holds inside a crowd of copies too
CERTAIN = 0.04  # within this distance it is a copy whatever is usual, as in a film
BAND, AGREES = (4, 12), 0.955  # middle frequencies, and how well those of a copy must correlate
FLAT = 2.0  # grey levels of contrast below which noise decides; such images are compared exactly only
TINT, TINT_SHARE = 8.0, 0.25  # by how much colours may differ: grey levels, and share of the colour there is
SHADE, GAIN = 24.0, 1.4  # by how much brightness may differ, in grey levels, and contrast, as a factor
BLOCK = 2048  # pairs compared at a time


@dataclass(frozen=True)
class Pairs:
    """Confirmed copies: rows a < b of the survey, (P,) int64; distance (P,) of the pixels; turned: only so alike."""

    a: np.ndarray
    b: np.ndarray
    distance: np.ndarray
    turned: np.ndarray

    def __len__(self) -> int:
        return len(self.a)

    def where(self, kept: np.ndarray) -> Pairs:
        """The pairs that a boolean mask keeps."""
        return Pairs(self.a[kept], self.b[kept], self.distance[kept], self.turned[kept])


def exact(survey: Survey) -> np.ndarray:
    """(N,) int64: the first row with the same size and pixels, for constant and broken images the row itself."""
    first = np.arange(len(survey), dtype=np.int64)
    rows = np.flatnonzero(survey.good & ~survey.constant)
    if len(rows):
        _, index, inverse = np.unique(survey.digest[rows], return_index=True, return_inverse=True)
        first[rows] = rows[index][inverse]
    return first


def near(survey: Survey, first: np.ndarray) -> Pairs:
    """Copies among the rows that stand for all with the same pixels (``exact``)."""
    rows = np.flatnonzero((first == np.arange(len(first))) & survey.good & (survey.contrast >= FLAT))
    if len(rows) < 2:
        return _none()
    hashes = _hashes(survey, rows)
    a, b = _candidates(hashes)
    if not len(a):
        return _none()
    found = _compare(survey, rows[a], rows[b])
    close = np.flatnonzero(found.distance <= COARSE * 2**0.5)
    found, a, b = found.where(close), a[close], b[close]
    sample = np.random.default_rng(10).permutation(len(rows))[:SAMPLE]
    usual = _usual(survey, rows, hashes, np.unique(np.concatenate([a, b, sample])))
    usual = np.maximum(usual, DENSE * np.median(usual[sample]))
    around = np.minimum(usual[a], usual[b])
    share = ALIKE + (VARIED - ALIKE) * np.clip(2 * around - 1, 0, 1)
    share[_common_side(survey, found.a, found.b) < SIDE] = COARSE
    found = found.where(found.distance <= np.maximum(share * around, CERTAIN))
    return found.where(_same_details(survey, found))


def _none() -> Pairs:
    empty = np.empty(0, dtype=np.int64)
    return Pairs(empty, empty, np.empty(0), np.empty(0, dtype=bool))


# --- the search ---------------------------------------------------------------------------------------------------


def _hashes(survey: Survey, rows: np.ndarray) -> np.ndarray:
    """(n, AXES) float32, the same for all eight symmetries; never farther apart than the images are."""
    from scipy.fft import dctn

    upper, strict = np.triu_indices(LOW), np.triu_indices(LOW, 1)
    blocks = []
    for start in range(0, len(rows), BLOCK):
        images = standard(survey.grey[rows[start : start + BLOCK]])
        low = np.abs(dctn(images, axes=(1, 2), norm="ortho")[:, :LOW, :LOW])
        swapped = low.transpose(0, 2, 1)
        large, small = np.maximum(low, swapped)[:, *upper], np.minimum(low, swapped)[:, *strict]
        blocks.append(np.concatenate([large, small], axis=1).astype(np.float32))
    hashes = np.concatenate(blocks)
    hashes -= hashes.mean(axis=0)
    _, directions = np.linalg.eigh(hashes.T.astype(np.float64) @ hashes)
    return (hashes @ directions[:, -AXES:]).astype(np.float32)


def _candidates(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs a < b of places in hashes that lie within REACH, each place with its nearest."""
    from scipy.spatial import cKDTree

    count, total = min(NEIGHBOURS + 1, len(hashes)), len(hashes)
    tree, pairs = cKDTree(hashes), []
    ask = {"k": range(1, count + 1), "distance_upper_bound": REACH, "workers": physical_cores()}
    with progress("looking for copies", total) as advance:
        for start in range(0, total, BLOCK):
            own = np.arange(start, min(start + BLOCK, total))
            _, other = tree.query(hashes[own], **ask)
            advance(len(own))
            own, other = np.repeat(own, count), other.ravel()
            found = (other < total) & (other != own)  # the tree marks what it does not find by the length
            pairs.append(np.sort(np.stack([own[found], other[found]]), axis=0))
    a, b = np.unique(np.concatenate(pairs, axis=1), axis=1).astype(np.int64)
    return a, b


def _usual(survey: Survey, rows: np.ndarray, hashes: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(n,) float64: at the asked places the pixel distance to the neighbour of rank USUAL, elsewhere NaN."""
    from scipy.spatial import cKDTree

    count = min(USUAL + 7, len(rows))
    usual = np.full(len(rows), np.nan)
    tree = cKDTree(hashes)
    for start in range(0, len(places), BLOCK):
        some = places[start : start + BLOCK]
        _, other = tree.query(hashes[some], k=range(1, count + 1), workers=physical_cores())
        found = _compare(survey, np.repeat(rows[some], count), rows[other.ravel()], shades=False)
        distances = np.sort(found.distance.reshape(len(some), count), axis=1)  # itself comes first
        usual[some] = distances[:, min(USUAL, count - 1)]
    return usual


# --- on pixels ----------------------------------------------------------------------------------------------------


def standard(images: np.ndarray) -> np.ndarray:
    """(n, h, w) → float32 with mean 0 and length 1, so that brightness and contrast do not count."""
    centred = images.astype(np.float32)
    centred -= centred.mean(axis=(1, 2), keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=(1, 2), keepdims=True), 1e-6)


def symmetries(images: np.ndarray) -> list[np.ndarray]:
    """(n, h, w, …) square images → the eight mirrored and turned versions, views of the same memory."""
    swapped = images.swapaxes(1, 2)
    return [turned[:, ::rows, ::columns] for turned in (images, swapped) for rows in (1, -1) for columns in (1, -1)]


def _compare(survey: Survey, a: np.ndarray, b: np.ndarray, shades: bool = True) -> Pairs:
    """The distance of each pair, 0 … √2, at the smaller one's resolution; with shades ∞ where these differ."""
    distance, turned = np.empty(len(a)), np.empty(len(a), dtype=bool)
    side = _common_side(survey, a, b)
    for wanted in np.unique(side):
        places = np.flatnonzero(side == wanted)
        for start in range(0, len(places), BLOCK):
            some = places[start : start + BLOCK]
            plain = [_shrunk(survey.grey[rows[some]], int(wanted)) for rows in (a, b)]
            left, right = (standard(images) for images in plain)
            likeness = np.stack([(version * right).sum(axis=(1, 2)) for version in symmetries(left)])
            best = likeness.argmax(axis=0)
            best[likeness[0] >= likeness.max(axis=0) - 1e-4] = 0  # a symmetric picture is not turned
            distance[some] = np.sqrt(np.maximum(2 - 2 * likeness.max(axis=0), 0))
            turned[some] = best > 0
            if shades:
                other = _light_differs(*plain) | _colours_differ(survey, a[some], b[some], best)
                distance[some[other]] = np.inf
    return Pairs(a, b, distance, turned)


def _common_side(survey: Survey, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The side at which two images are compared: what the smaller one still shows, if their sizes differ."""
    smaller = np.minimum(survey.size[a].min(axis=1), survey.size[b].min(axis=1))
    return np.where(_same_size(survey, a, b), SIDE, np.clip(smaller, 4, SIDE))


def _same_size(survey: Survey, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) bool, also where width and height are swapped."""
    same: np.ndarray = (np.sort(survey.size[a], axis=1) == np.sort(survey.size[b], axis=1)).all(axis=1)
    return same


def _shrunk(images: np.ndarray, side: int) -> np.ndarray:
    if side == images.shape[1]:
        return images
    import cv2

    return np.stack([cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in images])


def _light_differs(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(n,) bool: whether brightness or contrast differ by more than copying explains; grey levels (n, h, w)."""
    gain = left.std(axis=(1, 2)) / np.maximum(right.std(axis=(1, 2)), 1e-3)
    shift = np.abs(left.mean(axis=(1, 2)) - right.mean(axis=(1, 2)))
    return np.asarray((shift > SHADE) | (np.abs(np.log(np.maximum(gain, 1e-3))) > np.log(GAIN)))


def _colours_differ(survey: Survey, a: np.ndarray, b: np.ndarray, best: np.ndarray) -> np.ndarray:
    """(n,) bool: whether the colours, as differences from grey on 4 × 4 fields, differ where they differ most.

    JPEG stores colours coarsely, which the mean of a field bears.
    """
    left, right = (
        survey.colour[rows].reshape(len(rows), 4, 2, 4, 2, 3).mean(axis=(2, 4), dtype=np.float32) for rows in (a, b)
    )
    left = np.stack(symmetries(left))[best, np.arange(len(a))]
    left, right = (field - field.mean(axis=3, keepdims=True) for field in (left, right))
    apart, one, other = (_most(np.abs(field).mean(axis=3)) for field in (left - right, left, right))
    return np.asarray(apart > TINT + TINT_SHARE * np.maximum(one, other))


def _most(fields: np.ndarray) -> np.ndarray:
    """(n, 4, 4) → (n,): the mean of the two largest."""
    most: np.ndarray = np.sort(fields.reshape(len(fields), -1), axis=1)[:, -2:].mean(axis=1)
    return most


def _same_details(survey: Survey, pairs: Pairs) -> np.ndarray:
    """(P,) bool: whether the middle frequencies agree, which tells a copy from another shirt of the same cut."""
    from scipy.fft import dctn

    number = np.arange(SIDE)
    largest = np.maximum(number[:, None], number)
    band = (largest >= BAND[0]) & (largest < BAND[1])
    agree = np.empty(len(pairs), dtype=bool)
    for start in range(0, len(pairs), BLOCK):
        some = slice(start, start + BLOCK)
        left, right = (standard(survey.grey[rows[some]]) for rows in (pairs.a, pairs.b))
        versions = np.stack(symmetries(left))
        best = np.stack([(version * right).sum(axis=(1, 2)) for version in versions]).argmax(axis=0)
        left = versions[best, np.arange(len(left))]
        x, y = (dctn(images, axes=(1, 2), norm="ortho")[:, band] for images in (left, right))
        lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        agree[some] = (x * y).sum(axis=1) >= AGREES * lengths
    return agree


# --- families -----------------------------------------------------------------------------------------------------


def families(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(count,) int64: the smallest row of each row's connected component; a, b: the rows that pairs join."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(count, count))
    _, part = connected_components(graph, directed=False)
    _, first, inverse = np.unique(part, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)
