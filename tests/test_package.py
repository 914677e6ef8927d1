"""Packages: what they hold, that they answer new images as predict, stack and submit do, and what goes wrong."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import small_tasks
import small_training as small
from conftest import Project

from pipeline import budget, launch, wheels
from pipeline.__main__ import main
from pipeline.artefacts import Predictions
from pipeline.errors import OutOfTime
from pipeline.stages import answer

RUNS = ("one", "two")
STACK = ("stack.methods=mean", "stack.decisions=class_weights()")
FRESH = ("x7", "x1", "x40", "x3", "x5", "x6")  # ids of hidden images


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with two runs of two members each, predicted and stacked."""
    root = tmp_path_factory.mktemp("trained") / "project"
    shutil.copytree(small.SOURCE / "configs", root / "configs")
    small.write(root, rows=24, tests=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_ROOT", str(root))
        for seed, run in enumerate(RUNS):
            for stage in ("train", "predict"):
                assert main([f"stage={stage}", f"run={run}", f"seed={seed}", "epochs=1", "device=cpu"]) == 0
        assert main(["stage=stack", *STACK]) == 0
    return root


@pytest.fixture
def own(project: Project, trained: Path) -> Project:
    """A copy of it."""
    shutil.copytree(trained, project.root, dirs_exist_ok=True)
    return project


def hidden(folder: Path, ids: tuple[str, ...] = FRESH) -> Path:
    """A competition's folder with test images that nobody has seen, and no training rows."""
    generator = np.random.default_rng(7)
    (folder / "test_images").mkdir(parents=True)
    for name in ids:
        image = generator.integers(0, 256, (8, 8), dtype=np.uint8)
        (folder / "test_images" / f"{name}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    (folder / "sample_submission.csv").write_text("\n".join(["id,label", *(f"{name},a" for name in ids)]) + "\n")
    return folder


def unpacked(package: Path, root: Path, inputs: Path) -> Path:
    """The project that the notebook makes: folders full of links to a package."""
    for part in ("configs", "runs"):
        shutil.copytree(package / part, root / part, copy_function=os.symlink)
    for name in ("manifest.json", "training.csv"):
        os.symlink(package / name, root / name)
    os.symlink(inputs, root / "input")
    return root


def answered(project: Project, monkeypatch: pytest.MonkeyPatch, package: Path, root: Path, inputs: Path, *more: str):
    """The result of stage=answer on hidden images, and its rows."""
    monkeypatch.setenv("PIPELINE_ROOT", str(unpacked(package, root, inputs)))
    done = project.run("stage=answer", f"submission={root}/submission.csv", "parallel=none", *more)
    monkeypatch.setenv("PIPELINE_ROOT", str(project.root))
    path = root / "submission.csv"
    return done, pd.read_csv(path, dtype=str) if path.exists() else None


def expected(project: Project, monkeypatch: pytest.MonkeyPatch, root: Path, inputs: Path, *stack: str) -> pd.DataFrame:
    """The same images by predict, stack and submit, in a copy of the project where they are the test images."""
    shutil.copytree(project.root, root)
    folder = next((root / "data").iterdir())
    shutil.rmtree(folder / "test_images")
    shutil.copytree(inputs, folder, dirs_exist_ok=True)  # its test images and sample alone
    for record in root.glob("runs/*/*/*/predict.json"):
        record.unlink()
    monkeypatch.setenv("PIPELINE_ROOT", str(root))
    for run in sorted(path.parent.name for path in root.glob("runs/*/*/config.yaml")):
        assert project.run("stage=predict", f"run={run}").code == 0
    assert project.run(*(stack or ("stage=stack", *STACK))).code == 0
    monkeypatch.setenv("PIPELINE_ROOT", str(project.root))
    return pd.read_csv(next((root / "submissions").glob("*/stack.csv")), dtype=str)


def test_a_package_holds_what_answers_and_answers_like_predict(own, tmp_path, monkeypatch):
    project = own
    made = project.run("stage=package", "package.name=noise-best", "kaggle.slug=noise-2026")
    assert made.code == 0, made.err
    package = project.root / "packages/noise/noise-best"
    check_contents(package, made.out)
    again = project.run("stage=package", "package.name=noise-best", "kaggle.slug=noise-2026")
    assert "unchanged" in again.out
    check_same_bytes(project, package)
    check_replacing(project, package)

    inputs = hidden(tmp_path / "hidden")
    done, rows = answered(project, monkeypatch, package, tmp_path / "work", inputs)
    assert done.code == 0, done.err
    assert "4 of 4 members" in done.out
    pd.testing.assert_frame_equal(rows, expected(project, monkeypatch, tmp_path / "usual", inputs))
    check_values(tmp_path)


def check_contents(package: Path, said: str) -> None:
    names = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    runs = "runs/noise"
    members = [f"{runs}/{run}/fold{fold}/best.safetensors" for run in RUNS for fold in range(2)]
    level2 = [f"{runs}/level2/stack/{name}" for name in ("level2.json", "stacker.npz", "decision.npz")]
    tops = ["run.sh", "pyproject.toml", "constraints.txt", "training.csv", "dataset-metadata.json", "wheels.txt"]
    assert {*members, *level2, *tops, "pipeline/__main__.py", "configs/default.yaml"} <= names
    assert not [name for name in names if name.endswith((".ckpt", ".pkl", ".pyc", ".pt", ".pth"))]
    manifest = json.loads((package / "manifest.json").read_text())
    assert {*manifest["files"], "manifest.json"} == names
    assert [member["run"] for member in manifest["members"]] == ["one", "one", "two", "two"]
    assert {"score", "se", "folds"} <= manifest["cv"].keys()
    assert json.loads((package / "dataset-metadata.json").read_text())["id"].endswith("/noise-best")
    assert "kaggle datasets create -p packages/noise/noise-best" in said
    assert "noise-2026" in (package / "notebook.ipynb").read_text()


def check_same_bytes(project: Project, package: Path) -> None:
    kept = package.rename(package.with_name("kept"))
    assert project.run("stage=package", "package.name=noise-best", "kaggle.slug=noise-2026").code == 0
    files = sorted(path.relative_to(package) for path in package.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(kept) for path in kept.rglob("*") if path.is_file())
    assert [name for name in files if (package / name).read_bytes() != (kept / name).read_bytes()] == []
    shutil.rmtree(kept)


def check_replacing(project: Project, package: Path) -> None:
    before = (package / "manifest.json").read_bytes()
    refused = project.run("stage=package", "package.name=noise-best", "kaggle.slug=noise-2026", "views=identity,hflip")
    assert refused.code == 2  # not for this competition
    refused = project.run("stage=package", "package.name=noise-best", "kaggle.slug=another")
    assert refused.code == 2
    assert "notebook.ipynb" in refused.err
    assert "overwrite=true" in refused.err
    assert (package / "manifest.json").read_bytes() == before
    assert not list(package.parent.glob(".*.tmp"))


def check_values(tmp_path: Path) -> None:
    """Not the decided rows alone: level 2's values are the same to the last bit."""
    ours, usual = (
        Predictions.load(root / "runs/noise/level2/stack/test.npz") for root in (tmp_path / "work", tmp_path / "usual")
    )
    np.testing.assert_array_equal(ours.values, usual.values)


def test_a_competition_without_test_images_is_packaged_and_answers_the_hidden_ones(own, tmp_path, monkeypatch):
    """Trained where no test image is; a project that has them answers them alike."""
    inputs = hidden(tmp_path / "hidden")
    wanted = expected(own, monkeypatch, tmp_path / "usual", inputs)
    shutil.rmtree(own.root / "data/noise/test_images")
    for record in own.root.glob("runs/*/*"):
        shutil.rmtree(record) if record.is_dir() else record.unlink()
    for seed, run in enumerate(RUNS):
        for stage in ("train", "predict"):
            done = own.run(f"stage={stage}", f"run={run}", f"seed={seed}", "epochs=1", "device=cpu", "data.hidden=true")
            assert done.code == 0, done.err
    assert own.run(*STACK, "stage=stack", "data.hidden=true").code == 0
    package = packaged(own, "source=stack", "data.hidden=true")
    done, rows = answered(own, monkeypatch, package, tmp_path / "work", inputs)
    assert done.code == 0, done.err
    pd.testing.assert_frame_equal(rows, wanted)


# --- what goes wrong ----------------------------------------------------------------------------------------------


def packaged(project: Project, *words: str) -> Path:
    """The one package that a command makes."""
    made = project.run("stage=package", *words)
    assert made.code == 0, made.err
    (place,) = project.root.glob("packages/noise/[!.]*")
    return place


def test_broken_and_missing_images_get_the_mean(own, tmp_path, monkeypatch):
    inputs = hidden(tmp_path / "hidden")
    (inputs / "test_images/x1.png").write_bytes(b"no picture")
    (inputs / "test_images/x5.png").unlink()
    package = packaged(own, "source=one")
    done, rows = answered(own, monkeypatch, package, tmp_path / "work", inputs)
    assert done.code == 0, done.err
    assert rows["id"].tolist() == list(FRESH)
    assert "2 test images that do not decode are predicted as the mean" in done.out + done.err
    values = Predictions.load(tmp_path / "work/runs/noise/one/fold0/test.npz").align(list(FRESH)).values
    broken = [FRESH.index(name) for name in ("x1", "x5")]
    mean = np.delete(values, broken, axis=0).mean(axis=0)
    np.testing.assert_allclose(values[broken], np.stack([mean, mean]), atol=1e-6)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (3, "3 of 4 members; budget=1h ended before the other 1, level 2 on 1 of 2 folds"),
        (1, "1 of 4 members; budget=1h ended before the other 3; their plain mean stands for level 2"),
        (0, "0 of 4 members; budget=1h ended before the other 4; the training rows' mean"),
    ],
)
def test_what_is_done_in_time_is_averaged(own, tmp_path, monkeypatch, members, said):
    def stopped(work, asked):
        for member in asked[:members]:
            work.do(*member)
        raise OutOfTime

    monkeypatch.setattr(launch, "each", stopped)
    package = packaged(own)
    done, rows = answered(own, monkeypatch, package, tmp_path / "work", hidden(tmp_path / "hidden"), "budget=1h")
    assert done.code == 0, done.err
    assert said in done.out
    assert rows["id"].tolist() == list(FRESH)
    assert rows["label"].isin(list("abc")).all()


def test_members_at_work_are_stopped_when_the_time_is_over(own, tmp_path, monkeypatch):
    """Even one alone: it is a process of its own, which ends without having predicted."""
    package = packaged(own, "source=one", "fold=0")
    monkeypatch.setenv("PIPELINE_ROOT", str(unpacked(package, tmp_path / "work", hidden(tmp_path / "hidden"))))
    monkeypatch.setattr(budget, "over", lambda: True)
    done = own.run("stage=answer", "budget=1h", f"submission={tmp_path}/submission.csv")
    assert done.code == 0, done.err
    assert "0 of 1 members; budget=1h ended before the other 1" in done.out
    assert (tmp_path / "work/runs/noise/one/fold0/answer.log").exists()
    assert not (tmp_path / "work/runs/noise/one/fold0/test.npz").exists()
    assert len(pd.read_csv(tmp_path / "submission.csv")) == len(FRESH)


def test_other_libraries_than_those_that_trained_are_told(own, tmp_path, monkeypatch):
    package = packaged(own, "source=one", "fold=0")
    monkeypatch.setattr(answer, "versions", lambda: {"timm": "0.0.1"})
    done, _ = answered(own, monkeypatch, package, tmp_path / "work", hidden(tmp_path / "hidden"))
    assert "→ 0.0.1" in done.out


def test_mistakes_are_told_before_anything_is_written(own):
    wrong = own.run("stage=package", "source=onne")
    assert wrong.code == 2
    assert "did you mean one" in wrong.err
    weights = own.root / "runs/noise/two/fold1/best.ckpt"
    weights.rename(weights.with_suffix(".away"))
    missing = own.run("stage=package")
    assert missing.code == 2
    assert "runs/noise/two/fold1 is not trained to the end" in missing.err
    assert "stage=train" in missing.err
    weights.with_suffix(".away").rename(weights)
    (own.root / "runs/noise/two/fold1/predict.json").write_text("{}")
    assert "predicted otherwise" in own.run("stage=package").err
    assert "6 to 50" in own.run("stage=package", "source=one", "package.name=abc").err
    assert "lower-case" in own.run("stage=package", "source=one", "package.name=My_Best").err
    assert "a folder of their own" in own.run("stage=package", "data.test_images=.").err
    assert "source=NAME" in own.run("stage=package", "blend=a.csv,b.csv").err
    assert "stage=answer works in a package" in own.run("stage=answer").err
    assert not list(own.root.glob("packages/noise/[!.]*"))


def test_runs_without_networks_are_refused(own):
    """An adopted run answers no other images; a stack without it is the next move."""
    oof = own.root / "oof.npz"
    members = [Predictions.load(own.root / f"runs/noise/one/fold{fold}/oof.npz") for fold in range(2)]
    Predictions.concat(members).save(oof)
    test = own.root / "runs/noise/one/fold0/test.npz"
    assert own.run("stage=adopt", "run=mate", f"oof={oof}", f"test={test}").code == 0
    assert own.run("stage=stack", "stack.methods=mean", "stack.decisions=none").code == 0
    refused = own.run("stage=package")
    assert refused.code == 2
    assert "mate (stage=adopt)" in refused.err
    assert "stack.members=one,two" in refused.err


def test_a_package_that_was_cut_short_says_so(own, tmp_path, monkeypatch):
    package = packaged(own, "source=one")
    weights = package / "runs/noise/one/fold1/best.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    done, _ = answered(own, monkeypatch, package, tmp_path / "work", hidden(tmp_path / "hidden"))
    assert done.code == 2
    assert "runs/noise/one/fold1/best.safetensors" in done.err
    assert "upload it again" in done.err


def test_runs_without_weight_stay_at_home(own, tmp_path, monkeypatch):
    assert own.run("stage=stack", "stack.methods=single", "stack.decisions=none").code == 0
    content = json.loads((own.root / "runs/noise/level2/stack/level2.json").read_text())
    kept = [name for name, weight in content["weights"].items() if weight]
    package = packaged(own)
    assert [path.name for path in sorted((package / "runs/noise").iterdir())] == sorted(["level2", *kept])
    inputs = hidden(tmp_path / "hidden")
    done, _ = answered(own, monkeypatch, package, tmp_path / "work", inputs)
    assert done.code == 0, done.err
    assert "2 of 2 members" in done.out


def test_a_member_of_all_rows_is_packaged_without_cv(own, tmp_path, monkeypatch):
    words = ("run=one", "fold=full", "epochs=1", "seed=0")
    assert own.run("stage=train", *words).code == own.run("stage=predict", *words).code == 0
    made = own.run("stage=package", "source=one", "fold=full")
    assert "one: 1 member, no CV" in made.out
    package = own.root / "packages/noise/noise-one"
    assert [path.parent.name for path in package.rglob("*.safetensors")] == ["full"]
    done, rows = answered(own, monkeypatch, package, tmp_path / "work", hidden(tmp_path / "hidden"))
    assert done.code == 0, done.err
    assert len(rows) == len(FRESH)


def test_side_features_travel_with_their_codes(own, tmp_path, monkeypatch):
    stack = ("stage=stack", "stack.methods=lightgbm(features=True)", "stack.decisions=none")
    assert own.run(*stack).code == 0
    package, inputs = packaged(own), hidden(tmp_path / "hidden")
    assert (package / "runs/noise/level2/stack/features.json").is_file()
    done, rows = answered(own, monkeypatch, package, tmp_path / "work", inputs)
    assert done.code == 0, done.err
    pd.testing.assert_frame_equal(rows, expected(own, monkeypatch, tmp_path / "usual", inputs, *stack))
    check_values(tmp_path)


def test_side_features_of_known_images_alone_are_refused(own):
    table, generator = own.root / "runs/noise/pretrain-vae/features.csv", np.random.default_rng(0)
    table.parent.mkdir(parents=True)
    ids = [
        path.stem for part in ("train", "test") for path in sorted((own.root / f"data/noise/{part}_images").iterdir())
    ]
    pd.DataFrame({"id": ids, "code": generator.random(len(ids))}).to_csv(table, index=False)
    words = ("data.tables=runs/noise/pretrain-vae/features.csv", "stack.name=side")
    stacked = own.run("stage=stack", "stack.methods=lightgbm(features=True)", "stack.decisions=none", *words)
    assert stacked.code == 0, stacked.err
    refused = own.run("stage=package", "source=side", *words)
    assert refused.code == 2
    assert "side features of runs/noise/pretrain-vae/features.csv, which no other test images have" in refused.err


def test_half_precision_says_how_far_predictions_move(own):
    whole = packaged(own, "source=one")
    sizes = [path.stat().st_size for path in sorted(whole.rglob("*.safetensors"))]
    made = own.run("stage=package", "source=one", "package.half=true", "overwrite=true")
    assert "test rows move by" in made.out
    facts = json.loads((whole / "manifest.json").read_text())["members"]
    assert all(0 < member["moved"]["most"] < 0.01 for member in facts)
    assert all(new < old for new, old in zip((member["bytes"] for member in facts), sizes, strict=True))


# --- wheels -------------------------------------------------------------------------------------------------------


def test_wheels_are_what_the_image_lacks_and_what_that_needs():
    lacking = {line.partition("==")[0].lower().replace("_", "-") for line in wheels.lacking([])}
    assert {"omegaconf", "lightning-fabric", "lightning-utilities", "iterative-stratification"} <= lacking
    assert not lacking & {"torch", "timm", "numpy", "pandas"}
    fewer = wheels.lacking([*wheels.KAGGLE, "omegaconf"])
    assert not any(line.startswith("omegaconf") for line in fewer)


def test_wheels_that_cannot_be_fetched_are_told(tmp_path):
    from pipeline.errors import UserError

    with pytest.raises(UserError, match="pip download failed"):
        wheels.fetch(["--no-index", "no-such-package-of-anyone==1.0"], tmp_path / "wheels")


# --- every task ---------------------------------------------------------------------------------------------------

TASKS = {
    "binary": lambda root, **more: small_tasks.write(root, "binary()", **more),
    "multilabel": lambda root, **more: small_tasks.write(root, "multilabel()", **more),
    "ordinal": lambda root, **more: small_tasks.write(root, "ordinal()", **more),
    "ordinal_regression": lambda root, **more: small_tasks.write(root, "ordinal_regression()", **more),
    "regression": lambda root, **more: small_tasks.write(root, "regression(low=0)", **more),
    "circular": lambda root, **more: small_tasks.write(root, "circular(period=24.0)", **more),
    "masks": lambda root, **more: small_tasks.write_masks(root, "masks", **more),
    "class_masks": lambda root, **more: small_tasks.write_masks(root, "class_masks", **more),
    "objects": lambda root, **more: small_tasks.write_masks(root, "objects", **more),
    "gallery": lambda root, **more: small_tasks.write_retrieval(root, "gallery"),
    "labels": lambda root, **more: small_tasks.write_labels(root),
    "pool": lambda root, **more: small_tasks.write_retrieval(root, "pool"),
}
MASKED = ("masks", "class_masks", "objects")


@pytest.mark.slow
@pytest.mark.parametrize("kind", TASKS)
def test_every_task_answers_like_predict(project, tmp_path, monkeypatch, kind):
    """One run and its level 2; the hidden rows are drawn anew where the task's drawing can."""
    TASKS[kind](project.root)
    other, inputs = TASKS[kind](tmp_path / "other", tests=7, seed=3), tmp_path / "hidden"
    shutil.copytree(other / "test_images", inputs / "test_images")
    for name in ("sample_submission.csv", "test.csv"):
        if (other / name).exists():
            shutil.copy(other / name, inputs / name)
    stack = ("stage=stack", "stack.features=false")
    for words in (("stage=train", "epochs=2"), ("stage=predict",), stack):
        done = project.run(*words)
        assert done.code == 0, done.err
    made = project.run("stage=package")
    assert made.code == 0, made.err
    package = project.root / "packages/drawn/drawn-stack"
    done, rows = answered(project, monkeypatch, package, tmp_path / "work", inputs)
    assert done.code == 0, done.err
    pd.testing.assert_frame_equal(rows, expected(project, monkeypatch, tmp_path / "usual", inputs, *stack))
    if kind in MASKED:
        check_blank(project, monkeypatch, package, inputs, tmp_path)


def check_blank(project: Project, monkeypatch: pytest.MonkeyPatch, package: Path, inputs: Path, place: Path) -> None:
    """Images that cannot be read are answered with no mask, the others as ever."""
    before = pd.read_csv(place / "work/submission.csv", dtype=str)
    images = sorted((inputs / "test_images").iterdir())
    images[1].write_bytes(b"no picture")
    images[4].unlink()
    done, rows = answered(project, monkeypatch, package, place / "again", inputs)
    assert done.code == 0, done.err
    assert "2 of 7 test images cannot be read" in done.out + done.err
    lost = rows["id"].str.startswith((images[1].stem, images[4].stem))
    assert rows["rle"][lost].isna().all()
    assert list(dict.fromkeys(rows["id"])) == list(dict.fromkeys(before["id"]))
    kept = before[~before["id"].str.startswith((images[1].stem, images[4].stem))].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows[~lost].reset_index(drop=True), kept)


# --- the notebook, offline ----------------------------------------------------------------------------------------

DRIVER = """
import re, socket, sys
from pathlib import Path
import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

package, competition, scratch = sys.argv[1:]
try:
    socket.create_connection(("192.0.2.1", 80), timeout=5)
    sys.exit("there is a network")
except OSError as fault:
    assert fault.errno == 101, fault  # network is unreachable
notebook = nbformat.read(Path(package) / "notebook.ipynb", 4)
nbformat.validate(notebook)
first = notebook.cells[1]
for name, place in (("PACKAGE", package), ("COMPETITION", competition), ("SCRATCH", scratch)):
    first.source, count = re.subn(rf'{name} = "[^"]*"', f'{name} = "{place}"', first.source)
    assert count == 1
NotebookClient(notebook, timeout=500, kernel_name="image", config=Config(KernelManager={"transport": "ipc"})).execute()
print("".join(output.get("text", "") for cell in notebook.cells[1:] for output in cell.outputs))
"""


def site_packages() -> Path:
    return Path(sysconfig.get_path("purelib"))


def wheel(line: str, folder: Path) -> None:
    """The wheel of an installed distribution, put together from its files."""
    there = importlib.metadata.distribution(line.partition("==")[0])
    kept = [str(f) for f in there.files or () if not str(f).startswith("..") and "__pycache__" not in str(f)]
    kept = [name for name in kept if not name.endswith(("/INSTALLER", "/REQUESTED", "/RECORD", "/direct_url.json"))]
    info = next(name.partition("/")[0] for name in kept if name.partition("/")[0].endswith(".dist-info"))
    folder.mkdir(parents=True, exist_ok=True)
    name = info.removesuffix(".dist-info")
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as archive:
        for file in kept:
            archive.write(site_packages() / file, file)
        archive.writestr(f"{info}/RECORD", "".join(f"{file},,\n" for file in [*kept, f"{info}/RECORD"]))


def image(folder: Path, lacking: list[str]) -> Path:
    """A new virtual environment that sees what is installed here, but for what Kaggle's image lacks; its Python."""
    hidden_ = {"pip", "setuptools"}
    for line in lacking:
        files = importlib.metadata.distribution(line.partition("==")[0]).files or ()
        hidden_ |= {str(file).partition("/")[0] for file in files}
    (folder / "there").mkdir(parents=True)
    for path in site_packages().iterdir():
        if path.name not in hidden_ and path.suffix != ".pth":
            (folder / "there" / path.name).symlink_to(path)
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    (own,) = (folder / "env").glob("lib/python*/site-packages")
    (own / "image.pth").write_text(f"{folder / 'there'}\n")
    return folder / "env/bin/python"


def is_alone() -> bool:
    """Whether a command can be given no network."""
    tool = shutil.which("unshare")
    return tool is not None and subprocess.run([tool, "-n", "true"], capture_output=True).returncode == 0


ALONE = pytest.mark.skipif(not is_alone(), reason="unshare -n needs rights that this machine does not give")


@pytest.mark.slow
@ALONE
def test_the_notebook_answers_like_predict_without_a_network(own, tmp_path, monkeypatch):
    """In an environment that lacks what wheels.txt names, whose wheels are put together from what is installed here."""
    monkeypatch.setattr(wheels, "fetch", lambda wanted, folder: [wheel(line, folder) for line in wanted])
    package = packaged(own, "package.wheels=true", "package.budget=20m")
    lacking = (package / "wheels.txt").read_text().split()
    assert len(list((package / "wheels").iterdir())) == len(lacking) > 3
    python = image(tmp_path / "image", lacking)
    bare = subprocess.run([python, "-c", "import torch, pandas, omegaconf"], capture_output=True, text=True)
    assert "No module named 'omegaconf'" in bare.stderr
    check_notebook(own, monkeypatch, package, python, tmp_path)


@pytest.mark.slow
@ALONE
def test_the_notebook_answers_in_an_empty_environment_from_the_wheels_alone(own, tmp_path, monkeypatch):
    """A new environment with a notebook's kernel and nothing else; every package comes from pip as a wheel."""
    python = empty(tmp_path / "image")
    has = sorted(kernel_packages(python))
    try:
        package = packaged(own, "package.wheels=true", "package.budget=20m", f"package.has={','.join(has)}")
    except AssertionError as fault:
        if "pip download failed" in str(fault):
            pytest.skip("no package registry is within reach")
        raise
    lacking = (package / "wheels.txt").read_text().split()
    assert {"torch", "timm", "lightgbm", "pandas"} <= {line.partition("==")[0] for line in lacking}
    assert len(list((package / "wheels").glob("*.whl"))) == len(lacking)
    bare = subprocess.run([python, "-c", "import torch"], capture_output=True, text=True)
    assert "No module named 'torch'" in bare.stderr
    check_notebook(own, monkeypatch, package, python, tmp_path)
    assert kernel_packages(python) == {*has, *(wheels.plain(line.partition("==")[0]) for line in lacking)}


def empty(folder: Path) -> Path:
    """A new virtual environment with pip and a notebook's kernel alone; its Python. Skips without a registry."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    constraints = str(small.SOURCE / "constraints.txt")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", constraints]
    if subprocess.run([*pip, "ipykernel"]).returncode:
        pytest.skip("no package registry is within reach")
    return python


def kernel_packages(python: Path) -> set[str]:
    """What an environment has, by names as PEP 503 writes them."""
    tell = "from importlib import metadata as m; print(*(d.metadata['Name'] for d in m.distributions()))"
    done = subprocess.run([python, "-I", "-c", tell], capture_output=True, text=True, check=True)
    return {wheels.plain(name) for name in done.stdout.split()}


def check_notebook(own: Project, monkeypatch: pytest.MonkeyPatch, package: Path, python: Path, tmp_path: Path) -> None:
    """Run by that Python without a network, a package's notebook answers as predict, stack and submit do."""
    kernel = tmp_path / "jupyter/kernels/image"
    kernel.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "image", "language": "python"}))
    inputs, place = hidden(tmp_path / "hidden"), tmp_path / "working"
    place.mkdir()
    driver = ["unshare", "-n", sys.executable, "-c", DRIVER, str(package), str(inputs), str(tmp_path / "work")]
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    variables["JUPYTER_PATH"] = str(tmp_path / "jupyter")
    before = {path: path.stat().st_mtime_ns for path in package.rglob("*")}
    done = subprocess.run(driver, cwd=place, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "4 of 4 members" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in package.rglob("*")} == before, "it may be read-only"
    rows = pd.read_csv(place / "submission.csv", dtype=str)
    pd.testing.assert_frame_equal(rows, expected(own, monkeypatch, tmp_path / "usual", inputs))
    ours = Predictions.load(tmp_path / "work/project/runs/noise/level2/stack/test.npz")
    usual = Predictions.load(tmp_path / "usual/runs/noise/level2/stack/test.npz")
    np.testing.assert_array_equal(ours.values, usual.values)
