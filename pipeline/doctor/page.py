"""check.html: one file that needs nothing from outside, for a phone as for a desk, light and dark."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from pipeline import images
from pipeline.doctor.findings import Example, Finding, Sheet

THUMBNAIL = 112  # pixels of the longer side
QUALITY = 80
STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1f2328; --faint: #59636e; --card: #f6f8fa; --edge: #d1d9e0;
  --fault: #b42318; --warning: #8a5a00; --note: #24507f; }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --text: #e6edf3; --faint: #9198a1; --card: #161b22;
  --edge: #30363d; --fault: #ff8a80; --warning: #e3b341; --note: #79b8ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 66rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .3rem 0; } .faint, .remark { color: var(--faint); font-size: .9rem; }
section { border: 1px solid var(--edge); border-left-width: .35rem; border-radius: .4rem; padding: .7rem .9rem;
  margin: .8rem 0; background: var(--card); overflow-wrap: anywhere; }
section.fault { border-left-color: var(--fault); } section.warning { border-left-color: var(--warning); }
section.note { border-left-color: var(--note); }
.badge { font-size: .8rem; font-weight: 600; text-transform: uppercase; letter-spacing: .04em; margin-right: .5rem; }
.fault .badge { color: var(--fault); } .warning .badge { color: var(--warning); } .note .badge { color: var(--note); }
.advice::before { content: "→ "; color: var(--faint); }
.pictures { display: flex; flex-wrap: wrap; gap: .7rem; margin-top: .6rem; }
.example { border: 1px solid var(--edge); border-radius: .3rem; padding: .4rem; background: var(--page); }
.pair { display: flex; gap: .4rem; } figure { margin: 0; width: 112px; }
.frame { width: 112px; height: 112px; display: flex; align-items: center; justify-content: center; }
img { max-width: 112px; max-height: 112px; } img.tiny { image-rendering: pixelated; }
.bar { color: var(--note); letter-spacing: -1px; }
figcaption, .example p { font-size: .75rem; line-height: 1.3; color: var(--faint); overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--edge); white-space: nowrap; }
th { color: var(--faint); font-weight: 600; }
"""

Picture = Callable[[int], np.ndarray | None]  # row → (h, w, C) uint8 pixels, None where there are none


def page(title: str, summary: str, findings: Sequence[Finding], sheets: Sequence[Sheet], picture: Picture) -> str:
    """The whole page; picture gives the pixels of the examples, each row once."""
    needed = sorted({row for finding in findings for example in finding.examples for row in example.rows})
    shown = {row: _thumbnail(picture(row)) for row in needed}
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="faint">{escape(summary)}</p>', "<h2>Findings</h2>"]
    parts += [_finding(finding, shown) for finding in findings] or ["<p>Nothing to report.</p>"]
    parts += [_sheet(sheet) for sheet in sheets]
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{escape(title)}</title><style>{STYLE}</style></head>'
        "<body>"
    )
    return "\n".join([head, *parts, "</body></html>\n"])


def _finding(finding: Finding, shown: dict[int, str]) -> str:
    pictures = "".join(_example(example, shown) for example in finding.examples)
    more = finding.count - len(finding.examples)
    parts = [f'<section class="{finding.severity}">']
    parts += [f'<p><span class="badge">{finding.severity}</span>{escape(finding.title)}</p>']
    parts += [f'<p class="advice faint">{escape(finding.advice)}</p>']
    parts += [f'<div class="pictures">{pictures}</div>'] if pictures else []
    parts += [f'<p class="faint">and {more:,} more</p>'] if pictures and more > 0 else []
    return "".join([*parts, "</section>"])


def _example(example: Example, shown: dict[int, str]) -> str:
    figures = "".join(
        f'<figure><div class="frame">{shown[row]}</div><figcaption>{escape(caption)}</figcaption></figure>'
        for row, caption in zip(example.rows, example.captions, strict=True)
    )
    remark = f"<p>{escape(example.remark)}</p>" if example.remark else ""
    return f'<div class="example"><div class="pair">{figures}</div>{remark}</div>'


def _sheet(sheet: Sheet) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in sheet.head)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in sheet.rows)
    remark = f'<p class="remark">{escape(sheet.remark)}</p>' if sheet.remark else ""
    table = f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'
    return f"<h2>{escape(sheet.title)}</h2>{table}{remark}"


def _cell(text: str) -> str:
    bar = ' class="bar"' if text and not set(text) - set(" ▁▂▃▄▅▆▇█") else ""
    return f"<td{bar}>{escape(text)}</td>"


def _thumbnail(pixels: np.ndarray | None) -> str:
    """An img element with its data inside."""
    if pixels is None:
        return "<span>no picture</span>"
    cv2 = images.opencv()
    height, width = pixels.shape[:2]
    factor = min(1.0, THUMBNAIL / max(height, width))
    colour = np.ascontiguousarray(pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0])
    if factor < 1:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        colour = cv2.resize(colour, size, interpolation=cv2.INTER_AREA)
    colour = cv2.cvtColor(colour, cv2.COLOR_RGB2BGR) if colour.ndim == 3 else colour
    done, data = cv2.imencode(".jpg", colour, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not done:
        return "<span>no picture</span>"
    times = max(1, THUMBNAIL // max(height, width))  # small pictures are shown larger, pixel by pixel
    shape = f'class="tiny" width="{times * width}" height="{times * height}"' if times > 1 else ""
    return f'<img alt="" {shape} src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'
