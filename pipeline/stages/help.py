"""Help: ./run.sh help [stages | parts | config | NAME]."""

from __future__ import annotations

import ast
from pathlib import Path

from pipeline import registry, stages
from pipeline.config import Config, keys, root
from pipeline.console import Outcome, say
from pipeline.errors import UserError, nearest

FOLDER = Path(__file__).parent
FIRST = """\
From an unzipped Kaggle image competition to a validated submission.

  ./run.sh                                     the whole recipe on the embedded competition (digits)
  ./run.sh stage=train fold=0                  one fold of the default model
  ./run.sh stage=all competition=whales        the whole recipe of another competition
  ./run.sh test [pytest arguments]             the tests
  ./run.sh help stages | parts | config | NAME what there is

Arguments are key=value, in any order: ./run.sh stage=train fold=0 lr=1e-4 'loss=focal(gamma=2.0)' run=try1
"""
TECHNIQUES = (
    "backbone", "train.seeds", "train.l1", "train.l2", "train.clip_norm", "train.clip_value", "train.accumulate",
    "train.scale_lr", "train.checkpointing", "train.compile", "train.seconds", "devices", "data.unlabelled",
)  # fmt: skip
STAGES = ("find_lr", "find_batch", "tune", "features", "knn", "preview", "pretrain", "pseudo", "distill", "search")


def run(config: Config) -> list[Outcome]:
    """Print the overview."""
    return show("")


def show(topic: str) -> list[Outcome]:
    """Print help on a topic: nothing, stages, parts, config, or the name of a stage, a kind, a part or a key."""
    pages = {"": overview, "stages": all_stages, "parts": all_parts, "config": all_keys}
    say(pages[topic]() if topic in pages else one(topic))
    return []


def overview() -> str:
    """The commands and the stages."""
    return f"{FIRST}\n{all_stages()}"


def all_stages() -> str:
    """A line a stage."""
    return "stages\n" + "\n".join(f"  {name:<10} {_first_line(name)}" for name in stages.names())


def all_parts() -> str:
    """The table of all parts with signature, one sentence and source; then the techniques that are keys or stages."""
    kinds = "\n\n".join(kind_of_part(kind) for kind in registry.kinds())
    told = "\n".join(_key(name) for name in TECHNIQUES)
    beside = "\n".join(f"  {f'stage={name}':<42} {_first_line(name)}" for name in STAGES)
    return f"{kinds}\n\ntechniques that are no parts, but keys and stages\n{told}\n{beside}"


def kind_of_part(kind: str) -> str:
    """The parts of one kind."""
    lines = [kind]
    for part in registry.parts(kind).values():
        source = f"  [{part.facts['source']}]" if part.facts.get("source") else ""
        lines += [f"  {part.signature}", f"      {part.summary}{source}"]
    return "\n".join(lines)


def all_keys() -> str:
    """A line a key, with its default and meaning."""
    return "keys\n" + "\n".join(_key(name) for name in keys())


def one(topic: str) -> str:
    """A stage, a kind of part, a part or a key by name; raises UserError with the nearest name."""
    if topic in stages.names():
        return f"stage={topic}\n\n{_document(topic)}"
    if topic in registry.kinds():
        return kind_of_part(topic)
    if found := asked(topic):
        return "\n\n".join(_part(part, call) for part, call in found)
    topic = topic.partition("=")[0]
    named = [name for name in keys() if name == topic or name.rpartition(".")[2] == topic]
    if named:
        return "\n".join(_key(name) for name in named)
    parts = [name for kind in registry.kinds() for name in registry.parts(kind)]
    everything = [*stages.names(), *registry.kinds(), *parts, *keys()]
    raise UserError(f"no help on {topic!r}; see ./run.sh help stages, parts or config{nearest(topic, everything)}")


def asked(topic: str) -> list[tuple[registry.Part, str]]:
    """The parts of a name or a call-string, ``cosine(floor=0.1)``; with a key, ``schedule=cosine()``, of its kind.

    UserError for a call that fits none of the parts of its name.
    """
    key, _, given = topic.partition("=")
    kind = keys()[key].rules["part"] if key in keys() else ""
    call = given if kind else topic
    name, bracket, _ = call.partition("(")
    kinds = [kind] if kind else [one for one in registry.kinds() if name in registry.parts(one)]
    found = [(registry.parts(one)[name], call) for one in kinds if name in registry.parts(one)]
    if not bracket or not found:
        return found
    faults = {}
    for part, _ in found:
        try:
            registry.bind(part.kind, call)
        except UserError as fault:
            faults[part.kind] = fault
    if len(faults) == len(found):
        raise next(iter(faults.values()))
    return [(part, call) for part, _ in found if part.kind not in faults]


def _part(part: registry.Part, call: str) -> str:
    """A part's whole docstring; of a schedule also a picture of its curve with the arguments that are given."""
    page = f"{part.kind}: {part.signature}\n\n{part.document}\n\nsource: {part.facts['source']}"
    if part.kind != "schedules":
        return page
    from pipeline import plots
    from pipeline.artefacts import shown

    path = plots.schedule(call, root() / "cache" / "schedules" / f"{part.name}.png")
    drawn = ", for the scores of an example, which it follows" if part.facts.get("own_fold") else ""
    return f"{page}\n\ncurve{drawn}: {shown(path)}"


def _key(name: str) -> str:
    key = keys()[name]
    default = ",".join(map(str, key.default)) if key.is_list else key.default
    shown = str(default).lower() if isinstance(default, bool) else default
    return f"  {f'{name}={shown}':<42} {key.rules['help']}"


def _first_line(stage: str) -> str:
    return _document(stage).split("\n")[0]


def _document(stage: str) -> str:
    return ast.get_docstring(ast.parse((FOLDER / f"{stage}.py").read_text(encoding="utf-8"))) or ""
