"""Search spaces of ``stage=tune``: ``key=range`` texts, read with ``ast`` and checked whole before any work. No torch.

A range is ``log(1e-5, 1e-2)``, ``uniform(0, 0.5)``, ``int(1, 15)`` or ``choice(a, b, …)``, and may stand for a key's
value, for an argument of a call-string, or inside a choice::

    lr=log(1e-5, 1e-2)
    optim=choice(adam(), adamw(weight_decay=log(1e-3, 0.3)))
    augment=compose(parts=[choice(nothing, flips()), rand_augment(magnitude=int(1, 15))])

``nothing`` leaves an item out of its list.

Two names stand for spaces of their own: ``notes``, what to tune for so many trials, and ``policy``, an augmentation
policy (see ``recommended.py``).
"""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline import recommended, registry
from pipeline.config import Config, convert, keys, replace
from pipeline.errors import UserError, nearest

DIGITS = 3  # significant digits of a number drawn from a range: enough to tell settings apart, few enough to read
NOTHING = "nothing"
RANGES = {"log": (False, True), "uniform": (False, False), "int": (True, False)}  # name → whole numbers? log scale?
REFUSED = {
    "batch_size": "any batch size reaches the same score once lr and regularisation fit it (Shallue et al. 2018), so "
    "it is chosen for speed: ./run.sh stage=find_batch",
    "train.accumulate": "it is a batch size, which is never tuned for score; ./run.sh stage=find_batch",
    "epochs": "more is nearly always better here; tune.coarse_epochs and tune.fine_epochs say how long trials train",
    "seed": "a seed that does well on one fold is luck",
    "task": "what is predicted is the competition's",
    "metric": "what is measured is the competition's",
    "select": "trials are compared by their last epoch",
    "train.patience": "trials are compared by their last epoch",
    "tuned": "stage=tune writes it",
}


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds, both inclusive."""

    name: str
    low: float
    high: float
    whole: bool
    log: bool

    def rounded(self, value: float) -> float:
        """A number of the range as it is used: whole, or with few digits."""
        if self.whole:
            return int(value)
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def points(self, count: int) -> list[float]:
        """Up to so many numbers spread evenly over the range, ends included."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        raw = [low + (high - low) * place / (count - 1) for place in range(count)]
        found = [math.exp(value) if self.log else value for value in raw]
        return list(dict.fromkeys(self.rounded(round(value) if self.whole else value) for value in found))


@dataclass(frozen=True)
class Choice:
    """One of several, by their texts; each may hold ranges of its own."""

    name: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Call:
    """A call-string whose arguments may be ranges."""

    part: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Several:
    """A list, each item of which may be a range."""

    items: tuple[Any, ...]


Dimension = Range | Choice
Pick = Callable[[Dimension], Any]  # a number of a range, the text of a choice


@dataclass(frozen=True)
class Space:
    """What may change: a node (a value, a range, a call-string with ranges in it) by key."""

    nodes: dict[str, Any]
    texts: list[str]  # as asked for, names spelled out

    def dimensions(self) -> dict[str, Dimension]:
        """Every range and choice by its name, those behind a choice after it."""
        found: dict[str, Dimension] = {}
        for key, node in self.nodes.items():
            for dimension in _dimensions(node):
                if found.setdefault(dimension.name, dimension) != dimension:
                    raise UserError(f"tune.space: {key} gives {dimension.name} two different ranges; keep one")
        return found

    def settings(self, pick: Pick) -> dict[str, Any]:
        """The keys' values, each of its key's type, for what ``pick`` says of each dimension."""
        return {key: convert(key, _text(_settled(node, pick))) for key, node in self.nodes.items()}

    def grid(self, trials: int) -> list[dict[str, Any]]:
        """Every combination, as dimension → value, with as many points a range as so many trials allow."""
        found: list[dict[str, Any]] = []
        for count in range(2, trials + 1):
            finer = self._combinations(count)
            if len(finer) > trials or len(finer) == len(found):
                break
            found = finer
        if found:
            return found
        least = len(self._combinations(2))
        raise UserError(
            f"tune.method=grid needs {least} trials for two points a range, but tune.trials={trials}; allow more, "
            "tune fewer keys, or take tune.method=random, which looks at more values of each key in as many trials"
        )

    def _combinations(self, count: int) -> list[dict[str, Any]]:
        parts = [list(_assignments(node, count)) for node in self.nodes.values()]
        return [{name: value for part in parts for name, value in part.items()} for parts in itertools.product(*parts)]


def read(config: Config) -> Space:
    """The space that ``tune.space`` asks for; UserError where a key, a part, a range or a value in it does not fit."""
    texts = [line for text in config.tune.space for line in recommended.spelled(text, config)]
    nodes: dict[str, Any] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            named = ", ".join(recommended.NAMED)
            raise UserError(f"tune.space: {text!r} is neither key=range nor one of {named}{nearest(key, keys())}")
        _check_key(key)
        if key in nodes:
            raise UserError(f"tune.space: {key} is there twice; join them in one choice()")
        nodes[key] = _read(key, value)
    space = Space(nodes, texts)
    if not space.dimensions():
        raise UserError(f"tune.space={','.join(texts)} holds no range; write for example lr=log(1e-5, 1e-2)")
    for key, node in nodes.items():
        for corner in _corners(node):
            _fits(config, key, corner)
    return space


def _check_key(key: str) -> None:
    if key not in keys():
        raise UserError(f"tune.space: there is no key {key!r}{nearest(key, keys())}")
    if key in REFUSED:
        raise UserError(f"tune.space: {key} is not tuned: {REFUSED[key]}")
    rule = keys()[key]
    if rule.rules["scope"] != "run" or rule.is_list or key.startswith("data."):
        raise UserError(f"tune.space: {key} does not change how a model learns, so it is not tuned")


def _fits(config: Config, key: str, value: Any) -> None:
    try:
        replace(config, **{key.replace(".", "__"): convert(key, _text(value))})
    except UserError as fault:
        raise UserError(f"tune.space: {fault}") from fault


# --- reading --------------------------------------------------------------------------------------------------------


def _read(key: str, text: str) -> Any:
    try:
        return _node(ast.parse(text, mode="eval").body, key)
    except (SyntaxError, ValueError) as fault:
        raise UserError(
            f"tune.space: {key}={text} cannot be read; write for example {key}=log(1e-5, 1e-2), uniform(0, 0.5), "
            "int(1, 15) or choice(a, b), alone or as an argument: linear(dropout=uniform(0, 0.5))"
        ) from fault


def _node(tree: ast.expr, path: str) -> Any:
    """path: the name of what the tree stands for, from which ranges in it take theirs."""
    match tree:
        case ast.Call(func=ast.Name(id=name), args=bounds, keywords=[]) if name in RANGES:
            return _range(name, [ast.literal_eval(bound) for bound in bounds], path)
        case ast.Call(func=ast.Name(id="choice"), args=options, keywords=[]) if options:
            return _choice(options, path)
        case ast.Call(func=ast.Name(id=name), args=[], keywords=given):
            return Call(name, {str(one.arg): _node(one.value, f"{path}.{name}.{one.arg}") for one in given})
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return Several(tuple(_node(item, f"{path}.{place}") for place, item in enumerate(items, 1)))
        case ast.Name(id=name):
            return registry.YAML_WORDS.get(name, name)
    return ast.literal_eval(tree)


def _range(kind: str, bounds: list[Any], path: str) -> Range:
    whole, log = RANGES[kind]
    numbers = (int,) if whole else (int, float)
    if len(bounds) != 2 or not all(isinstance(one, numbers) and not isinstance(one, bool) for one in bounds):
        raise UserError(f"tune.space: {path}: {kind}() takes two {'whole ' if whole else ''}numbers, as {kind}(1, 2)")
    low, high = bounds
    if not low < high or not math.isfinite(high - low) or (log and low <= 0):
        needed = "0 < low < high" if log else "low < high"
        raise UserError(f"tune.space: {path}={kind}({low:g}, {high:g}), but {kind}(low, high) needs {needed}")
    return Range(path, low, high, whole, log)


def _choice(options: list[ast.expr], path: str) -> Choice:
    texts = [ast.unparse(option) for option in options]
    if len(set(texts)) < len(texts):
        raise UserError(f"tune.space: {path}: choice() holds an option twice")
    return Choice(path, {text: _node(option, path) for text, option in zip(texts, options, strict=True)})


# --- walking --------------------------------------------------------------------------------------------------------


def _inner(node: Any) -> Iterator[Any]:
    match node:
        case Choice(options=options):
            yield from options.values()
        case Call(arguments=arguments):
            yield from arguments.values()
        case Several(items=items):
            yield from items


def _dimensions(node: Any) -> Iterator[Dimension]:
    if isinstance(node, Range | Choice):
        yield node
    for part in _inner(node):
        yield from _dimensions(part)


def _settled(node: Any, pick: Pick) -> Any:
    """A node's plain value; call-strings become texts."""
    match node:
        case Range():
            return node.rounded(pick(node))
        case Choice(options=options):
            return _settled(options[pick(node)], pick)
        case Call(part=part, arguments=arguments):
            return str(registry.Call(part, {name: _settled(one, pick) for name, one in arguments.items()}))
        case Several(items=items):
            return [value for item in items if (value := _settled(item, pick)) != NOTHING]
    return node


def _corners(node: Any) -> Iterator[Any]:
    """Values at the ends of every range and of every choice, one dimension at a time."""
    dimensions = list(_dimensions(node))
    ends = {d.name: [d.low, d.high] if isinstance(d, Range) else list(d.options) for d in dimensions}
    for name, values in ends.items():
        for value in values:
            yield from _reaching(node, {**{other: one[0] for other, one in ends.items()}, name: value}, name)
    if not dimensions:
        yield _settled(node, lambda _: None)


def _reaching(node: Any, chosen: dict[str, Any], name: str) -> Iterator[Any]:
    """The node's values in which the dimension takes part, whatever choices stand before it."""
    before = [d for d in _dimensions(node) if isinstance(d, Choice) and d.name != name]
    outer = {d.name: next((text for text, one in d.options.items() if _holds(one, name)), chosen[d.name])
             for d in before}  # fmt: skip
    yield _settled(node, lambda dimension: {**chosen, **outer}[dimension.name])


def _holds(node: Any, name: str) -> bool:
    return any(dimension.name == name for dimension in _dimensions(node))


def _assignments(node: Any, count: int) -> Iterator[dict[str, Any]]:
    """Every way to settle a node with so many points a range."""
    if isinstance(node, Range):
        yield from ({node.name: value} for value in node.points(count))
    elif isinstance(node, Choice):
        for text, option in node.options.items():
            yield from ({node.name: text, **inner} for inner in _assignments(option, count))
    else:
        for parts in itertools.product(*(list(_assignments(part, count)) for part in _inner(node))):
            yield {name: value for part in parts for name, value in part.items()}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
