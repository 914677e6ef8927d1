"""How targets, sizes and channels are distributed: sheets that are always shown, and findings where it bites."""

from __future__ import annotations

from collections import Counter

import numpy as np

from pipeline.doctor.findings import Example, Finding, Sheet, counted
from pipeline.doctor.survey import Survey
from pipeline.errors import some

SHOWN = 20  # classes or sizes in a table
BINS = 12
BARS = "▁▂▃▄▅▆▇█"
STEPS = (1, 2, 4, 8, 16, 32, 64)  # images an identity, from which another line counts
RARE = 10  # fewer rows than this are few for any class
SKEWED = 20  # times as many rows in the largest class as in the smallest


def sizes(survey: Survey) -> Sheet:
    """Rows, decoded images, the commonest size, the smallest and the largest, and channels, for train and test."""
    rows = []
    for name, mask in parts(survey):
        kept = np.flatnonzero(mask & survey.good)
        row = [name, f"{mask.sum():,}", f"{(mask & ~survey.good).sum():,}"]
        if len(kept):
            wide, high = survey.size[kept].T.astype(int).tolist()
            common, times = Counter(zip(wide, high, strict=True)).most_common(1)[0]
            kinds = Counter(survey.channels[kept].tolist())
            row += [f"{common[0]}×{common[1]} ({times / len(kept):.0%})", f"{min(wide)}–{max(wide)}"]
            row += [f"{min(high)}–{max(high)}", ", ".join(f"{kind} ({n:,})" for kind, n in sorted(kinds.items()))]
        rows.append(row + ["–"] * (7 - len(row)))
    head = ["", "rows", "broken", "commonest size", "width", "height", "channels in the file"]
    return Sheet("Images", head, rows)


def parts(survey: Survey) -> list[tuple[str, np.ndarray]]:
    """train and test as masks; a part without rows is left out."""
    masks = [("train", survey.is_train), ("test", ~survey.is_train)]
    return [(name, mask) for name, mask in masks if mask.any()]


def colours(survey: Survey) -> Sheet | None:
    """Mean and standard deviation of each channel over the training images, beside ImageNet's."""
    count, mean, square = survey.moments
    if not len(count) or not count.min():
        return None
    mean, square = mean / count, square / count
    rows = [["this data", numbers(mean), numbers(np.sqrt(np.maximum(square - mean**2, 0)))]]
    if len(mean) in (1, 3):
        rows.append(["ImageNet (most backbones)", "0.485 0.456 0.406", "0.229 0.224 0.225"])
    remark = "data.normalise=backbone keeps the backbone's, data.normalise=dataset measures them at the training size"
    return Sheet("Mean and standard deviation of the channels, in 0…1", ["", "mean", "std"], rows, remark)


def numbers(values: np.ndarray) -> str:
    """The first few values with three digits."""
    return " ".join(f"{value:.3f}" for value in values[:4]) + (" …" if len(values) > 4 else "")


# --- targets ------------------------------------------------------------------------------------------------------


def targets(strata: np.ndarray, columns: list[str], folds: np.ndarray | None) -> tuple[list[Sheet], list[Finding]]:
    """strata: (N,) text, (N, C) whole 0/1 or (N, T) floats, as a task gives them; folds: (N,) or None."""
    if strata.ndim == 1:
        names, code = np.unique(strata, return_inverse=True)
        return _classes(names.tolist(), np.bincount(code), _per_fold(np.eye(len(names))[code], folds))
    if np.issubdtype(strata.dtype, np.integer):
        return _classes(columns, strata.sum(axis=0), _per_fold(strata, folds), len(strata))
    return _histograms(strata, columns), []


def identities(strata: np.ndarray, folds: np.ndarray | None) -> tuple[list[Sheet], list[Finding]]:
    """How many images identities (N,) text have: of an open set, whose folds (N,) hold each of them whole."""
    names, code, counts = np.unique(strata, return_inverse=True, return_counts=True)
    shown = range(0 if folds is None else folds.max(initial=-1) + 1)
    lines = []
    for low, high in zip(STEPS, (*STEPS[1:], len(strata) + 1), strict=True):
        inside = (counts >= low) & (counts < high)
        own = [str(len(np.unique(code[inside[code] & (folds == fold)]))) for fold in shown]
        span = str(low) if high == low + 1 else f"{low}–{high - 1}" if high <= STEPS[-1] else f"{low} or more"
        if inside.any():
            share = f"{counts[inside].sum() / len(strata):.1%}"
            lines.append([span, f"{inside.sum():,}", share, "█" * max(1, round(16 * inside.mean())), *own])
    head = ["images", "identities", "of the rows", "", *(f"fold {fold}" for fold in shown)]
    remark = "identities a fold" if shown else "no folds yet: stage=split deals them"
    return [Sheet(f"{counted(len(names), 'identity', 'identities')} of the training rows", head, lines, remark)], _few(
        names.tolist(), counts
    )


def _few(names: list[str], counts: np.ndarray) -> list[Finding]:
    """Identities of which there is one image, and one that outweighs the others."""
    alone = [names[place] for place in np.flatnonzero(counts == 1)]
    found = []
    if alone:
        found.append(Finding(
            "identities of one image", "note", len(alone),
            f"{counted(len(alone), 'identity has', 'identities have')} one image: {some(alone)}",
            "nothing of theirs can be found in OOF, where they are only in the way of others, as in a gallery",
        ))  # fmt: skip
    if counts.max() > SKEWED * np.median(counts):
        found.append(Finding(
            "imbalance", "note", 1,
            f"the largest identity, {names[int(counts.argmax())]} ({counts.max():,}), has "
            f"{counts.max() / np.median(counts):,.0f} times the images of the median one",
            "sampler=identities() shows all alike; if it stands for what nobody knows, it is no identity: leave it out",
        ))  # fmt: skip
    return found


def _per_fold(marks: np.ndarray, folds: np.ndarray | None) -> np.ndarray | None:
    """(C, F) rows of each class in each fold; rows that are never validated belong to none."""
    if folds is None or folds.max(initial=-1) < 0:
        return None
    return np.stack([marks[folds == fold].sum(axis=0) for fold in range(folds.max() + 1)], axis=1).astype(int)


def _classes(
    names: list[str], counts: np.ndarray, per_fold: np.ndarray | None, rows: int = 0
) -> tuple[list[Sheet], list[Finding]]:
    """rows: 0 where each row is of one class, else their number, since labels overlap."""
    order = np.argsort(-counts, kind="stable")
    shown = order if len(order) <= SHOWN else np.concatenate([order[: SHOWN - 5], order[-5:]])
    total, most = rows or counts.sum(), max(1, counts.max())
    lines = []
    for place in shown:
        folds = [str(n) for n in per_fold[place]] if per_fold is not None else []
        bar = "█" * max(1, round(16 * counts[place] / most)) if counts[place] else ""
        lines.append([str(names[place]), f"{counts[place]:,}", f"{counts[place] / total:.1%}", bar, *folds])
    if len(order) > SHOWN:
        left = counted(len(order) - SHOWN, "class", "classes")
        lines.insert(SHOWN - 5, [f"… {left} between", *[""] * (len(lines[0]) - 1)])
    head = ["class" if not rows else "label", "rows", "share", "", *(f"fold {k}" for k in _folds(per_fold))]
    remark = "" if per_fold is not None else "no folds yet: stage=split deals them"
    title = (
        f"{counted(len(names), 'class', 'classes') if not rows else counted(len(names), 'label')} of the training rows"
    )
    return [Sheet(title, head, lines, remark)], _rare(names, counts, per_fold)


def _folds(per_fold: np.ndarray | None) -> range:
    return range(0 if per_fold is None else per_fold.shape[1])


def _rare(names: list[str], counts: np.ndarray, per_fold: np.ndarray | None) -> list[Finding]:
    found = []
    rare = [f"{names[place]} ({counts[place]})" for place in np.argsort(counts, kind="stable") if counts[place] < RARE]
    if rare:
        found.append(Finding(
            "rare classes", "warning", len(rare),
            f"{counted(len(rare), 'class has', 'classes have')} fewer than {RARE} rows: {some(rare)}",
            "their folds' scores are chance: fewer folds (folds.count=3) or more data (data.extra)",
        ))  # fmt: skip
    absent = [names[place] for place in range(len(names)) if per_fold is not None and (per_fold[place] == 0).any()]
    if absent:
        found.append(Finding(
            "classes absent from folds", "warning", len(absent),
            f"{counted(len(absent), 'class is', 'classes are')} absent from at least one fold: {some(absent)}",
            "their score is not measured on every fold: fewer folds, stage=split folds.count=3 overwrite=true",
        ))  # fmt: skip
    if len(counts) > 1 and counts.max() > SKEWED * max(1, counts.min()):
        ends = [int(counts.argmax()), int(counts.argmin())]
        large, small = (f"{names[place]} ({counts[place]:,})" for place in ends)
        found.append(Finding(
            "imbalance", "note", 1,
            f"the largest class, {large}, has {counts.max() / max(1, counts.min()):,.0f} times the rows of the "
            f"smallest, {small}",
            "compare sampler=balanced() and loss=focal(gamma=2.0) with the default on the same folds",
        ))  # fmt: skip
    return found


def _histograms(values: np.ndarray, columns: list[str]) -> list[Sheet]:
    rows = []
    for place, name in enumerate(columns):
        column = values[:, place]
        counts, _ = np.histogram(column, BINS)
        bars = "".join(BARS[min(7, int(8 * n / max(1, counts.max())))] if n else " " for n in counts)
        quantiles = np.quantile(column, [0, 0.05, 0.5, 0.95, 1])
        rows.append([name, *(f"{value:.4g}" for value in (*quantiles, column.mean(), column.std())), f"{bars}"])
    head = ["target", "least", "5 %", "median", "95 %", "largest", "mean", "std", "histogram"]
    return [Sheet("Targets of the training rows", head, rows)]


def lacking(survey: Survey) -> list[Finding]:
    """Images that do not decode, and images of one colour."""
    found = []
    for name, mask in parts(survey):
        rows = [row for row in survey.broken if mask[row]]
        constant = np.flatnonzero(mask & survey.good & survey.constant).tolist()
        if rows:
            mean = "they are predicted as the mean of the others"
            skip = "data.skip_broken=true leaves the rows out" if name == "train" else mean
            found.append(Finding(
                f"undecodable {name} images", "fault" if name == "train" else "warning", len(rows),
                f"{counted(len(rows), f'{name} image does', f'{name} images do')} not decode: "
                f"{some(f'{survey.name(row)} ({survey.broken[row]})' for row in rows)}",
                f"unpack or download them again, or go on: {skip}",
            ))  # fmt: skip
        if constant:
            found.append(Finding(
                f"constant {name} images", "warning", len(constant),
                f"{counted(len(constant), f'{name} image is', f'{name} images are')} of one colour: "
                f"{some(survey.name(row) for row in constant)}",
                "nothing can be learned from them: remove their rows from the table, or look whether their files are "
                "whole" if name == "train" else "look whether their files are whole; no model can tell them apart",
                [Example([row], [f"{name} {survey.name(row)}"]) for row in constant[:12]],
            ))  # fmt: skip
    return found
