"""Parts by name: a technique is a decorated function in ``pipeline/parts``, switched on by a call-string in YAML.

Tasks are parts too, one file each in ``pipeline/tasks``.

Names and signatures are read from the sources with ``ast``, so that a wrong name or argument fails at once and
``help parts`` is quick: nothing here imports torch, and a part's module is imported only when the part is built.

Convention: what the pipeline supplies is positional; what the user may set is keyword-only (behind the ``*``)::

    @part(source="Lin et al. 2017, eq. 5")
    def focal(logits, target, *, gamma: float = 2.0): ...

is named ``focal(gamma=2.0)`` in a config, and ``build("losses", "focal(gamma=1.5)")`` gives a callable
``(logits, target)``.
"""

from __future__ import annotations

import ast
import functools
import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, nearest

FOLDER = Path(__file__).parent / "parts"
TASKS = Path(__file__).parent / "tasks"
REQUIRED = "required"  # stands where a keyword argument has no default


def part(source: str = "", **facts: Any) -> Callable[[Any], Any]:
    """Register the decorated function or class as a part.

    source: paper and equation, or the library it comes from. facts: what the pipeline must know of the part, such as
    a view's symmetry; literals are known without importing the module, others (a function) once it is built. The fact
    ``allowed={"gamma": (0, None), "border": ("reflect", "constant")}`` gives inclusive bounds (None: open) or choices
    of the user's arguments; it is checked with their names and types, before any work. ``calls={"loss": "losses"}``
    names arguments that are call-strings themselves, or lists of them; ``inner={"loss": "pixelwise"}`` names a fact
    that these must declare.
    """

    def mark(thing: Any) -> Any:
        thing.facts = {"source": source, **facts}
        return thing

    return mark


@dataclass(frozen=True)
class Part:
    """One registered technique, as read from its source file."""

    kind: str
    module: str
    name: str
    arguments: dict[str, Any]  # keyword → default, or REQUIRED
    types: dict[str, str]  # keyword → annotation as text
    summary: str
    document: str
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def signature(self) -> str:
        """The call-string with every default, as a user would write it."""
        inner = ", ".join(k if v is REQUIRED else f"{k}={v!r}" for k, v in self.arguments.items())
        return f"{self.name}({inner})"

    def load(self) -> Any:
        """Import the module and return the decorated function or class."""
        return getattr(importlib.import_module(self.module), self.name)


@dataclass(frozen=True)
class Call:
    """A parsed call-string."""

    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.arguments.items())})"


def kinds() -> list[str]:
    """The kinds of parts: the modules of ``pipeline/parts``, and the tasks; ``losses_masks.py`` holds losses, too."""
    return sorted({*(path.stem.partition("_")[0] for path in FOLDER.glob("[!_]*.py")), TASKS.name})


def _sources(kind: str) -> dict[str, Path]:
    """The source files of a kind by the names of their modules."""
    if kind == TASKS.name:
        return {f"pipeline.tasks.{path.stem}": path for path in sorted(TASKS.glob("*.py"))}
    paths = [FOLDER / f"{kind}.py", *sorted(FOLDER.glob(f"{kind}_*.py"))]
    return {f"pipeline.parts.{path.stem}": path for path in paths}


@functools.cache
def parts(kind: str) -> dict[str, Part]:
    """All parts of one kind by name, from a scan of its sources."""
    if kind not in kinds():
        raise UserError(f"there is no kind of part {kind!r}; kinds: {', '.join(kinds())}{nearest(kind, kinds())}")
    found = {}
    for module, path in _sources(kind).items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                facts = _facts(node)
                if facts is not None:
                    found[node.name] = _describe(kind, module, node, facts)
    return found


def find(kind: str, name: str) -> Part:
    """The part of that name, or a UserError with the nearest right name."""
    known = parts(kind)
    if name not in known:
        raise UserError(f"there is no {name!r} among the {kind}: {', '.join(known)}{nearest(name, known)}")
    return known[name]


def parse(text: str) -> Call:
    """Parse ``focal(gamma=2.0)`` or ``focal`` with ``ast.literal_eval``; nothing is executed."""
    problem = f"{text!r} is not a part; write a name with keyword arguments, such as focal(gamma=2.0)"
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as fault:
        raise UserError(problem) from fault
    if isinstance(node, ast.Name):
        return Call(node.id, {})
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise UserError(problem)
    if node.args or any(k.arg is None for k in node.keywords):
        raise UserError(f"{text!r}: arguments are given by name, such as focal(gamma=2.0); see ./run.sh help parts")
    named = [str(k.arg) for k in node.keywords]
    if len(set(named)) < len(named):
        raise UserError(f"{text!r}: an argument is given twice")
    try:
        values = [ast.literal_eval(_YamlWords().visit(k.value)) for k in node.keywords]
        return Call(node.func.id, dict(zip(named, values, strict=True)))
    except (ValueError, TypeError) as fault:
        raise UserError(f"{text!r}: arguments are plain values: numbers, texts, lists, true or false") from fault


def bind(kind: str, text: str) -> tuple[Part, Call]:
    """Check a call-string against the part's signature: its name, its arguments' names and their types."""
    call = parse(text)
    chosen = find(kind, call.name)
    for key, value in call.arguments.items():
        if key not in chosen.arguments:
            takes = f"it takes {chosen.signature}" if chosen.arguments else "it takes none"
            hint = nearest(key, chosen.arguments)
            raise UserError(f"{text!r}: {call.name} has no argument {key!r}; {takes}{hint}")
        _check_type(text, key, value, chosen.types.get(key, ""))
        _check_allowed(text, key, value, chosen.facts.get("allowed", {}).get(key))
    missing = [k for k, v in chosen.arguments.items() if v is REQUIRED and k not in call.arguments]
    if missing:
        raise UserError(f"{text!r}: {chosen.signature} needs {', '.join(missing)}")
    for other, inner in _inner(chosen, call):
        bind(other, inner)
    _check_inner(text, chosen, call)
    return chosen, call


def complete_arguments(kind: str, text: str) -> dict[str, Any]:
    """All arguments of a call-string: its own, and the defaults of the others."""
    chosen, call = bind(kind, text)
    return {**chosen.arguments, **call.arguments}


def complete(kind: str, text: str) -> str:
    """A call-string with every argument in the order of the signature, so that equal ones are equal as texts."""
    return str(Call(parse(text).name, complete_arguments(kind, text)))


def unfold(kind: str, text: str) -> Iterator[str]:
    """A call-string and those of its kind that it holds, such as the loss inside ``ohem(loss='focal()')``.

    The fact ``calls={"loss": "losses"}`` says which arguments are call-strings, or lists of them, and of what kind.
    """
    yield text
    for other, inner in _inner(*bind(kind, text)):
        if other == kind:
            yield from unfold(kind, inner)


def _inner(chosen: Part, call: Call) -> Iterator[tuple[str, str]]:
    for name, kind in chosen.facts.get("calls", {}).items():
        value = {**chosen.arguments, **call.arguments}[name]
        yield from ((kind, text) for text in ([value] if isinstance(value, str) else value))


def _check_inner(text: str, chosen: Part, call: Call) -> None:
    for name, fact in chosen.facts.get("inner", {}).items():
        kind, value = chosen.facts["calls"][name], {**chosen.arguments, **call.arguments}[name]
        for one in [value] if isinstance(value, str) else value:
            if not find(kind, parse(one).name).facts.get(fact):
                fit = ", ".join(other for other, part in parts(kind).items() if part.facts.get(fact))
                raise UserError(f"{text!r}: {name}={one!r}, but {name} must be {fact}; those that are: {fit}")


def build(kind: str, text: str) -> Callable[..., Any]:
    """The part as a callable of what the pipeline supplies, with the user's arguments bound."""
    chosen, call = bind(kind, text)
    return functools.partial(chosen.load(), **call.arguments)


def facts(kind: str, text: str) -> dict[str, Any]:
    """A part's declared facts that are plain literals, known without importing its module."""
    return bind(kind, text)[0].facts


def _check_type(text: str, key: str, value: Any, annotation: str) -> None:
    if annotation and not _fits(value, ast.parse(annotation, mode="eval").body):
        raise UserError(f"{text!r}: {key}={value!r}, but {key} takes {annotation}")


PLAIN: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "str": (str,), "bool": (bool,), "list": (list, tuple), "tuple": (list, tuple),
}  # fmt: skip


def _fits(value: Any, kind: ast.expr) -> bool:
    """Whether a literal is of the annotated type; lists and tuples stand for each other, other types are let pass."""
    match kind:
        case ast.BinOp(left=left, right=right):
            return _fits(value, left) or _fits(value, right)
        case ast.Constant(value=None):
            return value is None
        case ast.Name(id=name) if name in PLAIN:
            return isinstance(value, PLAIN[name]) and (name == "bool" or not isinstance(value, bool))
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[*items])) if _is_fixed(items):
            return isinstance(value, (list, tuple)) and len(value) == len(items) and all(map(_fits, value, items))
        case ast.Subscript(value=ast.Name(id="list" | "tuple"), slice=inner):
            item = inner.elts[0] if isinstance(inner, ast.Tuple) else inner
            return isinstance(value, (list, tuple)) and all(_fits(one, item) for one in value)
    return True


def _is_fixed(items: list[ast.expr]) -> bool:
    """Whether ``tuple[…]`` says how many items there are: no ``...`` in it."""
    return not any(isinstance(item, ast.Constant) and item.value is ... for item in items)


def _check_allowed(text: str, key: str, value: Any, allowed: tuple[Any, ...] | None) -> None:
    for item in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(item, float) and not math.isfinite(item):
            raise UserError(f"{text!r}: {key}={item}, but {key} must be finite")
        if allowed is None or item is None:
            continue
        if isinstance(item, str):
            if item not in allowed:
                raise UserError(f"{text!r}: {key}={item!r}, but {key} is one of {', '.join(map(str, allowed))}")
            continue
        low, high = allowed
        if (low is not None and item < low) or (high is not None and item > high):
            bounds = [f"{sign} {bound:g}" for sign, bound in (("≥", low), ("≤", high)) if bound is not None]
            raise UserError(f"{text!r}: {key}={item}, but {key} must be {' and '.join(bounds)}")


YAML_WORDS = {"true": True, "false": False, "null": None}


class _YamlWords(ast.NodeTransformer):
    """``true``, ``false`` and ``null`` as people write them in YAML; other words, and calls, are texts without quotes.

    So ``ohem(loss=bce())`` is ``ohem(loss='bce()')``. Nothing is called: a text stays one.
    """

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(YAML_WORDS.get(node.id, node.id))

    def visit_Call(self, node: ast.Call) -> ast.expr:
        return ast.Constant(ast.unparse(node))


def _facts(node: ast.FunctionDef | ast.ClassDef) -> dict[str, Any] | None:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) and decorator.func.id == "part":
            found: dict[str, Any] = {"source": _literal(decorator.args[0]) if decorator.args else ""}
            for keyword in decorator.keywords:
                value = _literal(keyword.value)
                if keyword.arg and value is not REQUIRED:
                    found[keyword.arg] = value
            return found
    return None


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return REQUIRED


def _describe(kind: str, module: str, node: ast.FunctionDef | ast.ClassDef, facts: dict[str, Any]) -> Part:
    function = node
    if isinstance(node, ast.ClassDef):
        inits = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        function = inits[0] if inits else node
    arguments, types = {}, {}
    if isinstance(function, ast.FunctionDef):
        for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
            arguments[argument.arg] = REQUIRED if default is None else ast.literal_eval(default)
            types[argument.arg] = ast.unparse(argument.annotation) if argument.annotation else ""
    document = ast.get_docstring(node) or ""
    return Part(kind, module, node.name, arguments, types, document.split("\n")[0], document, facts)
