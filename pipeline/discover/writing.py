"""The config as text: each key with its reason beside it; and the line of default.yaml that names the competition."""

from __future__ import annotations

import difflib
import re
import textwrap
from pathlib import Path
from typing import Any

from pipeline import artefacts, config
from pipeline.discover.draft import Draft, Line
from pipeline.errors import UserError

WIDTH = 120
FIRST = ("task", "metric", "loss", "symmetry")
DATA = (
    "folder", "train_csv", "test_csv", "sample", "train_images", "test_images", "gallery", "id", "image", "files",
    "role", "target", "separator", "answers", "group", "camera", "order", "holdout", "reader", "channels", "box",
    "box_form", "margin", "resize", "features", "tables",
)  # fmt: skip
LAST = ("models", "pretrained", "image_size", "batch_size", "epochs", "lr", "augment")
DIFF_LINES = 30


def render(draft: Draft, head: list[str]) -> str:
    """The YAML file: a header, then a line a key with its reason behind it, or above it where it is long."""
    ordered = _ordered(draft)
    text = [f"# {line}".rstrip() for line in head]
    owner = ""
    for line in ordered:
        section, _, leaf = line.key.rpartition(".")
        if section != owner:
            text += [f"{section}:"] if section else []
            owner = section
        text += _written(line, leaf, "  " if section else "")
    return "\n".join(text) + "\n"


def _ordered(draft: Draft) -> list[Line]:
    names = [*FIRST, *(f"data.{name}" for name in DATA)]
    rest = [key for key in draft.lines if key not in (*names, *LAST)]
    data = [key for key in rest if key.startswith("data.")]
    nested = sorted(key for key in rest if "." in key and key not in data)
    flat = [key for key in rest if "." not in key]
    order = [*names, *data, *nested, *LAST, *flat]
    return [draft.lines[key] for key in order if key in draft.lines]


def _written(line: Line, leaf: str, indent: str) -> list[str]:
    why = " ".join(line.why.split())
    content = line.value[0] if line.key == "data.target" and len(line.value) == 1 else line.value
    body = f"{indent}{'' if line.active else '# '}{leaf}: {value(content)}"
    if len(body) + len(why) + 4 <= WIDTH:
        return [f"{body}  # {why}" if why else body]
    wrapped = textwrap.wrap(why, WIDTH - len(indent) - 2, break_long_words=False, break_on_hyphens=False)
    return [*(f"{indent}# {piece}" for piece in wrapped), *_folded(body, content, indent)]


def _folded(body: str, content: Any, indent: str) -> list[str]:
    """A long list in several lines, which YAML reads as one."""
    if len(body) <= WIDTH or not isinstance(content, list) or body.lstrip().startswith("#"):
        return [body]
    lines = [body[: body.index("[") + 1]]
    for item in map(_in_list, content):
        if len(lines[-1]) + len(item) + 2 > WIDTH or lines[-1].endswith("["):
            lines.append(f"{indent} ")
        lines[-1] += f" {item},"
    return [*lines, f"{indent}]"]


def value(content: Any) -> str:
    """A value as YAML writes it in one line."""
    import yaml

    if isinstance(content, bool):
        return str(content).lower()
    if isinstance(content, float):
        short = f"{content:.0e}".replace("e-0", "e-")
        return short if content < 0.01 and float(short) == content else f"{content:g}"
    if content == "":
        return '""'
    if isinstance(content, list):
        return f"[{', '.join(_in_list(item) for item in content)}]"
    if isinstance(content, str):
        content = content.replace("${", "\\${")  # no interpolation
    dumped = yaml.safe_dump(content, default_flow_style=True, width=10**6, allow_unicode=True)
    return dumped.strip().removesuffix("...").strip()


def _in_list(item: Any) -> str:
    import yaml

    if not isinstance(item, str):
        return value(item)
    dumped = yaml.safe_dump([item.replace("${", "\\${")], default_flow_style=True, width=10**6, allow_unicode=True)
    return dumped.strip()[1:-1]


def parsed(text: str, where: str) -> dict[str, Any]:
    """The text's values by dotted key, checked as those of a config."""
    from omegaconf import OmegaConf

    return config.check_layer(OmegaConf.to_container(OmegaConf.create(text)), where)


def path_of(name: str) -> Path:
    """``configs/competition/NAME.yaml``, relative to the project."""
    return Path(f"configs/competition/{name}.yaml")


def stands(name: str, text: str) -> bool:
    """Whether the config is there already with the same values, whatever its comments say."""
    path = path_of(name)
    if not (config.root() / path).is_file():
        return False
    try:
        return config.read_layer(path) == parsed(text, str(path))
    except UserError:
        return False


def difference(name: str, text: str) -> str:
    """The lines in which the config that is there differs, as a short unified diff; "" if there is none."""
    path = config.root() / path_of(name)
    if not path.is_file():
        return ""
    there = path.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = list(
        difflib.unified_diff(there, text.splitlines(), str(path_of(name)), "as inferred now", n=0, lineterm="")
    )
    left = len(lines) - DIFF_LINES
    return "\n".join(lines[:DIFF_LINES] + ([f"… {left} more lines"] if left > 0 else []))


def make_current(name: str) -> bool:
    """Make it the competition of configs/default.yaml, where only that line changes; False if it was already."""
    path = config.root() / "configs/default.yaml"
    there = path.read_text(encoding="utf-8") if path.is_file() else ""
    line = f"competition: {value(name)}"
    text, count = re.subn(r"(?m)^competition:[^\n#]*?(?=[ \t]*(#|$))", lambda _: line, there, count=1)
    text = text if count else f"{line}\n{there}"
    if text == there:
        return False
    artefacts.write_text(path, text)
    return True
