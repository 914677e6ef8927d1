"""The registry: call-strings are parsed, checked against signatures and ranges, and built, without importing torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline import registry
from pipeline.errors import UserError
from pipeline.symmetry import check_symmetry

SOURCE = '''
from __future__ import annotations
from pipeline.registry import part

def plain(x): ...

@part(source="Somebody 2020", symmetry="d4", start=lambda n: n, allowed={"size": (0, 1), "edge": ("a", "b")})
def shrink(x, *, size: float = 0.5, edge: str = "a", pair: tuple[float, float] = (0.1, 1.0), on: bool = True):
    """Make it smaller.

    More of it.
    """
    return x * size, edge, pair, on

@part(source="Somebody 2021")
class Grow:
    """Make it larger."""

    def __init__(self, model, *, times: int, limit: float | None = None, steps: list[int] = [1]): ...
'''


@pytest.fixture
def kind(tmp_path, monkeypatch):
    (tmp_path / "shapes.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.setattr(registry, "FOLDER", tmp_path)
    registry.parts.cache_clear()
    yield "shapes"
    registry.parts.cache_clear()


def refused(kind: str, text: str) -> str:
    with pytest.raises(UserError) as caught:
        registry.bind(kind, text)
    return str(caught.value)


def test_a_kind_may_have_several_files(kind: str) -> None:
    more = SOURCE.replace("def shrink", "def bend").replace("class Grow", "class Twist")
    (registry.FOLDER / "shapes_more.py").write_text(more, encoding="utf-8")
    assert registry.kinds() == ["shapes", "tasks"]
    found = registry.parts(kind)
    assert list(found) == ["shrink", "Grow", "bend", "Twist"]
    assert (found["bend"].kind, found["bend"].module) == ("shapes", "pipeline.parts.shapes_more")


def test_scan_finds_decorated_functions_and_classes_alone(kind: str) -> None:
    shrink, grow = registry.parts(kind).values()
    assert registry.kinds() == ["shapes", "tasks"]
    assert (shrink.name, grow.name) == ("shrink", "Grow")
    assert shrink.summary == "Make it smaller."
    assert shrink.document.endswith("More of it.")
    assert shrink.signature == "shrink(size=0.5, edge='a', pair=(0.1, 1.0), on=True)"
    assert grow.signature == "Grow(times, limit=None, steps=[1])"
    assert shrink.types["pair"] == "tuple[float, float]"


def test_facts_are_literals_and_leave_out_what_needs_an_import(kind: str) -> None:
    facts = registry.facts(kind, "shrink(size=0.2)")
    assert facts["source"] == "Somebody 2020"
    assert facts["symmetry"] == "d4"
    assert "start" not in facts


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("focal", "focal", {}),
        (" focal() ", "focal", {}),
        ("focal(gamma=2.0)", "focal", {"gamma": 2.0}),
        ("f(a=-1, b='x,y', c=[1, (2, 3)], d=None)", "f", {"a": -1, "b": "x,y", "c": [1, (2, 3)], "d": None}),
        ("f(a=true, b=[false, null], c='true')", "f", {"a": True, "b": [False, None], "c": "true"}),
    ],
)
def test_parse_and_print_again(text: str, name: str, arguments: dict) -> None:
    call = registry.parse(text)
    assert call == registry.Call(name, arguments)
    assert registry.parse(str(call)) == call


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not a part"),
        ("focal(", "is not a part"),
        ("focal gamma", "is not a part"),
        ("5", "is not a part"),
        ("a.b(c=1)", "is not a part"),
        ("focal(2.0)", "by name"),
        ("focal(**{'gamma': 2})", "by name"),
        ("focal(gamma=1 + one)", "plain values"),
        ("focal(gamma=os.sep)", "plain values"),
        ("focal(gamma={[1]: 2})", "plain values"),
        ("focal(gamma=1, gamma=2)", "twice"),
    ],
)
def test_parse_refuses_what_is_no_call_with_plain_keywords(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        registry.parse(text)


def test_words_and_calls_are_texts_without_quotes() -> None:
    plain = registry.parse("total(losses=[focal(gamma=2), 'bce()'], weights=(1, 2), how=mean, deep=true)")
    assert plain == registry.parse("total(losses=['focal(gamma=2)', 'bce()'], weights=(1, 2), how='mean', deep=True)")
    assert registry.parse("focal(gamma=__import__('os'))").arguments == {"gamma": "__import__('os')"}
    with pytest.raises(UserError, match="gamma takes float"):
        registry.bind("losses", "focal(gamma=__import__('os'))")


def test_bind_names_the_nearest(kind: str) -> None:
    assert "did you mean shrink?" in refused(kind, "shrnk()")
    message = refused(kind, "shrink(sice=0.1)")
    assert "no argument 'sice'" in message
    assert "did you mean size?" in message
    assert "needs times" in refused(kind, "Grow()")
    with pytest.raises(UserError, match="did you mean shapes"):
        registry.parts("shape")


@pytest.mark.parametrize(
    "text",
    [
        "shrink(size='big')", "shrink(size=True)", "shrink(on=1)", "shrink(edge=1)", "shrink(pair=0.5)",
        "shrink(pair=(1,))", "shrink(pair=(1, 'x'))", "Grow(times=1.5)", "Grow(times=1, limit='x')",
        "Grow(times=1, steps=[1, 2.5])", "Grow(times=None)",
    ],
)  # fmt: skip
def test_bind_refuses_wrong_types(kind: str, text: str) -> None:
    assert " takes " in refused(kind, text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("shrink(size=1.5)", "size must be ≥ 0 and ≤ 1"),
        ("shrink(size=-0.1)", "size=-0.1"),
        ("shrink(size=1e999)", "finite"),
        ("shrink(pair=(0.1, 1e999))", "finite"),
        ("shrink(edge='c')", "edge is one of a, b"),
    ],
)
def test_bind_refuses_what_is_out_of_range(kind: str, text: str, says: str) -> None:
    assert says in refused(kind, text)


@pytest.mark.parametrize(
    "text",
    [
        "shrink(size=1)", "shrink(size=0)", "shrink(pair=[1, 2])", "Grow(times=1, limit=2)",
        "Grow(times=2, limit=null, steps=(1, 2))",
    ],
)  # fmt: skip
def test_bind_takes_what_fits(kind: str, text: str) -> None:
    chosen, call = registry.bind(kind, text)
    assert call.arguments.keys() <= chosen.arguments.keys()


def test_build_binds_the_users_keywords_alone() -> None:
    loss = registry.build("losses", "focal(gamma=1)")
    assert loss.keywords == {"gamma": 1}
    assert loss.func.facts["initial"](4, **loss.keywords) > 0
    assert registry.build("schedules", "constant")(0, 10) == 1.0


def test_nothing_here_imports_torch() -> None:
    program = (
        "import sys\n"
        "from pipeline import config, registry\n"
        "for kind in registry.kinds():\n"
        "    for part in registry.parts(kind).values(): part.signature, part.summary\n"
        "registry.bind('losses', 'focal(gamma=2)'); registry.facts('augments', 'd4')\n"
        "assert registry.parts('losses') and config.keys()\n"
        "print(sorted({'torch', 'numpy', 'albumentations', 'sklearn', 'pandas'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


# --- call-strings inside call-strings -------------------------------------------------------------------------------


def test_compose_needs_the_symmetry_of_its_strongest_part():
    check_symmetry(["compose(parts=['light()','colour()'])"], "none", "augments")
    check_symmetry(["compose(parts=['flips()','colour()'])"], "hflip", "augments")
    with pytest.raises(UserError, match="flips\\(\\) needs symmetry=hflip"):
        check_symmetry(["compose(parts=['light()','flips()'])"], "none", "augments")
    with pytest.raises(UserError, match="d4\\(\\) needs symmetry=d4"):
        check_symmetry(["compose(parts=['flips()',\"compose(parts=['d4()'])\"])"], "hflip", "augments")


def test_a_wrong_name_inside_is_found_before_any_work():
    with pytest.raises(UserError, match="did you mean flips"):
        registry.bind("augments", "compose(parts=['flip()'])")
    with pytest.raises(UserError, match="alfa"):
        registry.bind("mixes", "mix_of(mixes=['mixup(alfa=1.0)'])")
    assert list(registry.unfold("mixes", "mix_of(mixes=['none()','cutmix()'])")) == [
        "mix_of(mixes=['none()','cutmix()'])", "none()", "cutmix()",
    ]  # fmt: skip
    assert list(registry.unfold("mixes", "cutmix()")) == ["cutmix()"]
