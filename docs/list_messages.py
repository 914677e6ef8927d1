"""Writes docs/messages.md: every message that ends a command with exit code 2, by the module that raises it.

    .venv/bin/python docs/list_messages.py

Texts are read from the sources; … stands for a value. A test holds the page against them.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/messages.md"
HEAD = """\
# All messages

Written by `docs/list_messages.py`, never by hand. Each ends a command with exit code 2 and says what is wrong, the
value, what is allowed and the next move; … stands for a value. Search for a piece of yours; above it stands what its
module is for. See also [When it goes wrong](trouble.md).
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The page as the sources have it now."""
    parts = [HEAD]
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if found := messages(tree):
            parts.append(f"\n## {path.relative_to(ROOT / 'pipeline')}\n\n{first_line(tree)}\n\n")
            parts += [f"- {text}\n" for text in found]
    return "".join(parts)


def messages(tree: ast.Module) -> list[str]:
    """What the module raises as UserError, each text once, in its order."""
    raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    calls = [call for call in raised if isinstance(call.func, ast.Name) and call.func.id == "UserError" and call.args]
    texts = [template(call.args[0]) for call in sorted(calls, key=lambda call: call.lineno)]
    return list(dict.fromkeys(text for text in texts if re.search(r"[a-z]{3}", text)))


def template(node: ast.expr) -> str:
    """A text with … for each value."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return re.sub("…+", "…", "".join(template(part) for part in node.values))
    if isinstance(node, ast.BinOp):
        return template(node.left) + template(node.right)
    return "…"


def first_line(tree: ast.Module) -> str:
    """What the module is for."""
    return (ast.get_docstring(tree) or "").split("\n")[0]


if __name__ == "__main__":
    main()
