"""Prediction: every view and scale of every row, in order, from what the checkpoint says."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import small_training as small
import torch
from torch import nn

from pipeline import compiling, data, evaluate, gains, infer, network
from pipeline.artefacts import Predictions
from pipeline.hardware import Hardware
from pipeline.network import Blueprint
from pipeline.parts import views
from pipeline.runs import Run
from pipeline.stages import predict
from pipeline.tasks import task_for
from pipeline.tasks.multiclass import Multiclass

SIDE = 8


class Store:
    """Images in memory, and how they were asked for."""

    def __init__(self, count: int) -> None:
        self.images = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 1), dtype=np.uint8)
        self.asked: list[int] = []

    def take(self, rows: np.ndarray) -> np.ndarray:
        self.asked.append(len(rows))
        return self.images[rows]


class Corner(nn.Module):
    """Answers with the pixels of the left upper corner, so that each view shows in its answer."""

    compiled = False

    def __init__(self) -> None:
        super().__init__()
        self.normalise = network.Normalise([0.5], [0.5])
        self.blueprint = SimpleNamespace(state={}, embeds=False)

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        return self.normalise(images)

    def outputs(self, prepared: torch.Tensor) -> torch.Tensor:
        return prepared[:, 0, :2, :2].flatten(1)

    predicted = outputs


def corner(images: np.ndarray) -> np.ndarray:
    """The same by hand, (n, H, W, 1) uint8 → (n, 4) probabilities."""
    outputs = torch.from_numpy(images[:, :2, :2, 0].reshape(len(images), 4) / 127.5 - 1)
    return outputs.softmax(dim=1).numpy()


TURNS = {
    "identity()": lambda x: x,
    "hflip()": lambda x: x[:, :, ::-1],
    "vflip()": lambda x: x[:, ::-1],
    "transpose()": lambda x: x.transpose(0, 2, 1, 3),
    "rot90()": lambda x: np.rot90(x, 1, (1, 2)),
    "rot180()": lambda x: np.rot90(x, 2, (1, 2)),
    "rot270()": lambda x: np.rot90(x, 3, (1, 2)),
    "shift(x=1,y=2)": lambda x: np.pad(x, ((0, 0), (2, 0), (1, 0), (0, 0)), mode="edge")[:, :SIDE, :SIDE],
}


@pytest.mark.parametrize("batch", [1, 3, 7, 8, 100])
def test_each_view_of_each_row_in_order(batch):
    store, rows = Store(9), np.array([5, 0, 8, 2, 2, 7, 1])
    chosen = views.expand(TURNS)
    values = infer.predict(Corner().eval(), Multiclass("abcd"), store, rows, chosen, batch)
    assert values.shape == (len(TURNS), 7, 4)
    assert values.dtype == np.float32
    for place, turn in enumerate(TURNS.values()):
        np.testing.assert_allclose(values[place], corner(turn(store.images[rows])), atol=1e-6)
    assert sum(store.asked) == 7, "each image is loaded once for all views"
    assert store.asked == [batch] * (7 // batch) + ([7 % batch] if 7 % batch else [])


def test_no_rows_give_no_predictions():
    values = infer.predict(Corner(), Multiclass("abcd"), Store(3), np.array([], dtype=int), views.expand(["d4()"]), 4)
    assert values.shape == (8, 0, 4)


def test_a_fault_of_the_store_reaches_the_caller():
    class Broken(Store):
        def take(self, rows):
            raise OSError("no such disk")

    with pytest.raises(OSError, match="no such disk"):
        infer.predict(Corner(), Multiclass("abcd"), Broken(3), np.arange(3), views.expand(["identity()"]), 2)


def test_large_images_come_in_smaller_batches():
    assert infer.batch_size(256, 32) == infer.batch_size(256, 128) == 256
    assert infer.batch_size(256, 256) == 64
    assert infer.batch_size(256, 4096) == 8


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_formats_agree(precision):
    torch.manual_seed(0)
    plan = Blueprint("small_image(width=4)", "avg()", "linear()", 1, 8, "stretch", [0.5], [0.3], ["a", "b"])
    model = network.build(plan).eval()
    store = Store(20)
    machine = Hardware("cpu", "fp32", precision, 1)
    task, rows, view = Multiclass("ab"), np.arange(20), views.expand(["identity()"])
    fast = infer.predict(infer.ready(model, machine), task, store, rows, view, 8)[0]
    with torch.inference_mode():
        plain = model(data.channels_first(store.images)).softmax(dim=1).numpy()
    np.testing.assert_allclose(fast, plain, atol=1e-5 if precision == "fp32" else 0.02)
    np.testing.assert_allclose(fast.sum(axis=1), 1, atol=1e-6)


def small_net(precision: str = "bf16") -> network.Network:
    torch.manual_seed(0)
    plan = Blueprint("small_image(width=4)", "avg()", "linear()", 1, 8, "stretch", [0.5], [0.3], ["a", "b"])
    return infer.ready(network.build(plan).eval(), Hardware("cpu", "fp32", precision, 1))


def test_operations_are_those_of_the_layers_by_hand():
    net, seen = small_net(), []
    found = compiling.gigaflops(net, 32)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda one, _, out: seen.append(2 * one.weight.numel() * out[0, 0].numel()))
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda one, *_: seen.append(2 * one.weight.numel()))
    with torch.inference_mode():
        net(torch.zeros(1, 1, 32, 32, dtype=torch.uint8))
    assert found * 1e9 == sum(seen) > 0


def test_only_long_predictions_are_compiled(monkeypatch):
    net = small_net()
    looks = int(compiling.LEAST_AMX / compiling.gigaflops(net, 8))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(compiling, "has_compiler", lambda: True)
    assert compiling.wanted("auto", net, [8], looks + 1, threads=1)
    assert not compiling.wanted("auto", net, [8], looks - 1, threads=1)
    assert not compiling.wanted("auto", net, [8], looks + 1, threads=2)  # the compiler's time is no threads'
    assert compiling.wanted("auto", net, [8, 16], looks - 1, threads=1)
    assert compiling.wanted("true", net, [8], 1, threads=1)
    assert not compiling.wanted("false", net, [8], 10**12, threads=1)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    longer = int(compiling.LEAST_BF16 / compiling.gigaflops(net, 8))
    assert compiling.wanted("auto", net, [8], longer + 1, threads=1)
    assert not compiling.wanted("auto", net, [8], longer - 1, threads=1)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert not compiling.wanted("auto", net, [8], 10**12, threads=1)
    monkeypatch.setattr(compiling, "has_compiler", lambda: False)
    assert not compiling.wanted("true", net, [8], looks + 1, threads=1)


@pytest.mark.parametrize(
    ("backbone", "gains"),
    [("resnet18", True), ("small_image(width=4)", True), ("mobilenetv3_small_050", True), ("efficientnet_b0", False),
     ("convnext_atto", False), ("vit_tiny_patch16_224", False)],
)  # fmt: skip
def test_nets_that_gain_nothing_are_not_compiled_by_themselves(monkeypatch, backbone, gains):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(compiling, "has_compiler", lambda: True)
    plan = Blueprint(backbone, "avg()", "linear()", 1, 32, "stretch", [0.5], [0.3], ["a", "b"])
    net = infer.ready(network.build(plan).eval(), Hardware("cpu", "fp32", "bf16", 1))
    assert compiling.wanted("auto", net, [32], 10**12, threads=1) is gains
    assert compiling.wanted("true", net, [32], 1, threads=1)


def test_a_network_for_one_shape_gets_whole_batches_and_answers_for_each_row():
    seen: list[int] = []

    class Fixed(Corner):
        compiled = True

        def outputs(self, prepared: torch.Tensor) -> torch.Tensor:
            assert not torch.is_inference_mode_enabled()
            seen.append(len(prepared))
            return super().outputs(prepared)

        predicted = outputs

    view, task = views.expand(["identity()", "hflip()"]), Multiclass("abcd")
    for count in (7, 8, 1, 0):
        store = Store(count)
        values = infer.predict(Fixed(), task, store, np.arange(count), view, 4)
        plain = infer.predict(Corner(), task, Store(count), np.arange(count), view, 4)
        np.testing.assert_array_equal(values[:, :, : plain.shape[2]], plain)
    assert set(seen) == {4}


@pytest.mark.slow
@pytest.mark.skipif(not compiling.has_compiler(), reason="needs a C++ compiler")
def test_compiled_predictions_are_the_same_within_the_format(project):
    """By the stage, so that the key is read and the fingerprint knows it; half a minute for the compiler."""
    small.write(project.root, rows=24)
    words = ("precision=bf16", "predict_batch=5", "views=identity,hflip", "symmetry=hflip")
    assert project.run("stage=train", *words).code == 0
    assert project.run("stage=predict", *words).code == 0
    folder = project.root / "runs/noise/tiny/fold0"
    plain = {name: Predictions.load(folder / name) for name in ("oof.npz", "test.npz")}
    done = project.run("stage=predict", "predict_compile=true", *words)
    assert done.code == 0, done.err
    assert done.out.count("by compiled code") == 2
    for name, before in plain.items():
        after = Predictions.load(folder / name)
        assert after.ids.tolist() == before.ids.tolist()
        np.testing.assert_allclose(after.values, before.values, atol=0.01)
    assert "by compiled code" not in project.run("stage=predict", "predict_compile=true", *words).out  # it is done


# --- the stage ----------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(project):
    """A trained run on a competition that allows flips."""
    small.write(project.root, rows=24)
    assert project.run("stage=train").code == 0
    return project


def views_of(project, fold: int = 0) -> tuple[np.ndarray, list[str]]:
    with np.load(project.root / f"runs/noise/tiny/fold{fold}/oof_views.npz") as content:
        return content["values"], content["labels"].tolist()


def test_damaged_views_leave_out_the_gains_alone(trained, capsys):
    done = trained.run("stage=predict", "views=identity,hflip", "symmetry=hflip")
    assert "gain in OOF" in done.out
    run = Run(small.config(views=["identity()", "hflip()"], symmetry="hflip"), "tiny")
    task = task_for(run.config, run.competition)
    for size in (0, 100):
        (run.folder / "fold0/oof_views.npz").write_bytes(b"x" * size)
        assert gains.of_views(run, task, evaluate.metric("accuracy()", task), run.truth(task), run.oof()) is None
        assert "delete its oof.npz files and run stage=predict again" in capsys.readouterr().err


def test_scales_change_the_size_that_images_are_read_at(trained, monkeypatch):
    sizes = []
    take = infer.predict

    def spy(model, task, store, rows, chosen, batch, label=""):
        sizes.append(store.take(rows[:1]).shape[1])
        return take(model, task, store, rows, chosen, batch, label)

    monkeypatch.setattr(infer, "predict", spy)
    ended = trained.run("stage=predict", "fold=0", "scales=1,1.5,2", "views=identity,shift(x=1)")
    assert ended.code == 0, ended.err
    assert sizes == [8, 12, 16] * 2
    values, labels = views_of(trained)
    assert labels == [f"{view} × {scale}" for scale in ("1", "1.5", "2") for view in ("identity()", "shift(x=1,y=0)")]
    assert len(np.unique(values.round(6), axis=0)) == 6
    merged = Predictions.load(trained.root / "runs/noise/tiny/fold0/oof.npz").values
    np.testing.assert_allclose(merged, values.mean(axis=0), atol=1e-6)
    printed = trained.run("stage=predict", "scales=1,1.5,2", "views=identity,shift(x=1)").out
    assert "gain in OOF accuracy() over identity() × 1 alone" in printed
    assert printed.count("    + ") == 5
    assert "all 6 together" in printed


def test_merge_is_an_option(trained):
    words = ("stage=predict", "fold=0", "views=identity,shift(x=2)")
    assert trained.run(*words, "merge=geometric_mean").code == 0
    values, _ = views_of(trained)
    merged = Predictions.load(trained.root / "runs/noise/tiny/fold0/oof.npz").values
    by_hand = np.sqrt(values[0] * values[1])
    np.testing.assert_allclose(merged, by_hand / by_hand.sum(axis=1, keepdims=True), atol=1e-5)
    assert trained.run(*words).code == 0
    plain = Predictions.load(trained.root / "runs/noise/tiny/fold0/oof.npz").values
    np.testing.assert_allclose(plain, values.mean(axis=0), atol=1e-6)
    assert not np.array_equal(merged, plain)


def test_views_need_the_declared_symmetry(trained):
    refused = trained.run("stage=predict", "views=hflip")
    assert refused.code == 2
    assert "symmetry" in refused.err
    assert not (trained.root / "runs/noise/tiny/fold0/oof.npz").exists()
    ended = trained.run("stage=predict", "views=identity,hflip", "symmetry=hflip")
    assert ended.code == 0, ended.err


def test_predictions_are_those_of_the_checkpoint_whatever_the_command_line_says(trained):
    assert trained.run("stage=predict").code == 0
    paths = sorted((trained.root / "runs").rglob("*.npz"))
    first = {path: Predictions.load(path).values for path in paths}
    assert len(first) == 4
    for path in paths:
        path.unlink()
    assert trained.run("stage=predict", "image_size=32", "backbone=resnet10t", "data.normalise=dataset").code == 0
    for path, values in first.items():
        np.testing.assert_array_equal(Predictions.load(path).values, values)


def test_finished_predictions_stay_and_new_weights_are_predicted_anew(trained):
    assert trained.run("stage=predict").code == 0
    paths = sorted((trained.root / "runs").rglob("*.npz"))
    first = {path: path.stat().st_mtime_ns for path in paths}
    again = trained.run("stage=predict")
    assert "predict tiny fold" not in again.out
    assert first == {path: path.stat().st_mtime_ns for path in paths}
    assert trained.run("stage=train", "overwrite=true", "seed=1").code == 0
    assert trained.run("stage=predict").code == 0
    assert all(path.stat().st_mtime_ns > first[path] for path in paths)


def test_predicting_before_training_says_what_to_do(project):
    small.write(project.root)
    stopped = project.run("stage=predict")
    assert stopped.code == 2
    assert "./run.sh stage=train competition=noise run=tiny" in stopped.err
    assert project.run("stage=train", "fold=0").code == 0
    stopped = project.run("stage=predict")
    assert stopped.code == 2
    assert "run=tiny fold=1" in stopped.err


@pytest.mark.parametrize(("sure", "warned"), [(0.95, False), (0.4, True)])
def test_test_rows_unlike_the_training_rows_are_warned_of(trained, capsys, sure, warned):
    assert trained.run("stage=predict").code == 0
    run = Run(small.config(), "tiny")
    for name, confidence in (("oof", 0.9), ("test", sure)):
        for fold in (0, 1):
            path = run.member((fold,)) / f"{name}.npz"
            values = np.array([[confidence, *[(1 - confidence) / 2] * 2]] * len(Predictions.load(path).ids))
            Predictions(Predictions.load(path).ids, values, "probability").save(path)
    predict.report(run, Multiclass("abc"), 0.0, reused=False)
    printed = capsys.readouterr()
    assert f"mean confidence: OOF 0.900, test {sure:.3f}" in printed.out
    assert ("test images may differ" in printed.err) == warned
