"""Learning from images alone: each pretrainer against its paper, and the stage around them."""

from __future__ import annotations

import csv
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import small_tasks
import small_training as small
import torch
from safetensors import safe_open
from torch import nn

from pipeline import features, network, pretraining, registry
from pipeline.competition import load
from pipeline.config import replace
from pipeline.doctor.anomalies import far
from pipeline.errors import UserError
from pipeline.network import Blueprint
from pipeline.parts import pretrainers
from pipeline.parts.pretrainers import Plan, standard
from pipeline.pretraining import SelfTaught

METHODS = list(registry.parts("pretrainers"))
REBUILD = [name for name, part in registry.parts("pretrainers").items() if part.facts.get("reconstructs")]


def blueprint(backbone: str = "small_image(width=4)", channels: int = 1, size: int = 16, **changes) -> Blueprint:
    means = [0.4] * channels, [0.3] * channels
    return Blueprint(backbone, "avg()", "linear()", channels, size, "stretch", *means, [], 1, **changes)


def taught(method: str, backbone: str = "small_image(width=4)", channels: int = 1, size: int = 16) -> SelfTaught:
    torch.manual_seed(0)
    plan = blueprint(backbone, channels, size)
    return SelfTaught(plan, network.new(plan, False, "").backbone, method)


def pictures(count: int, channels: int = 1, size: int = 16) -> torch.Tensor:
    """Smooth images: each a slope of its own."""
    torch.manual_seed(1)
    slopes, place = torch.rand(count, channels, 2, 1, 1), torch.linspace(0, 255, size)
    return (slopes[:, :, 0] * place[:, None] + (1 - slopes[:, :, 1]) * place).clamp(0, 255).to(torch.uint8)


# --- each against its paper ---------------------------------------------------------------------------------------


def test_the_divergence_is_that_of_the_distributions() -> None:
    torch.manual_seed(0)
    mean, log_variance = torch.randn(5, 3), torch.randn(5, 3)
    one = torch.distributions.Normal(mean, (log_variance / 2).exp())
    other = torch.distributions.Normal(torch.zeros(3), torch.ones(3))
    wanted = torch.distributions.kl_divergence(one, other).sum(dim=1)
    torch.testing.assert_close(pretrainers.divergence(mean, log_variance), wanted)


def test_vae_is_the_bound_on_the_likelihood() -> None:
    made, pixels = taught("vae(latent=3, beta=2.0)").eval(), pictures(4)
    torch.manual_seed(5)
    losses = made(pixels)
    mean, log_variance = made.pretrainer.posterior(made.maps(made.prepare(pixels)))
    torch.manual_seed(5)
    code = torch.distributions.Normal(mean, (log_variance / 2).exp()).mean + (log_variance / 2).exp() * torch.randn(
        4, 3
    )
    pixel = torch.distributions.Normal(made.pretrainer.decode(code), 1.0)
    likelihood = (pixel.log_prob(standard(pixels)) + math.log(2 * math.pi) / 2).flatten(1).sum(dim=1)
    wanted = (2 * pretrainers.divergence(mean, log_variance) - likelihood) / 256
    torch.testing.assert_close(losses, wanted)


class Bare:
    """A network whose vectors are the pixels' first columns, and which remembers what it saw."""

    def prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float() / 100

    def vectors(self, prepared: torch.Tensor) -> torch.Tensor:
        return prepared.flatten(1)[:, :6]

    def maps(self, prepared: torch.Tensor) -> torch.Tensor:
        self.seen = prepared
        return prepared


def views(count: int = 4) -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randint(0, 256, (2 * count, 1, 4, 4), dtype=torch.uint8)


def slow_nt_xent(points: list[list[float]], temperature: float) -> list[float]:
    """Chen et al. 2020, eq. 1, of 2N points, i and i + N of one image: the mean of both ends, for each image."""

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.dist(a, [0] * len(a)) / math.dist(b, [0] * len(b))

    count, ends = len(points) // 2, []
    for i, one in enumerate(points):
        chances = [math.exp(cosine(one, other) / temperature) for k, other in enumerate(points) if k != i]
        right = math.exp(cosine(one, points[(i + count) % (2 * count)]) / temperature)
        ends.append(-math.log(right / sum(chances)))
    return [(ends[i] + ends[i + count]) / 2 for i in range(count)]


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_simclr_is_nt_xent(temperature: float) -> None:
    made = pretrainers.simclr(Plan(1, 4, 6, 1, 1), temperature=temperature)
    made.project = nn.Identity()
    points = Bare().vectors(Bare().prepare(views()))
    wanted = torch.tensor(slow_nt_xent(points.tolist(), temperature))
    torch.testing.assert_close(made(Bare(), views()), wanted, rtol=1e-4, atol=1e-5)


def test_simsiam_looks_at_the_other_view_and_holds_it_still() -> None:
    torch.manual_seed(0)
    made = pretrainers.simsiam(Plan(1, 4, 6, 1, 1)).eval()
    made.project = nn.Linear(6, 6)
    points = made.project(Bare().vectors(Bare().prepare(views())))
    first, second = points.chunk(2)

    def towards(guess: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return -(nn.functional.normalize(guess, dim=1) * nn.functional.normalize(target, dim=1)).sum(dim=1)

    wanted = (towards(made.predict(first), second) + towards(made.predict(second), first)) / 2
    torch.testing.assert_close(made(Bare(), views()), wanted)
    still = (towards(made.predict(first), second.detach()) + towards(made.predict(second), first.detach())) / 2
    own = torch.autograd.grad(made(Bare(), views()).sum(), made.project.weight)[0]
    torch.testing.assert_close(own, torch.autograd.grad(still.sum(), made.project.weight)[0])
    made.predict = nn.Sequential(Still())
    assert not made(Bare(), views()).requires_grad, "no gradient comes through the target"


class Still(nn.Module):
    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return points.detach()


@pytest.mark.parametrize(("size", "patch", "side"), [(16, 0, 8), (28, 0, 7), (15, 4, 4), (8, 0, 8), (4, 100, 2)])
def test_masked_hides_whole_patches_and_learns_from_them_alone(size: int, patch: int, side: int) -> None:
    made, bare = pretrainers.masked(Plan(1, size, 1, size, size), ratio=0.5, patch=patch), Bare()
    assert made.side == side
    pixels = torch.randint(1, 256, (3, 1, size, size), dtype=torch.uint8)
    torch.manual_seed(3)
    losses = made(bare, pixels)
    hidden = bare.seen == 0
    for row in range(3):
        cells = [hidden[row, 0, y : y + made.patch, x : x + made.patch].float().mean().item()
                 for y in range(0, size, made.patch) for x in range(0, size, made.patch)]  # fmt: skip
        assert set(cells) == {0.0, 1.0}
        assert sum(cells) == made.hidden == round(side * side / 2)
        filled = made.decode(bare.seen)[row]
        apart = (filled - standard(pixels)[row]).abs()[hidden[row]]
        torch.testing.assert_close(losses[row], apart.mean())
    assert not torch.equal(hidden[0], hidden[1])


def test_a_transformers_patches_are_hidden_whole() -> None:
    made = pretrainers.masked(Plan(3, 64, 8, 4, 4, tokens=True))
    assert (made.patch, made.side) == (16, 4)
    assert pretrainers.masked(Plan(3, 224, 8, 14, 14, tokens=True)).patch == 32


def test_denoising_wants_the_clean_image() -> None:
    made, bare, pixels = pretrainers.denoising(Plan(1, 4, 1, 4, 4), deviation=0.5), Bare(), views()
    torch.manual_seed(4)
    losses = made(bare, pixels)
    torch.manual_seed(4)
    spoilt = standard(pixels) + 0.5 * torch.randn(8, 1, 4, 4)
    torch.testing.assert_close(bare.seen * 100, spoilt * 63.75 + 127.5)
    torch.testing.assert_close(losses, (made.decode(bare.seen) - standard(pixels)).square().mean(dim=(1, 2, 3)))


# --- all of them --------------------------------------------------------------------------------------------------

NETS = [
    *((method, "small_image(width=4)", channels) for method, channels in zip(METHODS, (1, 3, 5, 3, 1), strict=True)),
    ("masked", "test_vit", 3), ("simsiam", "test_vit", 3),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in [
        *((method, "small_image(width=4)", channels) for method in METHODS for channels in (1, 3, 5)),
        *((method, backbone, 3) for method in METHODS for backbone in ("test_vit", "resnet18", "convnext_atto")),
        ("masked", "swin_tiny_patch4_window7_224", 3), ("vae", "vit_tiny_patch16_224", 3),
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("method", "backbone", "channels"), NETS)
def test_pretrainer_teaches_the_backbone(method: str, backbone: str, channels: int) -> None:
    size = 16 if backbone.startswith("small") else 32
    made = taught(f"{method}()", backbone, channels, size)
    pixels = pictures(6, channels, size)
    losses = made(pixels)
    count = 6 // registry.facts("pretrainers", method).get("views", 1)
    assert losses.shape == (count,)
    assert losses.dtype == torch.float32
    losses.sum().backward()
    learned = [weight for weight in made.backbone.parameters() if weight.grad is not None]
    assert len(learned) > 0.9 * len(list(made.backbone.parameters()))
    assert all(weight.grad.isfinite().all() for weight in learned)
    assert any(weight.grad.abs().max() > 0 for weight in learned[:3]), "down to the first layers"
    if method in REBUILD:
        one, other = (made.eval().pretrainer.reconstruct(made, pixels) for _ in range(2))
        assert one.made.shape == one.shown.shape == pixels.shape
        assert one.errors.shape == (6,)
        assert torch.equal(one.errors, other.errors), "nothing is drawn anew"
    with torch.autocast("cpu", torch.bfloat16):
        assert made(pixels).isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_learned_by_heart(method: str) -> None:
    made, pixels = taught(f"{method}()"), pictures(8)
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = made(pixels).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    first, last = (np.mean(part) for part in (losses[:3], losses[-3:]))
    assert last < first - 0.3 * abs(first)


# --- the stage ----------------------------------------------------------------------------------------------------

QUICK = ("stage=pretrain", "pretrain.epochs=2", "pretrain.batch_size=16")


def weights_of(root, run: str = "pretrain-vae"):
    return root / f"runs/noise/{run}/weights.safetensors"


@pytest.fixture
def root(project):
    small.write(project.root, rows=40, tests=8)
    return project.root


def test_an_auto_encoder_leaves_weights_features_and_a_sheet(project, root) -> None:
    words = (*QUICK, "pretrain.method=vae(latent=3)")
    ended = project.run(*words)
    assert ended.code == 0, ended.err
    assert "vae(latent=3) on 40 train, 8 test images" in ended.out
    assert "labels are looked at here, and nothing is chosen by it" in ended.out
    own = "model=tiny run=tiny-vae weights=runs/noise/pretrain-vae/weights.saf"
    assert f"to use it: ./run.sh stage=train competition=noise {own}" in ended.out
    folder = root / "runs/noise/pretrain-vae"
    with (folder / "features.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    competition = load(small.config())
    assert [row["id"] for row in rows] == [*competition.train["id"], *competition.test["id"]]
    assert list(rows[0]) == ["id", "pretrain-vae error", *(f"pretrain-vae code {place}" for place in range(3))]
    assert min(float(row["pretrain-vae error"]) for row in rows) > 0
    assert (folder / "reconstructions.png").read_bytes().startswith(b"\x89PNG")
    log = (folder / "full/log.csv").read_text().splitlines()
    assert log[0].startswith("epoch,loss,held_loss,spread,lr")
    assert len(log) == 3
    again = project.run(*words)
    assert "epoch" not in again.out
    assert "done before" in again.out or "vae" in again.out
    side = replace(small.config(), data__tables=["runs/noise/pretrain-vae/features.csv"])
    assert set(rows[0]) - {"id"} <= set(features.table(side, competition).names)


def test_the_report_knows_that_it_predicts_nothing(project, root) -> None:
    assert project.run("stage=split").code == 0
    assert project.run(*QUICK, "pretrain.method=simclr()").code == 0
    assert project.run("stage=report").code == 0
    assert "made by stage=pretrain, for others to begin with" in (root / "runs/noise/report.html").read_text()
    refused = project.run("stage=train", "fold=0", "run=pretrain-simclr")
    assert refused.code == 2
    assert "the run pretrain-simclr was made by stage=pretrain; name a new run" in refused.err
    refused = project.run("stage=predict", "fold=0", "run=pretrain-simclr")
    assert "stage=pretrain made it, and it has no networks" in refused.err


def test_a_training_begins_with_what_was_learned(project, root) -> None:
    assert project.run(*QUICK, "pretrain.method=masked()").code == 0
    path = weights_of(root, "pretrain-masked")
    with safe_open(path, "pt") as handle:
        assert '"backbone": "small_image(width=4)"' in handle.metadata()["pipeline"]
        assert not [name for name in handle.keys() if "pretrainer" in name or "model." in name]  # noqa: SIM118
    words = ("stage=train", "fold=0", "epochs=1", "lr=1e-12", "optim=sgd(momentum=0.0)")
    assert project.run(*words, f"weights={path.relative_to(root)}").code == 0
    assert project.run(*words, "run=random").code == 0
    before = small.weights(root / "runs/noise/pretrain-masked/full/best.ckpt")
    started, random = (small.weights(root / f"runs/noise/{run}/fold0/best.ckpt") for run in ("tiny", "random"))
    convolution = "backbone.layers.3.convolution.weight"
    torch.testing.assert_close(started[convolution], before[convolution], rtol=0, atol=1e-6)
    assert (random[convolution] - before[convolution]).abs().max() > 0.01


def test_loaded_weights_give_the_same_features(tmp_path) -> None:
    for backbone, changes in (("small_image(width=4)", {}), ("test_vit", {}), ("resnet18", {"stem": "small()",
                              "norm": "group()"})):  # fmt: skip
        plan = blueprint(backbone, 3, 32, normalise="backbone()", **changes)
        torch.manual_seed(1)
        one = network.new(plan, False, "").backbone.eval()
        network.save_learned(tmp_path / "w.safetensors", one, plan, method="masked()")
        other = network.new(plan, False, str(tmp_path / "w.safetensors")).backbone.eval()
        images = torch.randn(2, 3, 32, 32)
        assert torch.equal(one(images), other(images))


MISFITS = {
    "another backbone": ({"backbone": "resnet18"}, "backbone=small_image.width=4., but this run has backbone=resnet18"),
    "another width": ({"backbone": "small_image(width=8)"},
                      "learned by small_image.width=4. at image_size=16, and do not fit small_image.width=8. at"),
    "channels": ({"channels": 3}, "data.channels=1, but this run has data.channels=3"),
    "normalise": ({"normalise": "per_image()"}, "data.normalise=backbone.., but this run has data.normalise=per_image"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_weights_of_another_network_are_refused_by_name(case: str, tmp_path) -> None:
    plan = blueprint(normalise="backbone()")
    network.save_learned(tmp_path / "w.safetensors", network.new(plan, False, "").backbone, plan, method="vae()")
    changes, message = MISFITS[case]
    facts = {**plan.facts(), **changes}
    facts |= {key: facts[key] * changes.get("channels", 1) for key in ("mean", "std")}
    with pytest.raises(UserError, match=message):
        network.new(Blueprint(**facts), False, str(tmp_path / "w.safetensors"))
    with pytest.raises(UserError, match="pixels of mean 0.400 and deviation 0.300, but here they are 0.900"):
        network.new(Blueprint(**{**plan.facts(), "mean": [0.9]}), False, str(tmp_path / "w.safetensors"))


WRONG = {
    "pretrain.method=simsia()": "did you mean simsiam",
    "pretrain.method=masked(ratio=1.5)": "ratio must be",
    "pretrain.augment=flips()": "pretrain.augment: flips() needs symmetry=hflip",
    "pretrain.augment=several()": "how many views there are is up to pretrain.method",
    "pretrain.images=nowhere": "pretrain.images=nowhere, but there is no folder nowhere",
    "pretrain.images=unlabelled": "there are no such images; name a folder",
    "schedule=reduce_on_plateau()": "follows the scores of a fold",
    "pretrain.batch_size=5 devices=2": "share a batch evenly; take 4",
    "pretrain.holdout=0.7": "pretrain.holdout must be",
}


@pytest.mark.parametrize("word", WRONG)
def test_what_cannot_be_is_one_message(project, root, word: str) -> None:
    ended = project.run("stage=pretrain", *word.split())
    assert ended.code == 2
    assert WRONG[word] in ended.err
    assert not list((root / "runs").rglob("config.yaml"))


def test_mirrors_come_only_where_they_are_declared(project, root) -> None:
    from pipeline.stages.pretrain import plain

    for symmetry, there in (("none", False), ("hflip", True)):
        config = plain(replace(small.config(), symmetry=symmetry, pretrain__method="simclr()"))
        assert ("flips()" in config.augment) == there
        assert config.augment.startswith("several(")
        assert config.batch_size == 128, "an image is told from the others of its batch"


def test_killed_it_goes_on_and_ends_with_the_same_weights(project, root) -> None:
    words = ("stage=pretrain", "pretrain.epochs=3", "pretrain.batch_size=8", "train.checkpoint_seconds=0")
    assert project.run(*words, "run=whole").code == 0
    forward, left = pretraining.Pretraining.forward, [8]

    class Killed(BaseException):
        pass

    def mortal(self, batch, generator):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return forward(self, batch, generator)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(pretraining.Pretraining, "forward", mortal)
        project.run(*words, "run=killed")
    assert "going on from" in project.run(*words, "run=killed").out
    assert weights_of(root, "whole").read_bytes() == weights_of(root, "killed").read_bytes()
    changed = project.run(*words, "run=killed", "lr=1e-4")
    assert changed.code == 2
    assert "the run killed was made with other settings (lr: 0.003 → 0.0001)" in changed.err


def test_any_folder_of_images_will_do(project, root) -> None:
    shutil.copytree(root / "data/noise/test_images", root / "more")
    (root / "more/broken.png").write_bytes(b"no picture")
    ended = project.run(*QUICK, "pretrain.images=train,more", "run=wide")
    assert ended.code == 0, ended.err
    assert "on 40 train, 9 more images" in ended.out
    assert '"images": 48' in (root / "runs/noise/wide/pretrain.json").read_text()


@pytest.mark.parametrize("resize", ["stretch", "tiles"])
def test_masks_begin_with_a_pretrained_encoder(project, resize: str) -> None:
    small_tasks.write_masks(project.root, "masks")
    words = (f"data.resize={resize}", "epochs=1")
    assert project.run(*QUICK, *words, "pretrain.method=masked()").code == 0
    weights = "weights=runs/drawn/pretrain-masked/weights.safetensors"
    trained = project.run("stage=train", "fold=0", *words, "lr=1e-12", "optim=sgd(momentum=0.0)", weights)
    assert trained.code == 0, trained.err
    before = small.weights(project.root / "runs/drawn/pretrain-masked/full/best.ckpt")
    now = small.weights(project.root / "runs/drawn/tiny/fold0/best.ckpt")
    name = "model.layers.3.convolution.weight"
    torch.testing.assert_close(now[f"segmenter.encoder.{name}"], before[f"backbone.{name}"], rtol=0, atol=1e-6)


# --- odd images ---------------------------------------------------------------------------------------------------


def test_far_is_far_from_the_middle() -> None:
    errors = np.exp(np.random.default_rng(0).normal(0, 0.1, 200))
    assert len(far(errors)) == 0
    errors[[7, 9]], errors[11] = (3, 5), np.nan
    assert far(errors).tolist() == [9, 7]
    assert len(far(errors[:10])) == 0


def test_check_shows_what_an_auto_encoder_is_worst_at(project, root) -> None:
    assert project.run("stage=check").code == 0
    assert project.run(*QUICK, "pretrain.method=vae(latent=2)").code == 0
    path = root / "runs/noise/pretrain-vae/features.csv"
    lines = path.read_text().splitlines()
    lines[4] = ",".join([lines[4].split(",")[0], "500", "0", "0"])
    path.write_text("\n".join(lines) + "\n")
    said = project.run("stage=check")
    assert "1 image unlike the others: pretrain-vae reconstructs them far worse" in said.out
    assert "a003" in (root / "runs/noise/check.html").read_text()


def test_neighbours_say_what_their_labels_are() -> None:
    from pipeline.stages.pretrain import answered

    run = SimpleNamespace(competition=SimpleNamespace(targets=None), config=SimpleNamespace(knn=SimpleNamespace(
        temperature=0.1)))  # fmt: skip
    from pipeline.forms import CLASSES

    truth = np.array([0, 1, 0, 1])
    task = SimpleNamespace(form=CLASSES, taught=lambda targets: truth, targets=lambda targets: truth,
                           soft=lambda values: np.eye(2, dtype=np.float32)[values])  # fmt: skip
    near = np.ones((2, 1), dtype=np.float32), np.array([[0], [1]])
    wanted, said = answered(run, task, np.array([0, 1]), np.array([2, 3]), near)
    assert wanted.tolist() == said.argmax(axis=1).tolist() == [0, 1]
