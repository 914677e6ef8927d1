"""The documentation against the code: commands parse, paths exist, tables name what there is."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from conftest import SOURCE

from pipeline import config, stages
from pipeline.stages import help as helper

PAGES = [SOURCE / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(SOURCE.glob("docs/*.md"))
README = (SOURCE / "README.md").read_text(encoding="utf-8")
SHOWN_AS_WRONG = {"./run.sh loss=focl"}
TOOLS = ("test", "lint", "help")


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced code blocks in these languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [body for language, body in found if language in languages]


def section(title: str) -> str:
    """The README's text below a heading."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """The cells of the table in a section, without its head; a | inside backticks would not be understood."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def command_lines() -> list[str]:
    """Every ./run.sh of a code block, or behind a prompt in one, without its comment, as they come."""
    found = []
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8"), "sh", "console"):
            lines = [line.removeprefix("$ ").strip() for line in block.splitlines()]
            found += [re.split(r"\s+#\s", line)[0] for line in lines if line.startswith("./run.sh")]
    return found


def commands() -> list[str]:
    """The same, each once."""
    return list(dict.fromkeys(command_lines()))


def own_part() -> str:
    """The part that CONTRIBUTING adds, whose commands work only once it is there."""
    text = (SOURCE / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.findall(r"^def (\w+)\(logits", "".join(blocks(text, "python")), flags=re.MULTILINE)[0]


@pytest.fixture
def documented(project):
    """A project that also holds the YAML files which the pages write out."""
    for body in (body for page in PAGES for body in blocks(page.read_text(encoding="utf-8"), "yaml")):
        path = project.root / body.splitlines()[0].removeprefix("# ")
        assert path.suffix == ".yaml", f"say in the first line which file this is, not {body.splitlines()[0]!r}"
        path.write_text(body, encoding="utf-8")
    return project


def test_there_are_commands_to_check():
    assert len(commands()) > 20
    assert all(line in commands() for line in SHOWN_AS_WRONG)


@pytest.mark.parametrize("line", [line for line in commands() if own_part() not in line])
def test_command_is_understood(line, documented):
    _, *words = shlex.split(line)
    if words and words[0] in TOOLS:
        check_tool(words)
    elif line in SHOWN_AS_WRONG:
        assert documented.run(*words).code == 2
    else:
        arguments = config.parse_arguments(words)
        stages.check_name(arguments.get("stage", "all"))
        config.compose(arguments)


def check_tool(words: list[str]) -> None:
    """Help has the topic; the files given to pytest exist."""
    if words[0] == "help":
        helper.show(" ".join(words[1:]))
    assert all((SOURCE / word).exists() for word in words[1:] if word.endswith(".py"))


@pytest.mark.parametrize("topic", sorted(set(re.findall(r"`\./run\.sh (help[^`]*)`", README))))
def test_help_topic_exists(topic, capsys):
    helper.show(topic.removeprefix("help").strip())
    assert capsys.readouterr().out.strip()


def test_page_of_messages_is_what_the_sources_raise():
    spec = importlib.util.spec_from_file_location("list_messages", SOURCE / "docs/list_messages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.page() == module.PAGE.read_text(encoding="utf-8"), "run .venv/bin/python docs/list_messages.py"


def test_python_blocks_are_python():
    for page in PAGES:
        for body in blocks(page.read_text(encoding="utf-8"), "python"):
            ast.parse(body)


def test_steps_to_add_a_loss_give_a_part_that_the_contract_covers(tmp_path, monkeypatch):
    """Appended to the losses, the code of CONTRIBUTING is found by the scan from which the contract tests are made."""
    from pipeline import registry

    text = (SOURCE / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = next(body for body in blocks(text, "python") if body.startswith("@part"))
    (tmp_path / "losses.py").write_text((SOURCE / "pipeline/parts/losses.py").read_text() + "\n\n" + code)
    monkeypatch.setattr(registry, "FOLDER", tmp_path)
    registry.parts.cache_clear()
    try:
        part = registry.find("losses", own_part())
        assert part.facts["source"]
        assert part.arguments.keys() <= part.facts["allowed"].keys()
    finally:
        registry.parts.cache_clear()


# --- the README's tables and tree ---------------------------------------------------------------------------------


def test_table_of_stages_names_every_stage():
    assert sorted(row[0].strip("`") for row in rows("Stages")) == stages.names()


def test_table_of_keys_gives_the_defaults():
    for name, default, _ in rows("Keys people change most"):
        key = config.keys()[name.strip("`")]
        text = ",".join(map(str, key.default)) if key.is_list else str(key.default)
        text = text.lower() if isinstance(key.default, bool) else text
        assert default.strip("`") == text, name


def test_exit_codes_are_those_of_the_door():
    from pipeline import __main__ as door

    promised = {row[0] for row in rows("Exit codes and resuming")}
    returned = {str(node.value.value) for node in ast.walk(ast.parse(Path(door.__file__).read_text()))
                if isinstance(node, ast.Return) and isinstance(node.value, ast.Constant)}  # fmt: skip
    assert promised == returned


def tree() -> dict[str, str]:
    """Path → what the README's tree says of it."""
    found, parents = {}, [""]
    for line in blocks(section("The tree"), "text")[0].splitlines():
        indent, name, meaning = re.fullmatch(r"( *)(\S+)\s*(.*)", line).groups()
        depth = len(indent) // 2
        parents = [*parents[: depth + 1], name]
        found["".join(parents)] = meaning
    return found


@pytest.mark.parametrize("path", tree())
def test_path_of_the_tree_exists(path):
    made_later = "git ignores it" in tree()[path]
    ignored = (SOURCE / ".gitignore").read_text().split()
    assert (f"/{path.strip('/')}" in ignored) if made_later else (SOURCE / path).exists()


def test_tree_is_complete():
    there = {f"pipeline/{path.name}" for path in (SOURCE / "pipeline").glob("*.py") if path.name != "__init__.py"}
    assert there <= tree().keys(), "explain these in the README's tree"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
    local = [one or other for one, other in targets if not (one or other).startswith("http")]
    missing = [target for target in local if not (page.parent / target.partition("#")[0]).exists()]
    assert missing == []


def test_files_named_in_prose_exist():
    for page in PAGES:
        named = re.findall(r"`((?:pipeline|tests|benchmarks|docs|configs)/[\w/.]+\.\w+)`", page.read_text())
        missing = [path for path in named if "NAME" not in path and not (SOURCE / path).exists()]
        assert missing == [], page.name


# --- the picture --------------------------------------------------------------------------------------------------


def test_picture_shows_every_stage_that_makes_something():
    drawn = (SOURCE / "docs/draw_stages.py").read_text(encoding="utf-8")
    assert [name for name in stages.names() if f'"{name}"' not in drawn] == ["all", "auto", "help"]  # which run others


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_picture_is_there_in_its_own_colours(theme):
    import runpy

    colours = vars(runpy.run_path(str(SOURCE / "docs/draw_stages.py"))["THEMES"][theme])
    svg = (SOURCE / f"docs/stages-{theme}.svg").read_text(encoding="utf-8")
    assert [name for name in ("page", "text", "stage", "card") if colours[name] not in svg] == []
