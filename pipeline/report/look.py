"""How report.html looks and what its tables can do: one style sheet and one script, both inside the page.

Colours are Okabe and Ito's (2008), which colour-blind people tell apart; light or dark as the reader's system says.
"""

STYLE = """
:root { color-scheme: light dark;
  --page: #f5f6f8; --card: #ffffff; --sunk: #f0f2f5; --edge: #dfe3e8; --text: #1c2026; --faint: #5b6470;
  --accent: #0072b2; --good: #00785a; --bad: #b84700; --grid: #e6e9ed;
  --c0: #0072b2; --c1: #d98a00; --c2: #009e73; --c3: #d55e00; --c4: #b8578f; --c5: #3ea2d6; --c6: #857a00;
  --c7: #555c66; --right: 0, 114, 178; --wrong: 213, 94, 0;
  --shadow: 0 1px 2px rgba(20,30,45,.05), 0 4px 16px rgba(20,30,45,.04); }
@media (prefers-color-scheme: dark) { :root {
  --page: #0e1116; --card: #161b22; --sunk: #1d232c; --edge: #2b323c; --text: #e8ebef; --faint: #98a2ae;
  --accent: #56b4e9; --good: #3fc79a; --bad: #f58a4b; --grid: #262d36;
  --c0: #56b4e9; --c1: #e69f00; --c2: #2ebd91; --c3: #f0793a; --c4: #d98bb8; --c5: #4a8ed0; --c6: #e3d84a;
  --c7: #a9b1bb; --right: 86, 180, 233; --wrong: 240, 121, 58; --shadow: none; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 3.6rem; -webkit-text-size-adjust: 100%; }
@media (prefers-reduced-motion: no-preference) { html { scroll-behavior: smooth; } }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Noto Sans", "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
header, main, footer { max-width: 76rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 1.9rem; }
h1 { font-size: 1.75rem; line-height: 1.2; letter-spacing: -.02em; margin: 0; }
h2 { font-size: 1.2rem; letter-spacing: -.01em; margin: 0; line-height: 1.3; }
h3 { font-size: .95rem; margin: 1.5rem 0 .6rem; } h3:first-child { margin-top: 0; }
p { margin: .4rem 0; } a { color: var(--accent); }
code { font: .86em ui-monospace, "SF Mono", "DejaVu Sans Mono", monospace; background: var(--sunk);
  border-radius: .3em; padding: .1em .35em; }
.faint, .note { color: var(--faint); } .note { font-size: .85rem; max-width: 62rem; }
.lead { color: var(--faint); margin: .35rem 0 0; }
nav { position: sticky; top: 0; z-index: 3; background: var(--page); border-bottom: 1px solid var(--edge);
  margin-top: 1.1rem; }
nav div { max-width: 76rem; margin: 0 auto; padding: .5rem 1.25rem; display: flex; gap: .3rem; overflow-x: auto;
  scrollbar-width: none; }
nav a { white-space: nowrap; text-decoration: none; color: var(--faint); font-size: .85rem; padding: .25rem .7rem;
  border-radius: 2rem; } nav a:hover { background: var(--sunk); color: var(--text); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: .25rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(11.5rem, 100%), 1fr)); gap: .8rem;
  margin: 1.3rem 0 0; padding: 0; }
.tile { background: var(--card); border: 1px solid var(--edge); border-radius: .8rem; padding: .8rem 1rem;
  box-shadow: var(--shadow); min-width: 0; }
.tile dt { color: var(--faint); font-size: .8rem; } .tile dd { margin: 0; }
.tile .value { font-size: 1.55rem; font-weight: 650; letter-spacing: -.02em; font-variant-numeric: tabular-nums;
  line-height: 1.3; } .tile .value small { font-size: .9rem; font-weight: 500; color: var(--faint); letter-spacing: 0; }
.tile .more { color: var(--faint); font-size: .8rem; }
section { background: var(--card); border: 1px solid var(--edge); border-radius: .9rem; padding: 1.2rem 1.3rem 1.3rem;
  margin: 1.1rem 0; box-shadow: var(--shadow); min-width: 0; }
section > .head { display: flex; flex-wrap: wrap; align-items: center; gap: .3rem .7rem; margin-bottom: .8rem; }
.badge { display: inline-block; font-size: .72rem; line-height: 1.5; font-weight: 600; border-radius: 2rem;
  padding: .05rem .55rem; background: var(--sunk); color: var(--faint); white-space: nowrap; }
.badge.nested { color: var(--good); } .badge.warn { color: var(--bad); white-space: normal; border-radius: .6rem; }
.badge.oof { color: var(--accent); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: 1.1rem 1.6rem; }
section > .note, section > .table + .note { margin-top: .9rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); gap: .4rem 1.4rem; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .82rem; font-weight: 600; margin-bottom: .25rem; }
figcaption small { display: block; font-weight: 400; color: var(--faint); }
.grid .chart figcaption { min-height: 2.6em; display: flex; flex-direction: column; }
section > .chart { margin-top: 1.1rem; } section > .head + .chart { margin-top: 0; }
svg { display: block; width: 100%; height: auto; overflow: visible; font-family: inherit; }
svg text { fill: var(--faint); font-size: 10.5px; font-variant-numeric: tabular-nums; }
svg .strong { fill: var(--text); } svg .grid-line { stroke: var(--grid); stroke-width: 1; }
svg .axis { stroke: var(--edge); stroke-width: 1; }
svg .ideal { stroke: var(--faint); stroke-dasharray: 4 4; fill: none; }
svg .empty { fill: var(--sunk); }
svg .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: .78rem; color: var(--faint); margin: .3rem 0 0; }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: .22em; margin-right: .35em;
  vertical-align: -.06em; }
.scroll { overflow-x: auto; overscroll-behavior-x: contain; -webkit-overflow-scrolling: touch; }
.fixed svg { width: auto; max-width: none; } .spread svg { width: 100%; min-width: 46rem; }
.sides { display: flex; flex-wrap: wrap; gap: 1.2rem 2.6rem; align-items: flex-start; }
.sides > * { min-width: 0; max-width: 100%; }
.sides > figure { flex: 0 1 21rem; } .sides > figure:has(.fixed) { flex: 0 1 auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
.table { margin-top: .5rem; }
th, td { text-align: left; vertical-align: top; padding: .42rem 1.3rem .42rem 0; border-bottom: 1px solid var(--edge);
  white-space: nowrap; }
td.wide { white-space: normal; min-width: 15rem; } td.n, th.n { text-align: right; }
thead th { color: var(--faint); font-weight: 600; font-size: .8rem; }
tbody tr:last-child td { border-bottom: 0; } tbody tr:hover td { background: var(--sunk); }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--accent); }
th button::after { content: "↕"; opacity: .35; margin-left: .3em; font-size: .85em; }
th[aria-sort="ascending"] button::after { content: "↑"; opacity: 1; }
th[aria-sort="descending"] button::after { content: "↓"; opacity: 1; }
.filter { display: flex; align-items: center; gap: .6rem; margin: .2rem 0 .5rem; font-size: .82rem;
  color: var(--faint); }
.filter[hidden] { display: none; }
.filter input { font: inherit; color: var(--text); background: var(--sunk); border: 1px solid var(--edge);
  border-radius: .5rem; padding: .3rem .6rem; width: min(16rem, 60%); }
.better { color: var(--good); } .worse { color: var(--bad); }
.best td:first-child b { color: var(--accent); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: .8rem; }
.card { border: 1px solid var(--edge); border-radius: .7rem; padding: .7rem .8rem; min-width: 0; }
.card > b { font-size: .85rem; } .card .faint { font-size: .78rem; }
.thumbs { display: flex; flex-wrap: wrap; gap: .45rem; margin: .45rem 0; }
.thumbs figure { width: 4.6rem; } .thumbs.photo figure { width: 9.2rem; max-width: 47%; }
.thumbs.large { flex-wrap: nowrap; } .thumbs.large figure { flex: 0 1 8.6rem; }
.thumbs figcaption { font-size: .7rem; line-height: 1.25; font-weight: 400; color: var(--faint); margin: .2rem 0 0; }
img { display: block; width: 100%; height: auto; border-radius: .35rem; } img.tiny { image-rendering: pixelated; }
.chances { display: grid; grid-template-columns: minmax(2rem, max-content) 1fr 3rem; gap: .12rem .6rem;
  align-items: center; font-size: .78rem; font-variant-numeric: tabular-nums; }
.chances > :nth-child(3n) { text-align: right; color: var(--faint); }
.meter { height: .5rem; border-radius: 1rem; background: var(--sunk); overflow: hidden; }
.meter i { display: block; height: 100%; border-radius: 1rem; background: var(--c3); }
.meter.true i { background: var(--c0); }
.chips { display: flex; flex-wrap: wrap; gap: .25rem; white-space: normal; } .chips code { white-space: normal; }
details { margin: .6rem 0; } details > summary { cursor: pointer; color: var(--accent); font-size: .85rem; }
.under { display: block; font-weight: 400; color: var(--faint); font-size: .76rem; max-width: 20rem;
  white-space: normal; }
footer { color: var(--faint); font-size: .8rem; padding-top: .6rem; padding-bottom: 2.5rem; }
@media (max-width: 40rem) { header, main, footer { padding-left: .8rem; padding-right: .8rem; }
  nav div { padding: .45rem .8rem; } section { padding: 1rem .9rem; border-radius: .7rem; } h1 { font-size: 1.4rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: .6rem; } .tile { padding: .65rem .75rem; }
  .tile .value { font-size: 1.25rem; } }
@media print { nav, .filter { display: none; } section { break-inside: avoid; box-shadow: none; } }
"""

SCRIPT = """
(function () {
  const value = (row, column) => { const cell = row.cells[column]; return cell.dataset.v ?? cell.textContent; };
  const compare = (a, b) => {
    const x = Number(a), y = Number(b);
    return a !== "" && b !== "" && !isNaN(x) && !isNaN(y) ? x - y : a.localeCompare(b, undefined, {numeric: true});
  };
  function sort(table, head, column) {
    const down = head.getAttribute("aria-sort") !== "descending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = Array.from(table.tBodies[0].rows), known = row => value(row, column) !== "";
    const sign = down ? -1 : 1;
    const order = rows.filter(known).sort((a, b) => sign * compare(value(a, column), value(b, column)));
    table.tBodies[0].append(...order, ...rows.filter(row => !known(row)));
  }
  function filter(table, box, told) {
    const rows = Array.from(table.tBodies[0].rows), wanted = box.value.trim().toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    const left = rows.filter(row => !row.hidden).length;
    told.textContent = wanted ? left + " of " + rows.length : "";
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => sort(table, head, column));
    });
    const label = table.closest(".table").querySelector(".filter");
    if (!label) continue;
    const box = label.querySelector("input"), told = label.querySelector("output");
    label.hidden = false;
    box.addEventListener("input", () => filter(table, box, told));
  }
})();
"""
