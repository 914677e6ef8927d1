"""The labelling page: driven by keys in a headless browser, the csv that it gives; and what goes into it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import asdict

import numpy as np
import pytest

from pipeline import label_lists, labelling
from pipeline.labelling import Asked
from pipeline.tasks.multiclass import Multiclass
from pipeline.tasks.multilabel import Multilabel
from pipeline.tasks.regression import Regression

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
KEYS = """<script>
const press = (key, on) => (on || document).dispatchEvent(
  new KeyboardEvent("keydown", {key: key, bubbles: true, cancelable: true}));
const type = (name, text) => { const field = document.getElementById(name); field.value = text;
  field.dispatchEvent(new Event("input")); };
const $$ = name => document.getElementById(name).textContent, told = [];
STEPS
told.push($$("csv"), $$("progress"), document.documentElement.scrollWidth <= innerWidth);
document.body.dataset.told = JSON.stringify(told);
</script>"""


def drawn(asked: Asked, count: int = 4, columns: int = 0) -> str:
    generator, items = np.random.default_rng(0), []
    for row in range(count):
        image = generator.integers(0, 256, (12, 9, 3), dtype=np.uint8)
        values = np.eye(max(columns, count))[row][:columns] * 0.75 + 0.25 / max(columns, 1)
        decided = {"one": values.argmax() if columns else 0, "many": values > 0.5, "numbers": np.array([1.5 + row])}
        items.append(labelling.item(asked, f"i{row}", image, values, decided[asked.kind], "rank 1"))
    return labelling.page("whales", "4 images", "key", "labels.csv", asked, items)


def pressed(text: str, steps: str, folder) -> list:
    """What the page says after these steps of a script."""
    probe, frame = folder / "probe.html", folder / "phone.html"  # a frame has any width; a window is 500 px at least
    probe.write_text(text.replace("</body>", KEYS.replace("STEPS", steps) + "</body>"))
    frame.write_text(
        '<iframe src="probe.html" width="390" height="800"></iframe><script>onload = () => '
        "document.body.dataset.told = frames[0].document.body.dataset.told</script>"
    )
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}", "--dump-dom", f"file://{frame}",
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    [found] = re.findall(r'<body data-told="([^"]+)"', ended.stdout) or [ended.stderr]
    return json.loads(html.unescape(found))


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_classes_by_keys_with_undo_skip_and_what_the_browser_keeps(tmp_path):
    asked = Asked("one", "image", ["species"], ["cat", 'd"og, big', "owl</script>"])
    steps = """press("2"); press(" "); press("g"); press("ArrowRight"); press("9");
      told.push($$("csv"), $$("of"));
      press("u"); told.push($$("csv")); press("3"); press("ArrowLeft"); told.push($$("of"));
      press("1"); press("1"); press("1"); told.push(document.getElementById("done").hidden);
      told.push(JSON.parse(localStorage.getItem("label key")).past.length);"""
    found = pressed(drawn(asked, columns=3), steps, tmp_path)
    head, dog, owl = "image,species\n", 'i0,"d""og, big"\n', "i2,owl</script>\n"
    assert found[:2] == [head + dog + owl, "4 of 4"], "g took the likeliest class, and 9, which is no class, nothing"
    assert found[2] == head + dog
    assert found[3] == "3 of 4"
    assert found[4] is False, "it says that all are labelled"
    assert found[5] == 6, "what was undone is forgotten, a skip counts"
    assert found[6] == head + dog + "i1,cat\ni2,cat\ni3,cat\n", "what was skipped came again at the end"
    assert found[7] == "4 of 4 labelled"
    assert found[8], "the page scrolls sideways on a phone"


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_many_classes_are_searched_and_labels_are_switched(tmp_path):
    names = [f"kind {place:02d}" for place in range(60)]
    steps = """press("1"); press("/"); type("search", "59"); press("Enter", document.getElementById("search"));
      type("search", "nobody"); press("Enter", document.getElementById("search")); told.push($$("told"));"""
    found = pressed(drawn(Asked("one", "id", ["label"], names), columns=60), steps, tmp_path)
    assert found[0] == "no class is called so"
    assert found[1] == "id,label\ni0,kind 00\ni1,kind 59\n", "1 is the likeliest; the search finds the rest"
    (tmp_path / "many").mkdir()
    switched = """press("3"); press("1"); press("1"); press("2"); press("Enter"); press("Enter"); told.push($$("told"));
      press("g"); press("Enter");"""
    asked = Asked("many", "id", ["a", "b", "c"], ["a", "b", "c"], empty=False)
    found = pressed(drawn(asked, columns=3), switched, tmp_path / "many")
    assert found[0].startswith("every image of this competition has a label")
    assert found[1] == "id,a,b,c\ni0,0,1,1\ni1,0,1,0\n"


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize(
    ("separator", "cells"), [(" ", ("", "cat's", "cat's dog")), ("['a', 'b']", ("[]", '"[""cat\'s""]"', None))]
)
def test_several_labels_of_one_cell_are_written_as_the_table_has_them(tmp_path, separator, cells):
    cell = asdict(label_lists.shape(separator))
    steps = 'press("Enter"); press("1"); press("Enter"); press("1"); press("2"); press("Enter");'
    [found, *_] = pressed(drawn(Asked("many", "id", ["tags"], ["cat's", "dog"], cell), columns=2), steps, tmp_path)
    last = cells[2] or '"[""cat\'s"", \'dog\']"'
    assert found == f"id,tags\ni0,{cells[0]}\ni1,{cells[1]}\ni2,{last}\n"


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_numbers_are_typed_and_checked(tmp_path):
    asked = Asked("numbers", "id", ["age"], [], low=0.0, high=99.0)
    steps = """const field = document.getElementById("n0"); type("n0", "7,25"); press("Enter", field);
      type("n0", "seven"); press("Enter", field); told.push($$("told")); type("n0", "100"); press("Enter", field);
      told.push($$("told")); press("g", field); press("Enter", field);"""
    found = pressed(drawn(asked), steps, tmp_path)
    assert found[:2] == ["age needs a number", "age must be at most 99"]
    assert found[2] == "id,age\ni0,7.25\ni1,2.5\n"


def test_the_page_needs_nothing_from_outside_and_no_name_breaks_out_of_it():
    text = drawn(Asked("one", "id", ["label"], ["</script><img src=x onerror=alert(1)>", "b"]), columns=2)
    assert "</script><img" not in text
    assert not re.search(r'(src|href)="?(https?:)?//', text)
    assert text.count("data:image/png;base64,") == 4


@pytest.mark.parametrize(
    ("task", "kind"),
    [(Multiclass("ab"), "one"), (Multilabel(["a", "b"], ["label"]), "many"), (Regression(["age"], low=0), "numbers")],
)
def test_how_a_task_is_asked(task, kind):
    asked = labelling.asked(task, "id", ["label"], " ")
    assert asked.kind == kind
    assert asked.classes == ([] if kind == "numbers" else ["a", "b"])
    assert asked.low == (0 if kind == "numbers" else None)
