"""What the sample submission asks for, and the metric that it hints at."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import registry
from pipeline.discover.columns import column
from pipeline.discover.draft import Draft
from pipeline.discover.rows import Rows
from pipeline.discover.search import Search
from pipeline.discover.targets import Target
from pipeline.discover.values import asks_fractions
from pipeline.errors import UserError, some


def settle_metric(rows: Rows, target: Target, search: Search | None, draft: Draft) -> None:
    """The metric: given, hinted at by the form of the submission, or the task's default, which is then said."""
    known = target.facts
    hinted, why = _hint(rows, target, str(known["form"]))
    if search and search.depth > 1:
        hinted, why = f"mean_average_precision(k={search.depth})", f"the sample lists {search.depth} answers"
    if hinted and "metric" not in draft.given:
        draft.set("metric", hinted, f"not known, but {why}; see ./run.sh help metrics")
        draft.open["metric"] = (
            f"{hinted} is a guess from the form of the submission; set the competition's own: metric=…"
        )
    elif "metric" not in draft.given:
        draft.set("metric", known["metric"], "not known: the task's default; see ./run.sh help metrics")
        draft.open["metric"] = f"{known['metric']} is only the task's default; set the competition's own: metric=…"
    else:
        draft.set("metric", draft.given["metric"], "")


def _hint(rows: Rows, target: Target, form: str) -> tuple[str, str]:
    """A metric that the sample's form speaks for, and why; blank if none does."""
    if rows.sample_table is None:
        return "", ""
    if target.chances and form == "classes":
        return "log_loss()", "the sample has a column for each class"
    if target.chances and form == "labels" and asks_fractions(rows):
        return "roc_auc()", "the sample has a probability for each label"
    count = ranked(rows, target, form)
    return (f"map_at_k(k={count})", f"the sample ranks {count} answers") if count else ("", "")


def ranked(rows: Rows, target: Target, form: str) -> int:
    """How many classes stand in each cell of the sample, best first; 0 if it does not rank."""
    if rows.sample_table is None or len(rows.answers) != 1 or form != "classes" or len(target.columns) != 1:
        return 0
    cells = column(rows.sample_table, rows.answers[0]).filled
    classes = set(column(rows.table, target.columns[0]).distinct)
    listed = [cell.split() for cell in cells.unique()[:500] if cell not in classes]
    counts, shown = {len(names) for names in listed}, {name for names in listed for name in names}
    other = shown - classes  # the sample may show a class that no training row has, but no confidences
    known = 2 * len(other) < len(shown) and not any("." in name for name in other)
    return counts.pop() if listed and len(counts) == 1 and known else 0


def settle_answers(rows: Rows, target: Target, search: Search | None, draft: Draft) -> str:
    """What a cell of the submission will hold, in words; UserError where the sample asks for other things."""
    if target.facts.get("spatial"):
        row = str(draft.value("mask.rows", "image"))
        return f"run-length texts, one row {'a' if row == 'class' else 'an'} {row}"
    if search:
        return f"{rows.answers[0] if rows.answers else target.columns[0]}: {search.answer}"
    if "data.answers" in draft.given:
        draft.set("data.answers", draft.given["data.answers"], "")
    if target.separator:
        draft.set("data.separator", target.separator, "stands between the labels of a cell")
    if rows.sample_table is None:
        return "none given: ids and the answer"
    repeated = int(rows.sample_table.iloc[:, 0].duplicated().sum())
    if repeated:
        draft.notes.append(f"{rows.sample}: {repeated} rows repeat an image; each gets its image's answer")
    form = str(target.facts["form"])
    if len(rows.answers) > 1:
        apart = ", a row each" if draft.value("data.long") else ""
        return f"{len(rows.answers)} columns{apart}: {some(rows.answers, 4)}"
    cells = column(rows.sample_table, rows.answers[0])
    return f"{rows.answers[0]}: {_cell(rows, target, draft, form, cells.distinct)}"


def _check_shown(rows: Rows, classes: Sequence[str], shown: Sequence[str]) -> None:
    """UserError where most of the sample's cells are several words, and neither a class nor classes in turn."""
    known = set(classes)
    several = [cell for cell in shown if len(cell.split()) > 1 and cell not in known]
    if 2 * len(several) > len(shown):
        raise UserError(
            f"{rows.sample} shows {several[0][:60]!r}, but the classes are {some(classes, 4)}: boxes, captions and "
            "confidences are no answers here, and ranked ones must be classes. Leave the sample out, data.sample=, and "
            "turn the submission's cells round afterwards"
        )


def _cell(rows: Rows, target: Target, draft: Draft, form: str, shown: Sequence[str]) -> str:
    wants = registry.facts("metrics", str(draft.value("metric"))).get("wants")
    if form == "numbers":
        return "a number"
    if form == "labels":
        return f"labels, {'blanks' if target.separator == ' ' else target.separator} between them"
    if draft.value("data.answers", "auto") not in ("auto", ""):
        return str(draft.value("data.answers"))
    count = ranked(rows, target, form)
    if count:
        return f"{count} classes, the likeliest first"
    classes = column(rows.table, target.columns[0]).distinct if len(target.columns) == 1 else target.columns
    _check_shown(rows, classes, shown)
    if len(classes) == 2 and wants == "probability":
        return f"the probability of {classes[1]}"
    names = not all(
        cell.lstrip("-").replace(".", "", 1).isdigit() for cell in classes
    )  # classes of numbers have no places
    if names and shown and all(cell.isdigit() for cell in shown) and not set(shown) <= set(classes):
        if max(map(int, shown)) >= len(classes):
            raise UserError(
                f"{rows.sample} shows {some(shown)}, which are neither classes ({some(classes)}) nor their places; "
                "correct data.target or data.sample"
            )
        return "a class's number, by sorted name from 0"
    return f"a class, such as {classes[0]}"
