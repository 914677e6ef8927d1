"""Which backbones there are, known without importing timm (2.9 s): its registered names are read from its sources."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path

from pipeline import genotypes, registry
from pipeline.errors import UserError, nearest

SMALL_SIDE = 64  # images of at most this side want a stem that does not shrink them


@functools.cache
def timm_names() -> frozenset[str]:
    """The names that timm registers."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        return frozenset()
    found: set[str] = set()
    for path in (Path(spec.origin).parent / "models").glob("*.py"):
        found.update(re.findall(r"^@register_model\s*\ndef (\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE))
    return frozenset(found)


def split(text: str) -> tuple[str, dict[str, object]]:
    """``resnet18.a1_in1k(drop_path_rate=0.1)`` → its name, with timm's tag, and its arguments."""
    name, bracket, rest = text.strip().partition("(")
    if not re.fullmatch(r"[\w./:-]+", name):
        raise UserError(f"backbone={text!r} is not a name with keyword arguments, such as resnet18(drop_path_rate=0.1)")
    return name, registry.parse(f"backbone{bracket}{rest}").arguments


def is_coarse_from_scratch(text: str, stem: str, image_size: int, random: bool) -> bool:
    """Whether a net made for large images would start from random weights on small ones: the wrong tool there."""
    own = split(text)[0] in registry.parts("backbones")
    return random and image_size <= SMALL_SIDE and not own and registry.parse(stem).name == "own"


def check(text: str) -> None:
    """Raise UserError, with the nearest right name, if neither parts/backbones.py nor timm has this backbone."""
    name, _ = split(text)
    own = registry.parts("backbones")
    if name in own:
        registry.bind("backbones", text)
        if own[name].facts.get("genotype"):
            genotypes.read(text)
        return
    if name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        return
    if name.partition(".")[0] not in timm_names():
        hint = nearest(name, [*own, *timm_names()])
        raise UserError(f"backbone={name}, but neither parts/backbones.py nor timm has it{hint}")
