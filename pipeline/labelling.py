"""The page on which people label what stage=select proposes: one HTML file that needs nothing from outside.

Its images and its script lie inside. It is driven by the keyboard or by taps, keeps its state in the browser, and gives
a csv with the columns of train.csv, which stage=absorb takes. Its look is that of report.html, ``pipeline/report``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pipeline import label_lists
from pipeline.forms import CLASSES, LABELS, NUMBERS
from pipeline.report.look import STYLE
from pipeline.report.markup import Markup, tag
from pipeline.report.page import encoded

LONGEST = 448  # pixels of the longer side of an image
LIKELY = 5  # classes that are shown with their probability
KINDS = {CLASSES.name: "one", LABELS.name: "many", NUMBERS.name: "numbers"}  # how a form is labelled
OWN = """
header { display: flex; flex-wrap: wrap; gap: .3rem 1rem; align-items: baseline; padding-top: 1rem; }
h1 { font-size: 1.25rem; } header .lead { margin: 0; font-size: .85rem; }
.bar { flex-basis: 100%; height: .5rem; border-radius: 1rem; background: var(--edge); overflow: hidden; }
.bar i { display: block; height: 100%; width: 0; background: var(--accent); }
main.label { display: grid; grid-template-columns: minmax(0, 1.15fr) minmax(19rem, 1fr); gap: 1rem; align-items: start;
  margin-top: .8rem; }
.card.big { background: var(--card); border-radius: .9rem; padding: .8rem; }
.stage { display: flex; align-items: center; justify-content: center; height: min(68vh, 34rem); background: var(--sunk);
  border-radius: .6rem; overflow: hidden; }
.stage img { width: 100%; height: 100%; object-fit: contain; border-radius: 0; }
.what { display: flex; justify-content: space-between; gap: .8rem; font-size: .82rem; margin-top: .5rem; }
.what b { font-variant-numeric: tabular-nums; }
.panel { display: flex; flex-direction: column; gap: .8rem; } .panel > * { margin: 0; }
.search + .choices { margin-top: .6rem; }
.choices { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .4rem; max-height: 22rem;
  overflow-y: auto; padding: 2px; }
button, input, textarea { font: inherit; color: var(--text); }
button { background: var(--sunk); border: 1px solid var(--edge); border-radius: .5rem; padding: .5rem .6rem;
  cursor: pointer; text-align: left; min-height: 2.6rem; overflow-wrap: anywhere; }
button:hover { border-color: var(--accent); }
button.on { border-color: var(--accent); box-shadow: inset 0 0 0 1px var(--accent); font-weight: 650; }
button.on::after { content: " ✓"; color: var(--accent); }
button.first { border-style: dashed; border-color: var(--accent); }
button.main { background: var(--accent); border-color: var(--accent); color: var(--page); font-weight: 650; }
kbd { font: .78em ui-monospace, "SF Mono", "DejaVu Sans Mono", monospace; border: 1px solid var(--edge);
  border-bottom-width: 2px; border-radius: .3em; padding: .05em .4em; margin-right: .45em; background: var(--card);
  color: var(--faint); font-weight: 400; }
button.main kbd { background: none; color: inherit; border-color: currentColor; }
.search, .numbers input { width: 100%; background: var(--sunk); border: 1px solid var(--edge); border-radius: .5rem;
  padding: .55rem .7rem; }
.numbers label { display: block; font-size: .85rem; color: var(--faint); } .numbers label + label { margin-top: .6rem; }
.numbers input { font-size: 1.2rem; margin-top: .15rem; color: var(--text); }
.acts { display: grid; grid-template-columns: repeat(auto-fit, minmax(6.6rem, 1fr)); gap: .4rem; }
.acts button { text-align: center; padding: .45rem .3rem; }
.told { min-height: 1.4em; font-size: .85rem; color: var(--bad); }
.panel h2 { font-size: .85rem; color: var(--faint); font-weight: 600; }
textarea { width: 100%; height: 9rem; background: var(--sunk); border: 1px solid var(--edge); border-radius: .5rem;
  font: .8rem ui-monospace, "DejaVu Sans Mono", monospace; padding: .5rem; }
.done { border: 1px solid var(--good); color: var(--good); border-radius: .6rem; padding: .6rem .8rem; }
@media (max-width: 48rem) { main.label { grid-template-columns: minmax(0, 1fr); margin-top: .5rem; }
  .stage { height: min(36vh, 20rem); } .card.big { padding: .6rem; } header { padding-top: .6rem; }
  .choices { grid-template-columns: repeat(auto-fill, minmax(6.6rem, 1fr)); max-height: 19rem; } }
@media (hover: none) and (pointer: coarse) { .panel kbd { display: none; } }
"""
SCRIPT = r"""
(function () {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent), items = data.items;
  const $ = name => document.getElementById(name), place = "label " + data.key;
  const LETTERS = "abcdefhijklmnopqrstvwyz", KEYS = "123456789" + LETTERS;  // g, u and x are taken
  const many = data.classes.length > KEYS.length;  // then the digits are the likeliest classes of each image
  let state = {answers: {}, skipped: {}, past: [], at: 0}, draft = [], keeps = true, told = "";
  try {
    const kept = JSON.parse(localStorage.getItem(place));
    if (kept && kept.answers) state = Object.assign(state, kept);
  } catch (fault) { keeps = false; }
  if (!(state.at >= 0 && state.at < items.length)) state.at = 0;

  function keep() {
    try { localStorage.setItem(place, JSON.stringify(state)); } catch (fault) { keeps = false; }
  }
  const current = () => items[state.at];
  const answered = item => Object.prototype.hasOwnProperty.call(state.answers, item.id);
  const left = () => items.filter(item => !answered(item)).length;
  function next(from) {
    for (let step = 1; step <= items.length; step += 1) {
      const there = (from + step) % items.length;
      if (!answered(items[there]) && !state.skipped[items[there].id]) return there;
    }
    for (let step = 1; step <= items.length; step += 1) {  // what was skipped comes again at the end
      if (!answered(items[(from + step) % items.length])) return (from + step) % items.length;
    }
    return from;
  }
  function answer(value) {
    const id = current().id;
    state.past.push({at: state.at, id: id, was: answered(current()) ? state.answers[id] : null,
                     skipped: !!state.skipped[id]});
    state.answers[id] = value;
    delete state.skipped[id];
    go(next(state.at));
  }
  function skip() {
    const id = current().id;
    if (!answered(current())) {
      state.past.push({at: state.at, id: id, was: null, skipped: !!state.skipped[id]});
      state.skipped[id] = true;
    }
    go(next(state.at));
  }
  function undo() {
    const last = state.past.pop();
    if (!last) return tell("nothing to undo");
    if (last.was === null) delete state.answers[last.id]; else state.answers[last.id] = last.was;
    if (last.skipped) state.skipped[last.id] = true; else delete state.skipped[last.id];
    go(last.at);
  }
  function go(there) {
    state.at = Math.max(0, Math.min(items.length - 1, there));
    told = "";
    keep();
    begin();
    show();
  }
  function begin() {
    const known = answered(current()) ? state.answers[current().id] : null;
    draft = known === null ? (data.kind === "numbers" ? data.columns.map(() => "") : []) : known.slice();
    if ($("search")) $("search").value = "";
  }
  function tell(words) { told = words; $("told").textContent = words; }

  function choose(which) {
    if (data.kind === "one") return answer([which]);
    draft = draft.includes(which) ? draft.filter(one => one !== which) : draft.concat(which).sort((a, b) => a - b);
    tell("");
    show();
  }
  function confirm() {
    if (data.kind === "one") return tell("choose a class, or press g for the model's guess");
    if (data.kind === "many") {
      if (!draft.length && !data.empty) return tell("every image of this competition has a label: choose one at least");
      return answer(draft);
    }
    for (let column = 0; column < data.columns.length; column += 1) {
      const text = draft[column].trim().replace(",", "."), value = Number(text);
      const name = data.columns[column];
      if (text === "" || !Number.isFinite(value)) return tell(name + " needs a number");
      if (data.low !== null && value < data.low) return tell(name + " must be at least " + data.low);
      if (data.high !== null && value > data.high) return tell(name + " must be at most " + data.high);
      draft[column] = text;
    }
    answer(draft);
  }
  function guess() {
    if (data.kind === "one") return current().guess.length ? answer([current().guess[0]]) : undefined;
    draft = current().guess.map(one => data.kind === "numbers" ? String(one) : one);
    tell("");
    show();
  }

  function quoted(text) {
    return /[",\n\r]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
  }
  function cells(value) {
    if (data.kind === "numbers") return value;
    const there = name => value.some(one => data.classes[one] === name);
    if (data.columns.length > 1) return data.columns.map(name => there(name) ? "1" : "0");
    const cell = data.cell, other = {"'": '"', '"': "'"}[cell.quote];
    const quote = name => cell.quote && name.includes(cell.quote) ? other : cell.quote;
    const names = value.map(one => data.classes[one]).map(name => quote(name) + name + quote(name));
    return [cell.open + names.join(cell.between) + cell.close];
  }
  function csv() {
    const rows = items.filter(answered).map(item => [item.id].concat(cells(state.answers[item.id])));
    return [[data.id].concat(data.columns)].concat(rows).map(row => row.map(quoted).join(",")).join("\n") + "\n";
  }
  function save() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv()], {type: "text/csv"}));
    link.download = data.file;
    document.body.append(link);
    link.click();
    link.remove();
    tell("");
    $("told").textContent = data.file + ": " + (items.length - left()) + " rows; next: ./run.sh stage=absorb labels=" +
      data.file;
  }

  function button(which, key) {
    const one = document.createElement("button");
    one.type = "button";
    if (key) { const cap = document.createElement("kbd"); cap.textContent = key; one.append(cap); }
    one.append(data.classes[which]);
    one.classList.toggle("on", draft.includes(which));
    one.setAttribute("aria-pressed", draft.includes(which));
    one.addEventListener("click", () => choose(which));
    return one;
  }
  function offered() {
    const wanted = $("search") ? $("search").value.trim().toLowerCase() : "", found = [];
    const likely = many ? current().likely.map(pair => pair[0]) : [];
    data.classes.forEach((name, which) => {
      if (wanted ? name.toLowerCase().includes(wanted) : !likely.includes(which)) found.push(which);
    });
    if (wanted) found.sort((a, b) => !data.classes[a].toLowerCase().startsWith(wanted) -
      !data.classes[b].toLowerCase().startsWith(wanted) || a - b);
    return wanted ? found : likely.concat(found);
  }
  function keyOf(which) {
    return many ? KEYS.slice(0, 9)[current().likely.findIndex(pair => pair[0] === which)] : KEYS[which];
  }
  function show() {
    const item = current(), done = items.length - left();
    $("image").src = item.src;
    $("image").alt = "image " + item.id;
    $("image").style.imageRendering = item.tiny ? "pixelated" : "auto";
    $("name").textContent = item.id;
    $("why").textContent = item.why;
    $("of").textContent = (state.at + 1) + " of " + items.length;
    const skips = Object.keys(state.skipped).length;
    $("progress").textContent = done + " of " + items.length + " labelled" + (skips ? ", " + skips + " skipped" : "") +
      (keeps ? "" : "; this browser keeps nothing: save before you close the page");
    $("fill").style.width = (100 * done / items.length) + "%";
    $("done").hidden = left() > 0;
    $("told").textContent = told;
    $("csv").textContent = csv();
    const likely = $("likely");
    likely.textContent = "";
    for (const [which, chance] of item.likely) {
      const [name, meter, value] = [1, 2, 3].map(() => document.createElement("span"));
      name.textContent = data.classes[which];
      meter.className = "meter true";
      meter.append(document.createElement("i"));
      meter.firstChild.style.width = (100 * chance) + "%";
      value.textContent = chance.toFixed(3);
      likely.append(name, meter, value);
    }
    if (data.kind === "numbers") {
      data.columns.forEach((name, column) => { $("n" + column).value = draft[column]; });
      $("said").textContent = "guess: " + item.guess.map((one, column) => data.columns.length > 1 ?
        data.columns[column] + " " + one : one).join(", ");
      $("n0").focus({preventScroll: true});
      return;
    }
    const first = $("search") && $("search").value.trim() ? offered()[0] : -1;
    $("choices").replaceChildren(...offered().slice(0, 400).map(which => {
      const one = button(which, keyOf(which));
      one.classList.toggle("first", which === first);
      return one;
    }));
  }

  function command(key) {
    if (key === "ArrowLeft") return go(state.at - 1), true;
    if (key === "ArrowRight") return go(state.at + 1), true;
    if (key === "Enter") return confirm(), true;
    if (key === " ") return skip(), true;
    if (key === "u") return undo(), true;
    if (key === "g") return guess(), true;
    if (key === "x") return save(), true;
    if (key === "/" && $("search")) return $("search").focus(), true;
    if (data.kind === "numbers") return false;
    const which = many ? (current().likely["123456789".indexOf(key)] || [])[0] :
      KEYS.indexOf(key) >= 0 && KEYS.indexOf(key) < data.classes.length ? KEYS.indexOf(key) : undefined;
    return which === undefined ? false : (choose(which), true);
  }
  function searching(event) {
    if (event.key === "Escape") { $("search").value = ""; $("search").blur(); show(); return; }
    if (event.key !== "Enter") return;
    const found = offered();
    event.preventDefault();
    if (!$("search").value.trim() || !found.length) return tell("no class is called so");
    $("search").value = "";
    if (data.kind === "one") $("search").blur();
    choose(found[0]);
  }
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const inside = event.target.tagName;
    if (event.target.id === "search") return searching(event);
    if (inside === "TEXTAREA" || inside === "SUMMARY") return;
    if (inside === "BUTTON" && (event.key === "Enter" || event.key === " ")) return;  // the button's own
    if (inside === "INPUT" && event.key.startsWith("Arrow") && event.target.value) return;  // moves the cursor
    if (command(event.key)) event.preventDefault();
  });
  for (const [name, act] of [["skip", skip], ["undo", undo], ["guess", guess], ["save", save], ["confirm", confirm],
    ["back", () => go(state.at - 1)], ["on", () => go(state.at + 1)]]) {
    if ($(name)) $(name).addEventListener("click", event => { act(); event.currentTarget.blur(); });
  }
  if ($("search")) $("search").addEventListener("input", () => { tell(""); show(); });
  data.columns.forEach((name, column) => {
    const field = $("n" + column);
    if (field) field.addEventListener("input", () => { draft[column] = field.value; tell(""); });
  });
  begin();
  show();
})();
"""


@dataclass(frozen=True)
class Asked:
    """What is labelled. kind: see ``KINDS``. classes: names, none of numbers. columns: of the target in train.csv.

    cell: how several labels are written, as ``label_lists.Shape``. empty: whether an image may have no label.
    low, high: of numbers, None where there is no bound.
    """

    kind: str
    id: str
    columns: list[str]
    classes: list[str]
    cell: dict[str, str] = field(default_factory=lambda: asdict(label_lists.shape(" ")))
    empty: bool = True
    low: float | None = None
    high: float | None = None


def asked(task: Any, id: str, columns: list[str], separator: str) -> Asked | None:
    """How a task's images are labelled; None where a page cannot ask for its answers, such as masks."""
    kind = KINDS.get(task.form.name)
    if kind is None:
        return None
    low, high = getattr(task, "bounds", (None, None))
    names = [] if kind == "numbers" else [str(name) for name in task.columns]
    return Asked(
        kind, id, list(columns), names, asdict(label_lists.shape(separator)), getattr(task, "empty", False), low, high
    )


def item(
    asked: Asked, name: str, pixels: np.ndarray, values: np.ndarray, decided: np.ndarray, why: str
) -> dict[str, Any]:
    """An image of the page. pixels: (H, W, C) uint8. values: (C,), decided: its answer. why: it is worth a label."""
    src, tiny = encoded(pixels, LONGEST)
    known = {"id": name, "src": src, "tiny": tiny, "why": why, "likely": []}
    if asked.kind == "numbers":
        return {**known, "guess": [float(f"{number:.6g}") for number in np.atleast_1d(decided)]}
    best = np.argsort(-values, kind="stable")[:LIKELY]
    guess = np.flatnonzero(decided) if asked.kind == "many" else [decided]
    likely = [[int(place), round(float(values[place]), 4)] for place in best]
    return {**known, "guess": [int(place) for place in guess], "likely": likely}


def page(title: str, lead: str, key: str, file: str, asked: Asked, items: list[dict[str, Any]]) -> str:
    """The whole file. key: under which the browser keeps its state. file: the name of the csv that it gives."""
    told = {**vars(asked), "key": key, "file": file, "items": items}
    text = json.dumps(told, ensure_ascii=False, allow_nan=False).replace("</", "<\\/").replace("<!--", "<\\!--")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{title} · labels"),
        tag("style", Markup(STYLE + OWN)),
    )
    bar = tag("div", tag("i", id="fill"), class_="bar")
    progress = tag("p", id="progress", class_="lead", aria_live="polite")
    body = tag(
        "body",
        tag("header", tag("h1", title), tag("p", lead, class_="lead"), progress, bar),
        tag("main", _picture(), _panel(asked), class_="label"),
        tag("footer", _help(asked)),
        tag("script", Markup(text), id="data", type="application/json"),
        tag("script", Markup(SCRIPT)),
    )
    return f'<!doctype html>\n<html lang="en">{head}\n{body}</html>\n'


def _picture() -> Markup:
    what = tag("div", tag("span", tag("b", id="name"), " ", tag("span", id="of", class_="faint")), class_="what")
    return tag("div", tag("div", tag("img", id="image"), class_="stage"), what, tag("p", id="why", class_="note"),
               class_="card big")  # fmt: skip


def _panel(asked: Asked) -> Markup:
    return tag(
        "div",
        tag("div", "All images are labelled: save the csv.", id="done", class_="done", hidden=True),
        _answers(asked),
        tag("p", id="told", class_="told", role="status"),
        tag("div", _buttons(asked), class_="acts"),
        tag("div", tag("h2", "what the members guess") if asked.classes else tag("p", id="said", class_="note"),
            tag("div", id="likely", class_="chances")),
        tag("details", tag("summary", "the csv so far"), tag("textarea", id="csv", readonly=True, aria_label="csv")),
        class_="card big panel",
    )  # fmt: skip


def _answers(asked: Asked) -> Markup:
    if asked.kind == "numbers":
        fields = [
            tag("label", name, tag("input", id=f"n{place}", type="text", inputmode="decimal", autocomplete="off"))
            for place, name in enumerate(asked.columns)
        ]
        return tag("div", fields, class_="numbers")
    search = tag("input", id="search", class_="search", type="search", placeholder="search a class: /",
                 autocomplete="off", aria_label="search a class")  # fmt: skip
    return tag("div", search if len(asked.classes) > 12 else "", tag("div", id="choices", class_="choices"))


def _buttons(asked: Asked) -> list[Markup]:
    acts = [("skip", "space", "skip"), ("undo", "u", "undo"), ("guess", "g", "guess"), ("back", "←", "back"),
            ("on", "→", "next"), ("save", "x", "save csv")]  # fmt: skip
    if asked.kind != "one":
        acts.insert(0, ("confirm", "⏎", "confirm"))
    first = {"confirm", "save"} if asked.kind != "one" else {"save"}
    return [
        tag("button", tag("kbd", key), word, id=name, type="button", class_="main" if name in first else None)
        for name, key, word in acts
    ]


def _help(asked: Asked) -> Markup:
    how = {
        "one": "a key labels the image and goes on; g takes the likeliest class",
        "many": "keys switch labels on and off, Enter confirms; g begins with what the members answer",
        "numbers": "type a number, Enter confirms; g begins with what the members answer",
    }[asked.kind]
    keys = "space skips (skipped images come again at the end), u undoes, arrows move, x saves the csv"
    return tag("p", f"{how}; {keys}. What you label stays in this browser until you save it; nothing leaves the page.")
