"""run.sh beside a Python and a pip that only record what they are asked for; and the helpers it calls."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import pipeline
from pipeline import environment

SOURCE = Path(__file__).resolve().parent.parent

FAKE_PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$CALLS"
case "$*" in
    "-c "*) exit "${FAKE_TOO_OLD:-0}" ;;
    --version) echo "Python 3.10.1" ;;
    "-m venv "*) rm -rf .venv/* && mkdir -p .venv/bin && cp "$0" .venv/bin/python3 && eval "${FAKE_VENV:-touch .venv/whole}" ;;
    *"environment mend") [[ -e ${0%/bin/*}/whole ]] ;;
    *"environment lacks "*) echo "${FAKE_LACKS:-}" && [[ -z ${FAKE_LACKS:-} ]] ;;
    *"environment requirements "*) printf 'torch\\ntorchvision\\ntimm\\nrich\\n' ;;
    "-m pip install "*) eval "${FAKE_PIP:-}" ;;
    *) echo "ran $*" ;;
esac
"""  # noqa: E501


class Checkout:
    """A copy of run.sh and its inputs, with fake Pythons first on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        (self.folder / "pipeline").mkdir(parents=True)
        for name in ("run.sh", "pyproject.toml", "constraints.txt"):
            shutil.copy(SOURCE / name, self.folder)
        self.python = folder / "fake" / "bin" / "python3"
        self.python.parent.mkdir(parents=True)
        for name in ("python3", "python3.11", "python3.12", "python3.13"):
            self.make_python(self.python.with_name(name))
        self.log = folder / "calls"

    def make_python(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FAKE_PYTHON)
        path.chmod(0o755)

    def variables(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV" and not k.startswith("KAGGLE")}
        lacking = {"FAKE_LACKS": "rich>=13 (has none)"}  # so that /kaggle, where it exists, does not count
        return {**kept, "PATH": f"{self.python.parent}:{kept['PATH']}", "CALLS": str(self.log), **lacking, **more}

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.folder / "run.sh", *words], env=self.variables(**variables), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        process = self.start(*words, **variables)
        out, err = process.communicate()
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()

    @property
    def installs(self) -> list[str]:
        return [call.partition("constraints.txt ")[2] for call in self.calls if call.startswith("-m pip install")]


BOTH = ["torch", "--requirement .venv/requirements.txt"]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_first_start_installs_torch_first_and_then_runs(checkout: Checkout) -> None:
    done = checkout.run("help")
    assert (done.returncode, done.stdout) == (0, "ran -m pipeline help\n")
    assert checkout.installs == BOTH
    assert all("--constraint constraints.txt" in call for call in checkout.calls if "-m pip install" in call)
    assert "making .venv" in done.stderr
    assert "ready" in done.stderr


def test_second_start_runs_one_python_and_says_nothing(checkout: Checkout) -> None:
    checkout.run("help")
    done = checkout.run("stage=train", "loss=focal(gamma=2.0)", "message=a b")
    assert checkout.calls == ["-m pipeline stage=train loss=focal(gamma=2.0) message=a b"]
    assert done.stderr == ""


def test_arguments_reach_pytest_and_no_arguments_the_pipeline(checkout: Checkout) -> None:
    checkout.run()
    assert checkout.run().stdout == "ran -m pipeline\n"
    assert checkout.run("test", "-k", "a or b").stdout == "ran -m pytest -k a or b\n"
    assert checkout.run("lint").stdout.splitlines()[-1] == "ran -m mypy"


def test_all_tests_run_side_by_side_on_four_cores_at_most(checkout: Checkout) -> None:
    ran = re.fullmatch(r"ran -m pytest --numprocesses=(\d) --dist=loadfile\n", checkout.run("test").stdout)
    assert ran
    assert 1 <= int(ran[1]) <= min(4, os.cpu_count() or 1)


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_contents_install_again_and_touched_files_do_not(checkout: Checkout, name: str) -> None:
    checkout.run("help")
    (checkout.folder / name).touch()
    checkout.run("help")
    assert checkout.installs == []
    with (checkout.folder / name).open("a") as file:
        file.write("# changed\n")
    done = checkout.run("help")
    assert checkout.installs == BOTH
    assert "changed" in done.stderr
    assert not [call for call in checkout.calls if call.startswith("-m venv")]


def test_a_moved_checkout_keeps_its_environment(checkout: Checkout) -> None:
    checkout.run("help")
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("moved"))
    checkout.run("help")
    assert checkout.calls == ["-m pipeline help"]


def test_an_interrupted_installation_is_taken_up_again(checkout: Checkout) -> None:
    killed = checkout.run("help", FAKE_PIP='if [[ "$*" == *requirement* ]]; then kill -9 $PPID $$; fi')
    assert (killed.returncode, killed.stdout) == (137, "")
    assert checkout.installs == BOTH
    assert checkout.run("help").stdout == "ran -m pipeline help\n"
    assert checkout.installs == BOTH
    assert "-m pipeline.environment mend" in checkout.calls


def test_a_half_made_environment_is_made_anew(checkout: Checkout) -> None:
    assert checkout.run("help", FAKE_VENV="kill -9 $PPID $$").returncode == 137
    assert (checkout.folder / ".venv").exists()
    done = checkout.run("help")
    assert done.returncode == 0
    assert "incomplete" in done.stderr
    assert "-m venv --clear .venv" in checkout.calls


def test_failing_pip_is_one_message_with_the_next_move(checkout: Checkout) -> None:
    done = checkout.run("help", FAKE_PIP="echo 'ERROR: No matching distribution found for torch'; exit 1")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(r"pip failed: ERROR: No matching.*network.*\./run\.sh again", done.stderr)
    assert len(checkout.installs) == 1
    assert checkout.run("help").returncode == 0
    assert checkout.installs == BOTH


def test_old_python_is_one_message(checkout: Checkout) -> None:
    done = checkout.run("help", FAKE_TOO_OLD="1")
    assert done.returncode == 2
    assert "Python 3.11 or newer is needed, but there is Python 3.10.1" in done.stderr
    assert not (checkout.folder / ".venv").exists()


def test_a_linked_environment_is_used_and_never_cleared(checkout: Checkout, tmp_path: Path) -> None:
    link = checkout.folder / ".venv"
    checkout.make_python(tmp_path / "shared" / "bin" / "python3")
    link.symlink_to(tmp_path / "shared")
    done = checkout.run("help")
    assert done.returncode == 2
    assert f"link to {tmp_path / 'shared'}" in done.stderr
    assert not [call for call in checkout.calls if call.startswith("-m venv")]
    (tmp_path / "shared" / "whole").touch()
    assert checkout.run("help").returncode == 0
    assert checkout.installs == BOTH
    checkout.run("help", VIRTUAL_ENV=str(checkout.python.parent.parent), FAKE_LACKS="")  # .venv comes first
    assert checkout.calls == ["-m pipeline help"]


def test_a_dangling_link_is_one_message(checkout: Checkout) -> None:
    (checkout.folder / ".venv").symlink_to("nowhere")
    done = checkout.run("help")
    assert done.returncode == 2
    assert "rm .venv" in done.stderr


@pytest.mark.parametrize("kaggle", [True, False])
def test_a_fitting_active_environment_is_used_and_checked_once(checkout: Checkout, kaggle: bool) -> None:
    home = str(checkout.python.parent.parent)
    active = {"FAKE_LACKS": "", **({"KAGGLE_KERNEL_RUN_TYPE": "Batch"} if kaggle else {"VIRTUAL_ENV": home})}
    done = checkout.run("help", **active)
    assert checkout.calls == ["-m pipeline.environment lacks core", "-m pipeline help"]
    assert f"using the active environment {home}" in done.stderr
    checkout.run("help", **active)
    assert checkout.calls == ["-m pipeline help"]
    checkout.run("test", "-q", **active)
    assert checkout.calls == ["-m pipeline.environment lacks core test", "-m pytest -q"]
    assert not (checkout.folder / ".venv").exists()


def test_an_active_environment_that_lacks_something_is_left_alone(checkout: Checkout) -> None:
    done = checkout.run("help", VIRTUAL_ENV=str(checkout.python.parent.parent))
    assert done.returncode == 0
    assert "does not fit (rich>=13 (has none))" in done.stderr
    assert checkout.installs == BOTH
    assert (checkout.folder / ".venv").exists()


def test_without_virtual_env_no_python_on_the_path_is_active(checkout: Checkout) -> None:
    checkout.run("help", FAKE_LACKS="something")
    assert (checkout.folder / ".venv").exists()


@pytest.mark.skipif(shutil.which("flock") is None, reason="no flock here")
def test_of_two_first_starts_one_waits(checkout: Checkout, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    checkout.log.write_text("")
    first = checkout.start("help", FAKE_PIP=f'if [[ "$*" == *requirement* ]]; then read -r < {gate}; fi')
    assert first.stderr is not None
    while "2/2" not in first.stderr.readline():  # the lock is held
        assert first.poll() is None
    second = checkout.start("help")
    assert second.stderr is not None
    assert "waiting" in second.stderr.readline()
    gate.write_text("go on\n")
    assert first.communicate()[0] == second.communicate()[0] == "ran -m pipeline help\n"
    assert checkout.installs == BOTH


def test_works_from_any_folder_and_through_bash(checkout: Checkout, tmp_path: Path) -> None:
    checkout.run("help")
    done = subprocess.run(
        ["bash", "run.sh", "help"], cwd=checkout.folder, env=checkout.variables(), capture_output=True, text=True
    )
    assert done.stdout == "ran -m pipeline help\n"
    assert not (tmp_path / ".venv").exists()


# --- the helpers ----------------------------------------------------------------------------------------------------


def install(site: Path, name: str, *, size: int = 4, recorded: int = 4, installer: bool = True) -> Path:
    metadata = site / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / f"{name}.py").write_bytes(b"#" * size)
    (metadata / "RECORD").write_text(f"{name}.py,sha256=x,{recorded}\n{name}-1.0.dist-info/RECORD,,\n")
    if installer:
        (metadata / "INSTALLER").write_text("pip\n")
    return metadata


def test_mend_forgets_what_is_half_installed_and_keeps_the_rest(tmp_path: Path) -> None:
    whole = install(tmp_path, "whole")
    broken = [
        install(tmp_path, "truncated", size=3),
        install(tmp_path, "missing"),
        install(tmp_path, "unfinished", installer=False),
        install(tmp_path, "unlisted"),
    ]
    (tmp_path / "missing.py").unlink()
    (broken[-1] / "RECORD").unlink()
    (tmp_path / "~orch").mkdir()
    environment.mend(tmp_path)
    assert whole.is_dir()
    assert [path for path in broken if path.exists()] == []
    assert not (tmp_path / "~orch").exists()


def test_lacks_names_what_is_missing_or_too_old() -> None:
    assert environment.lacks(["pytest>=8", "packaging"]) == []
    assert environment.lacks(["no-such-distribution>=1"]) == ["no-such-distribution>=1 (has none)"]
    (old,) = environment.lacks(["pytest<1"])
    assert old.startswith("pytest<1 (has ")


def test_every_requirement_is_pinned_inside_its_range() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = [line for line in (SOURCE / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}
    wanted = [Requirement(line) for line in environment.requirements(["core", "test"])]
    unpinned = [r.name for r in wanted if not r.specifier.contains(pins.get(canonicalize_name(r.name), "0"))]
    assert unpinned == []
    assert (pins["torch"], pins["torchvision"]) == ("2.13.0", "0.28.0")


def test_extras_are_no_requirement() -> None:
    content = tomllib.loads((SOURCE / "pyproject.toml").read_text())
    extras = {line for group in content["project"]["optional-dependencies"].values() for line in group}
    assert extras
    assert not extras & set(environment.requirements(["core"]))


def test_a_linked_environment_is_ignored_by_git() -> None:
    assert ".venv" in (SOURCE / ".gitignore").read_text().splitlines()


def test_ci_runs_the_tests_last_and_the_workflow_runs_ci() -> None:
    assert (SOURCE / ".ci" / "run").read_text().splitlines()[-1] == 'exec ./run.sh test "$@"'
    assert os.access(SOURCE / ".ci" / "run", os.X_OK)
    assert "run: .ci/run" in (SOURCE / ".github" / "workflows" / "ci.yml").read_text()


def test_importing_the_package_keeps_albumentations_off_the_network() -> None:
    assert pipeline.__version__
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"


def test_torchvision_can_be_imported_and_the_fix_repeated() -> None:
    import torch

    from pipeline.torchvision_fix import fix_torchvision

    fix_torchvision()
    import torchvision.transforms

    fix_torchvision()
    assert torchvision.transforms.InterpolationMode.BICUBIC.value == "bicubic"
    assert str(torch.ops.torchvision.nms.default._schema).startswith("torchvision::nms(Tensor dets, Tensor scores,")


def test_where_the_native_library_loads_nothing_is_defined(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from pipeline import torchvision_fix

    defined: list[str] = []
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    monkeypatch.setattr(torch.library, "define", lambda name, schema: defined.append(name))
    torchvision_fix.fix_torchvision()
    assert defined == []
