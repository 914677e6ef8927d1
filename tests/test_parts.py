"""The contract of every registered part, by kind: a new part is covered as soon as it is registered."""

from __future__ import annotations

import copy
import inspect
import re

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from pipeline import registry
from pipeline.errors import UserError
from pipeline.forms import FORMS, MAPS, RANKS, Form, unit
from pipeline.parts.augments import augmenter
from pipeline.parts.losses import starting_scale
from pipeline.parts.metrics_masks import score
from pipeline.parts.views import expand
from pipeline.ranking import Search
from pipeline.symmetry import SYMMETRIES

ALL = [
    pytest.param(part, id=f"{kind}.{name}") for kind in registry.kinds() for name, part in registry.parts(kind).items()
]
ROWS, CLASSES = 6, 4


def each(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", list(registry.parts(kind)))


def logits_and_classes() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(ROWS, CLASSES, requires_grad=True), torch.arange(ROWS) % CLASSES


def one_hot(classes: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(classes, CLASSES).float()


# --- all kinds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ALL)
def test_part_is_described_and_cited(part: registry.Part) -> None:
    assert part.facts["source"], "declare a source: the paper and equation, or the library"
    assert part.summary.rstrip()[-1:] in ".:;", f"begin with one whole sentence, not {part.summary!r}"
    plain = {"seed"}  # says all by its name
    missing = [key for key in part.arguments.keys() - plain if not re.search(rf"\b{key}", part.document)]
    assert not missing, f"say in the docstring what these do: {missing}"


@pytest.mark.parametrize("part", ALL)
def test_signature_is_a_call_string_that_binds(part: registry.Part) -> None:
    if registry.REQUIRED not in part.arguments.values():
        found, call = registry.bind(part.kind, part.signature)
        assert (found.name, call.arguments) == (part.name, part.arguments)
        assert str(registry.parse(str(call))) == str(call)
        assert registry.build(part.kind, part.name).keywords == {}


@pytest.mark.parametrize("part", ALL)
def test_scan_of_the_source_agrees_with_the_imported_part(part: registry.Part) -> None:
    loaded = part.load()
    keywords = {
        name: registry.REQUIRED if parameter.default is parameter.empty else parameter.default
        for name, parameter in inspect.signature(loaded).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert keywords == part.arguments
    assert part.facts.items() <= loaded.facts.items()


@pytest.mark.parametrize("part", ALL)
def test_wrong_argument_and_value_out_of_range_are_refused(part: registry.Part) -> None:
    with pytest.raises(UserError, match="no_such_argument"):
        registry.bind(part.kind, f"{part.name}(no_such_argument=1)")
    for key, allowed in part.facts.get("allowed", {}).items():
        assert key in part.arguments, f"allowed names {key}, which is no argument"
        if isinstance(allowed[0], (int, float)):
            default, outside = part.arguments[key], allowed[0] - 1
            several = isinstance(default, tuple) or part.types[key].startswith("tuple")
            length = len(default) if isinstance(default, tuple) else 2
            value = (outside,) * length if several else outside
            with pytest.raises(UserError, match=f"{key}.* must be"):
                registry.bind(part.kind, f"{part.name}({key}={value})")


# --- losses -------------------------------------------------------------------------------------------------------

OF_CLASSES = [name for name, part in registry.parts("losses").items() if part.facts["takes"][0] == "classes"]
OF_FORMS = [
    pytest.param(name, form, id=f"{name}-{form}")
    for name, part in registry.parts("losses").items()
    for form in part.facts["takes"]
]
each_form = pytest.mark.parametrize(("name", "form"), OF_FORMS)
WITHIN = {  # a loss that such targets can be given to, for the losses of other losses
    "classes": "cross_entropy()", "labels": "bce()", "numbers": "mse()", "masks": "bce()",
    "class_masks": "cross_entropy()",
}  # fmt: skip
HEIGHT, WIDTH = 6, 5


def loss_of(name: str, columns: int = CLASSES, form: str = "classes"):
    """A loss with its defaults, its required weights, and balanced counts where it asks for counts."""
    part = registry.parts("losses")[name]
    required = [key for key, default in part.arguments.items() if default is registry.REQUIRED]
    given = [f"{key}={[1.0 + column for column in range(columns)]}" for key in required]
    for key in part.facts.get("calls", {}):
        lists = isinstance(part.arguments[key], tuple)
        given.append(f"{key}={[WITHIN[form]] * 2 if lists else WITHIN[form]!r}")
    loss = registry.build("losses", f"{name}({', '.join(given)})")
    if part.facts.get("lengths"):  # constant lengths, longer than any logit here
        return lambda outputs, target: loss(outputs, target, torch.full(outputs.shape, 20.0))
    if part.facts.get("memory"):
        return lambda outputs, target: loss(outputs, target, torch.zeros(()))
    if not part.facts.get("counts"):
        return loss
    return lambda outputs, target: loss(outputs, target, torch.full((columns,), 7))


def outputs_of(name: str, form: str = "classes") -> tuple[torch.Tensor, float]:
    """Outputs as the loss wants them, logits or s · cosines or maps of logits, and a step for them that is no leap."""
    logits, _ = logits_and_classes()
    if form in MAPS:
        torch.manual_seed(0)
        return torch.randn(ROWS, CLASSES, HEIGHT, WIDTH, requires_grad=True), 2.0
    if not registry.parts("losses")[name].facts.get("cosines"):
        return logits, 2.0
    scale = starting_scale(0, CLASSES)
    return (0.6 * scale * logits.tanh()).detach().requires_grad_(), 0.3 * scale


def is_of_batch(name: str) -> bool:
    """Whether the loss looks at a batch as a whole, so that a row's value alone says nothing."""
    return registry.parts("losses")[name].facts.get("batch", False)


def targets_of(form: str, logits: torch.Tensor) -> torch.Tensor:
    """Training targets of this form for outputs of these rows and columns; of maps in the last row all is void."""
    rows, columns, *size = logits.shape
    torch.manual_seed(1)
    if form == "classes":
        return torch.arange(rows) % columns
    if form not in MAPS:
        return (torch.rand(rows, columns) > 0.5).float() if form == "labels" else torch.randn(rows, columns)
    target = (torch.rand(rows, columns, *size) > 0.5).float()
    if form == "class_masks":
        target = torch.nn.functional.one_hot(torch.randint(columns, (rows, *size)), columns).movedim(-1, 1).float()
    target[:, :, 0, 0] = target[-1] = -1
    return target


@each_form
def test_loss_gives_a_finite_value_a_row_with_a_gradient(name: str, form: str) -> None:
    logits, _ = outputs_of(name, form)
    target = targets_of(form, logits)
    values = loss_of(name, form=form)(logits, target)
    assert values.shape == (ROWS,)
    assert values.dtype == torch.float32
    values.sum().backward()
    assert torch.isfinite(logits.grad).all()
    taught = logits.grad.flatten(1).abs().sum(dim=1) > 0
    if form in MAPS:
        assert not taught[-1]
        taught = taught[:-1]
    assert taught.any() if is_of_batch(name) else taught.all()


@pytest.mark.parametrize("name", OF_CLASSES)
def test_loss_of_soft_targets_is_the_expectation_over_classes(name: str) -> None:
    logits, _ = outputs_of(name)
    classes, loss = torch.arange(ROWS) % CLASSES, loss_of(name)
    torch.testing.assert_close(loss(logits, one_hot(classes)), loss(logits, classes))
    torch.manual_seed(1)
    soft = torch.rand(ROWS, CLASSES).softmax(dim=1)
    assert loss(logits, soft).shape == (ROWS,)
    if not is_of_batch(name):
        each_class = torch.stack([loss(logits, torch.full((ROWS,), k)) for k in range(CLASSES)], dim=1)
        torch.testing.assert_close(loss(logits, soft), (soft * each_class).sum(dim=1))


@each_form
def test_loss_falls_towards_the_target(name: str, form: str) -> None:
    logits, step = outputs_of(name, form)
    loss, target = loss_of(name, form=form), targets_of(form, logits)
    if form == "numbers":
        better = torch.lerp(logits, target, 0.5)
    else:
        better = logits + (step * one_hot(target) if form == "classes" else 4 * target - 2)
    fallen = loss(better, target) - loss(logits, target)
    if form in MAPS:
        assert fallen[-1] == 0
        fallen = fallen[:-1]
    assert fallen.mean() < 0 if is_of_batch(name) else (fallen < 0).all()


@each_form
def test_void_pixels_count_nowhere(name: str, form: str) -> None:
    if form not in MAPS:
        pytest.skip("has no pixels")
    logits, _ = outputs_of(name, form)
    loss, target = loss_of(name, form=form), targets_of(form, logits)
    void = target < 0
    other = torch.where(void, 7 * torch.randn_like(logits), logits)
    torch.testing.assert_close(loss(logits, target), loss(other, target))
    loss(logits, target).sum().backward()
    assert (logits.grad[void] == 0).all()
    everywhere = torch.full_like(target, -1)
    assert (loss(logits, everywhere) == 0).all()
    for empty in (torch.zeros_like(target), torch.where(void, -1, torch.zeros_like(target))):
        empty[:, 0] = torch.where(empty[:, 0] < 0, -1, 1) if form == "class_masks" else empty[:, 0]
        assert torch.isfinite(torch.autograd.grad(loss(logits, empty).sum(), logits)[0]).all()


@each_form
def test_loss_of_a_new_model_is_the_declared_one(name: str, form: str) -> None:
    part = registry.find("losses", name)
    initial = part.load().facts.get("initial")
    if initial is None:
        pytest.skip("declares none")
    torch.manual_seed(0)
    for columns in (2, 10):
        size = (20, 20) if form in MAPS else ()
        logits = torch.zeros(20_000 if form == "numbers" else 3, columns, *size)
        rows = slice(2 if size else None)  # of maps the last row is void
        value = loss_of(name, columns, form)(logits[rows], targets_of(form, logits)[rows]).mean()
        assert initial(columns) == pytest.approx(float(value), rel=1e-5 if form in ("classes", "class_masks") else 0.02)


@each_form
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_loss_is_finite_in_half_precision_and_at_extreme_logits(name: str, form: str, half: torch.dtype) -> None:
    for height in (200, -200, 0):
        logits = torch.eye(ROWS, CLASSES, dtype=half) * height
        if form in MAPS:
            logits = logits[:, :, None, None].expand(-1, -1, HEIGHT, WIDTH).contiguous()
        logits.requires_grad_()
        with torch.autocast("cpu", dtype=half):
            values = loss_of(name, form=form)(logits, targets_of(form, logits))
        values.sum().backward()
        assert values.dtype == torch.float32
        assert torch.isfinite(values).all()
        assert torch.isfinite(logits.grad).all()


@each("losses")
def test_loss_names_its_facts_rightly(name: str) -> None:
    part = registry.parts("losses")[name]
    assert set(part.facts["takes"]) <= {*FORMS, *MAPS}
    assert part.facts.get("calls", {}).keys() <= part.arguments.keys()
    positional = [p for p in inspect.signature(part.load()).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    assert len(positional) == 2 + sum(bool(part.facts.get(fact)) for fact in ("lengths", "counts", "memory"))


# --- pools and heads ----------------------------------------------------------------------------------------------


@each("pools")
def test_pool_gives_its_features_with_gradients(name: str) -> None:
    torch.manual_seed(0)
    pool = registry.build("pools", name)(8)
    for size in ((1, 1), (3, 5), (7, 7)):
        maps = torch.rand(2, 8, *size, requires_grad=True)
        vectors = pool(maps)
        assert vectors.shape == (2, pool.features)
        vectors.square().sum().backward()
        assert torch.isfinite(maps.grad).all()
        assert (maps.grad.flatten(2).abs().sum(dim=2) > 0).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in pool.parameters())


@each("pools")
def test_pool_is_the_same_in_channels_last_and_near_in_half_precision(name: str) -> None:
    torch.manual_seed(0)
    pool = registry.build("pools", name)(8).eval()
    maps = torch.rand(2, 8, 5, 5)
    expected = pool(maps)
    torch.testing.assert_close(pool(maps.contiguous(memory_format=torch.channels_last)), expected)
    for half in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=half):
            given = maps.to(half).requires_grad_()
            found = pool(given).float()
            torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
        found.sum().backward()
        assert given.grad.dtype == half
        assert torch.isfinite(given.grad).all()
        assert (given.grad.float().flatten(2).abs().sum(dim=2) > 0).all()


@each("pools")
def test_pool_takes_dead_maps(name: str) -> None:
    pool = registry.build("pools", name)(3)
    maps = torch.zeros(2, 3, 4, 4, requires_grad=True)
    vectors = pool(maps)
    vectors.sum().backward()
    assert vectors.detach().abs().max() < 1e-3
    assert torch.isfinite(maps.grad).all()


@each("heads")
def test_head_gives_outputs_with_gradients_to_every_weight(name: str) -> None:
    torch.manual_seed(0)
    head = registry.build("heads", name)(16, CLASSES)
    vectors = torch.randn(ROWS, 16, requires_grad=True)
    outputs = head(vectors)
    assert outputs.shape == (ROWS, CLASSES)
    outputs.square().sum().backward()
    learned = [parameter for parameter in head.parameters() if parameter.requires_grad]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learned)
    assert vectors.grad.abs().sum() > 0


@each("heads")
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_head_predicts_without_chance_and_near_in_half_precision(name: str, half: torch.dtype) -> None:
    torch.manual_seed(0)
    head = registry.build("heads", name)(16, CLASSES).eval()
    vectors = torch.randn(ROWS, 16)
    expected = head(vectors)
    assert expected.dtype == torch.float32
    assert torch.equal(head(vectors), expected)
    with torch.autocast("cpu", dtype=half):
        for given in (vectors, vectors.to(half)):
            torch.testing.assert_close(head(given).float(), expected, rtol=0.05, atol=0.05)


# --- batches and rows ---------------------------------------------------------------------------------------------


@each("mixes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mix_keeps_shapes_label_sums_and_its_inputs(name: str, dtype: torch.dtype) -> None:
    mix = registry.build("mixes", name)
    torch.manual_seed(0)
    images, targets = torch.rand(ROWS, 3, 8, 6).to(dtype), one_hot(torch.arange(ROWS) % CLASSES)
    before = images.clone(), targets.clone()
    for seed in range(5):
        mixed, labels = mix(images, targets, np.random.default_rng(seed))
        assert (mixed.shape, mixed.dtype, labels.shape) == (images.shape, dtype, targets.shape)
        torch.testing.assert_close(labels.sum(dim=1), torch.ones(ROWS))
        assert labels.min() >= 0
        again = mix(images, targets, np.random.default_rng(seed))
        assert torch.equal(again[0], mixed)
        assert torch.equal(again[1], labels)
    assert torch.equal(images, before[0])
    assert torch.equal(targets, before[1])
    soft = registry.facts("mixes", name).get("soft", False)
    assert soft == bool(((labels > 0) & (labels < 1)).any())


@each("samplers")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("soft", [False, True])
def test_sampler_gives_rows_that_exist_from_its_generator_alone(name: str, form: str, soft: bool) -> None:
    if form not in registry.facts("samplers", name).get("takes", FORMS):
        pytest.skip("takes no such targets")
    sampler = registry.build("samplers", name)
    classes = np.array([0] * 20 + [1] * 5 + [3] * 2)
    dense = np.eye(CLASSES, dtype=np.float32)[classes]
    targets = {"classes": dense * 0.9 if soft else classes, "labels": dense * (0.9 if soft else 1), "numbers": dense}
    weighs = registry.facts("samplers", name).get("weighs")
    given = [targets[form], *([np.linspace(0.5, 1.5, len(classes), dtype=np.float32)] if weighs else [])]
    rows = sampler(*given, np.random.default_rng(0))
    assert rows.dtype == np.int64
    assert rows.ndim == 1
    assert len(rows) >= len(classes), "batches are cut for as many rows as there are"
    assert set(rows.tolist()) <= set(range(len(classes)))
    assert np.array_equal(rows, sampler(*given, np.random.default_rng(0)))
    assert not np.array_equal(rows, sampler(*given, np.random.default_rng(1)))


# --- optimization -------------------------------------------------------------------------------------------------


RATES = (0.02, 1.0, 20.0)  # optimizers differ in the learning rates they want


def descend(optimizer: torch.optim.Optimizer, model: torch.nn.Module, steps: int, half: bool = False) -> float:
    inputs = torch.linspace(-1, 1, 24).reshape(8, 3)
    for _ in range(steps):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            outputs = model(inputs)
        loss = (outputs.float() - inputs.sum(dim=1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def small_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))


@each("optims")
@pytest.mark.parametrize("half", [False, True])
def test_optimizer_descends(name: str, half: bool) -> None:
    build = registry.build("optims", name)
    ends = []
    for rate in RATES:
        model = small_model()
        optimizer = build(model.parameters(), rate)
        first = descend(optimizer, model, 1, half)
        ends.append(descend(optimizer, model, 60, half) / first)
        assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert min(ends) < 0.3, f"at none of the learning rates {RATES}: {ends}"


@each("optims")
def test_optimizer_takes_groups_and_rates_that_change(name: str) -> None:
    build = registry.build("optims", name)
    model = small_model()
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": list(model[1:].parameters())}]
    optimizer = build(groups, 0.1)
    rates = {tensor: group["lr"] for group in optimizer.param_groups for tensor in group["params"]}
    assert rates == {**dict.fromkeys(model[0].parameters(), 0.5), **dict.fromkeys(model[1:].parameters(), 0.1)}
    descend(optimizer, model, 2)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [tensor.detach().clone() for tensor in model.parameters()]
    descend(optimizer, model, 1)  # not two: what looks ahead or averages may still move by earlier steps
    moved = [not torch.equal(old, now) for old, now in zip(before, model.parameters(), strict=True)]
    assert not any(moved) or registry.facts("optims", name).get("average"), "the rate of its groups is not what it uses"


@each("optims")
def test_optimizer_spares_biases_and_norms_where_it_is_asked_to(name: str) -> None:
    if "spare" not in registry.parts("optims")[name].arguments:
        pytest.skip("knows no weight decay of its own")
    model = small_model()
    optimizer = registry.build("optims", f"{name}(weight_decay=0.3, spare=true)")(model.parameters(), 0.1)
    decay = {tensor: group["weight_decay"] for group in optimizer.param_groups for tensor in group["params"]}
    assert decay == {tensor: 0.3 if tensor.ndim > 1 else 0.0 for tensor in model.parameters()}
    whole = registry.build("optims", f"{name}(weight_decay=0.3, spare=false)")(model.parameters(), 0.1)
    assert [(len(group["params"]), group["weight_decay"]) for group in whole.param_groups] == [(6, 0.3)]


@each("optims")
def test_optimizer_passes_over_weights_without_gradients(name: str) -> None:
    model = small_model()
    optimizer = registry.build("optims", name)(model.parameters(), 0.02)
    before = model[0].weight.detach().clone()
    model[0].weight.requires_grad_(False)
    descend(optimizer, model, 6)
    assert torch.equal(model[0].weight, before)
    assert all(torch.isfinite(tensor).all() for tensor in model.parameters())


@each("optims")
def test_optimizer_resumes_exactly(name: str, tmp_path) -> None:
    build = registry.build("optims", name)
    model, other = small_model(), small_model()
    whole, first = build(model.parameters(), 0.02), build(other.parameters(), 0.02)
    descend(whole, model, 8)
    descend(first, other, 3)
    torch.save(first.state_dict(), tmp_path / "optimizer.pt")
    second = build(other.parameters(), 0.02)
    second.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    descend(second, other, 5)
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)


@each("optims")
def test_optimizer_resumes_exactly_within_fabric(name: str, tmp_path) -> None:
    """As fit has it: Fabric wraps the optimizer, and each step sets the rate in the wrapper's groups."""
    fabric = Fabric(accelerator="cpu", devices=1)

    ends = []
    for resumes in (False, True):
        model = small_model()
        optimizer = fabric.setup(model, registry.build("optims", name)(model.parameters(), 0.02))[1]
        for options in optimizer.param_groups:
            options["initial_lr"] = options["lr"]
        for step in range(8):
            if resumes and step == 3:
                torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "last.pt")
                model = small_model()
                optimizer = fabric.setup(model, registry.build("optims", name)(model.parameters(), 0.02))[1]
                weights, state = torch.load(tmp_path / "last.pt", weights_only=True)
                model.load_state_dict(weights)
                optimizer.load_state_dict(state)
            for options in optimizer.param_groups:
                options["lr"] = options["initial_lr"] * (1 - step / 8)
            descend(optimizer, model, 1)
        ends.append(list(model.parameters()))
    assert all(torch.equal(left, right) for left, right in zip(*ends, strict=True))


@each("schedules")
@pytest.mark.parametrize("total", [1, 2, 3, 10, 997])
def test_schedule_is_finite_and_never_negative(name: str, total: int) -> None:
    schedule = registry.build("schedules", name)
    factors = np.array([schedule(step, total) for step in range(total + 2)])
    assert np.isfinite(factors).all()
    assert factors.min() >= 0
    assert 0 < factors[:total].max() <= 1
    assert factors[total:].max() <= factors[total - 1] + 1e-6  # noise may take the last one below the end


@each("schedules")
def test_schedule_is_warmed_up_and_held(name: str) -> None:
    known = registry.parts("schedules")[name].arguments.keys() & {"warmup", "hold"}
    schedule = registry.build("schedules", name)
    shares = {"warmup": 0.1, "hold": 0.2}
    factors = [schedule(step, 100, **{key: shares[key] for key in known}) for step in range(100)]
    risen = int(np.argmax(factors)) + 1
    assert np.all(np.diff(factors[:risen]) > 0)
    if "warmup" in known:
        assert factors[:10] == pytest.approx(np.arange(1, 11) / 10)
    if "hold" in known:
        assert factors[risen : risen + 20] == [1.0] * 20
    for call in ({"warmup": 1.0}, {"warmup": 0.7, "hold": 0.7}, {"hold": 1.0}):
        if call.keys() <= known:
            assert np.isfinite([schedule(step, 10, **call) for step in range(12)]).all()


@each("averages")
def test_average_follows_a_model_and_resumes_exactly(name: str, tmp_path) -> None:
    build = registry.build("averages", name)
    model = small_model()
    average = build(model, 8)
    assert isinstance(average.active, bool)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        descend(optimizer, model, 1)
        average.update(model, step)
    torch.save(average.state_dict(), tmp_path / "average.pt")
    resumed = build(small_model(), 8)
    resumed.load_state_dict(torch.load(tmp_path / "average.pt", weights_only=True))
    for step in range(4, 8):
        descend(optimizer, model, 1)
        average.update(model, step)
        resumed.update(model, step)
    ends = []
    for one in (average, resumed):
        target = small_model() if average.active else model
        one.apply_to(target)
        ends.append({key: value.clone() for key, value in target.state_dict().items()})
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert average.active or all(torch.equal(ends[0][key], value) for key, value in model.state_dict().items())


@each("averages")
def test_average_of_a_training_in_half_precision_keeps_whole_weights(name: str) -> None:
    model = small_model()
    average = registry.build("averages", name)(model, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(8):
        descend(optimizer, model, 1, half=True)
        average.update(model, step)
    target = copy.deepcopy(model)
    average.apply_to(target)
    assert {tensor.dtype for tensor in target.parameters()} == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(target.eval()(torch.ones(2, 3))).all()
    kept = [value for value in average.state_dict().get("weights", {}).values() if value.is_floating_point()]
    assert all(value.dtype == torch.float32 for value in kept)


@each("averages")
def test_average_finishes_with_statistics_of_its_own_or_touches_nothing(name: str) -> None:
    average = registry.build("averages", name)(small_model(), 3)
    average.update(small_model(), 2)  # the last step
    recomputes = getattr(average, "recompute", False)
    seen = []
    images = (seen.append(size) or torch.randn(size, 3) for size in (4, 8))
    target = small_model()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    average.finish(target, images)
    assert seen == ([4, 8] if recomputes else [])
    changed = {key for key, value in target.state_dict().items() if not torch.equal(value, before[key])}
    statistics = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert changed == (statistics if recomputes else set())


# --- images -------------------------------------------------------------------------------------------------------


@each("views")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_view_keeps_the_batch_and_can_be_undone(name: str, dtype: torch.dtype) -> None:
    assert registry.facts("views", name)["symmetry"] in SYMMETRIES
    views = expand([name])
    assert len({view.name for view in views}) == len(views) > 0
    torch.manual_seed(0)
    batch = torch.rand(2, 3, 8, 8).to(dtype)
    for view in views:
        seen = view.apply(batch)
        assert (seen.shape, seen.dtype) == (batch.shape, dtype)
        assert torch.isfinite(seen).all()
        if view.undo:  # a shift loses an edge of one pixel by default
            assert torch.equal(view.undo(seen)[..., 1:-1, 1:-1], batch[..., 1:-1, 1:-1])
        else:
            assert not set(MAPS) & set(registry.facts("views", name)["takes"]), "maps must be undone"
        same = view.apply(batch.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(same, seen, msg=f"{view.name} in channels_last")


@each("merges")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_merge_keeps_the_form(name: str, form: Form) -> None:
    if form.name not in registry.parts("merges")[name].facts.get("takes", FORMS):
        pytest.skip("takes no such values")
    merge = registry.build("merges", name)
    values = np.random.default_rng(0).dirichlet(np.ones(CLASSES), (3, ROWS)).astype(np.float32)
    merged = merge(values, form)
    assert (merged.shape, merged.dtype) == ((ROWS, CLASSES), np.float32)
    assert merged.min() >= 0
    assert merged.max() <= 1
    if form.simplex:
        np.testing.assert_allclose(merged.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(merge(values[::-1], form), merged, atol=1e-6)
    np.testing.assert_allclose(merge(values[:1], form), values[0], atol=1e-5)
    certain = np.stack([np.eye(CLASSES, dtype=np.float32)] * 2)
    np.testing.assert_allclose(merge(certain, form), np.eye(CLASSES), atol=1e-5)


@each("augments")
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_augment_keeps_the_image_and_is_decided_by_its_seed(name: str, channels: int) -> None:
    assert registry.facts("augments", name)["symmetry"] in SYMMETRIES
    transforms = registry.build("augments", name)(24)
    one, other = augmenter(transforms), augmenter(transforms)
    image = np.random.default_rng(0).integers(0, 256, (24, 24, channels), dtype=np.uint8)
    image.setflags(write=False)  # as a memory-mapped cache is
    results = [one(image, seed) for seed in range(12)]
    assert all((result.shape, result.dtype) == (image.shape, np.uint8) for result in results)
    backwards = [other(image, seed) for seed in reversed(range(12))][::-1]
    assert all(np.array_equal(left, right) for left, right in zip(results, backwards, strict=True))
    changed = sum(not np.array_equal(result, image) for result in results)
    assert (changed > 2) == bool(transforms)


@each("augments")
def test_augment_moves_planes_as_the_image_or_says_that_it_takes_none(name: str) -> None:
    run = augmenter(registry.build("augments", name)(24))
    image, planes = np.zeros((24, 24, 3), dtype=np.uint8), np.full((24, 24, 2), 255, dtype=np.uint8)
    image[2:12, 3:9] = planes[2:12, 3:9] = 254
    planes[..., 1:][planes[..., 1:] == 255] = 0
    if "takes" in registry.facts("augments", name):
        assert not set(MAPS) & set(registry.facts("augments", name)["takes"])
        with pytest.raises(TypeError, match="mask"):
            run(image, 0, planes)
        return
    for seed in range(6):
        made, moved = run(image, seed, planes)
        assert (made.shape, moved.shape, moved.dtype) == (image.shape, planes.shape, np.uint8)
        assert set(np.unique(moved)) <= {0, 254, 255}
        bright = made.mean(axis=2) > 127
        if bright.any() and name not in HIDES:
            assert (bright == (moved[..., 1] == 254)).mean() > 0.9, "the mask lies on its object"


HIDES = {"cutout", "erasing", "medium", "heavy", "noise", "blur", "colour"}  # what they change is no place


# --- maps become answers ------------------------------------------------------------------------------------------


def maps(height: int, width: int, simplex: bool) -> np.ndarray:
    """(3, height, width) float32 in 0…1; summing to one where simplex."""
    values = np.random.default_rng(0).random((3, height, width), dtype=np.float32)
    return values / values.sum(axis=0) if simplex else values


@each("cuts")
def test_cut_answers_in_its_form_whatever_the_map(name: str) -> None:
    (form,) = registry.facts("cuts", name)["takes"]
    assert form in MAPS
    cut = registry.build("cuts", name)()
    for height, width in ((1, 1), (1, 9), (17, 12)):
        values = maps(height, width, MAPS[form].simplex)
        for given in (values, np.zeros_like(values), np.ones_like(values), np.asfortranarray(values)):
            given.setflags(write=False)
            answer = cut(given)
            assert answer.shape == (values.shape if form == "masks" else values.shape[1:])
            assert answer.dtype == (np.int32 if form == "objects" else np.uint8)
            assert np.array_equal(answer, cut(given))
            there = set(np.unique(answer).tolist())
            assert there <= ({0, 1} if form == "masks" else {0, 1, 2} if form == "class_masks" else set(range(10**4)))
            assert form != "objects" or there | {0} == set(range(answer.max() + 1)), "objects are numbered without gaps"


@each("cuts")
def test_cut_declares_a_search_that_binds(name: str) -> None:
    part = registry.find("cuts", name)
    values = maps(12, 12, MAPS[part.facts["takes"][0]].simplex)
    for key, candidates in part.facts["search"].items():
        assert part.arguments[key] in candidates, "the default is among the candidates"
        assert len(set(candidates)) == len(candidates)
        for candidate in candidates:
            registry.build("cuts", f"{name}({key}={candidate})")()(values)
    for key, first in part.facts.get("each", {}).items():
        assert key in part.facts["search"]
        alike = [part.arguments[key]] * (3 - first)
        built = registry.build("cuts", f"{name}({key}={alike})")()
        assert np.array_equal(built(values), registry.build("cuts", name)()(values))


# --- searches -----------------------------------------------------------------------------------------------------


def a_search(alone: bool, rows: int = 120, queries: int = 5) -> Search:
    """Points of length 1 around four directions in turn; two are copies."""
    generator = np.random.default_rng(0)
    centres = np.eye(CLASSES, 8)
    gallery = unit(centres[np.arange(rows) % CLASSES] + 0.3 * generator.normal(size=(rows, 8)))
    gallery[rows // 2] = gallery[0]
    asked = unit(centres[np.arange(queries) % CLASSES] + 0.3 * generator.normal(size=(queries, 8)))
    return Search(gallery, gallery, True) if alone else Search(asked, gallery)


@each("rerankings")
@pytest.mark.parametrize("alone", [False, True], ids=["gallery", "pool"])
def test_reranking_gives_a_search_that_still_finds_the_right_direction(name: str, alone: bool) -> None:
    rerank, facts = registry.build("rerankings", name), registry.facts("rerankings", name)
    for rows in (2, 120):
        given = a_search(alone, rows, 40)
        given.queries.setflags(write=False)
        given.gallery.setflags(write=False)
        found = rerank(given)
        assert (found.scores is not None) == (facts["gives"] == "scores")
        assert (found.queries.shape, found.gallery.shape) == (given.queries.shape, given.gallery.shape)
        assert (found.queries.dtype, found.gallery.dtype) == (np.float32, np.float32)
        np.testing.assert_allclose(np.linalg.norm(found.queries, axis=1), 1, atol=1e-5)
        similarities, places = found.nearest(3)
        assert places.shape == (len(given.queries), min(3, rows - alone))
        assert np.isfinite(similarities).all()
        assert (np.diff(similarities, axis=1) <= 0).all()
        assert not alone or (places != np.arange(rows)[:, None]).all()
    assert (places[:, 0] % CLASSES == np.arange(len(places)) % CLASSES).mean() > 0.7
    np.testing.assert_allclose(found.similarities(2, 5), found.similarities(0, 5)[2:], atol=1e-6)


@each("rerankings")
def test_reranking_declares_a_search_that_binds(name: str) -> None:
    part, given = registry.find("rerankings", name), a_search(alone=False)
    assert part.facts["gives"] in ("points", "scores")
    for key, candidates in part.facts["search"].items():
        assert part.arguments[key] in candidates, "the default is among the candidates"
        assert len(set(candidates)) == len(candidates)
        for candidate in candidates:
            assert np.isfinite(registry.build("rerankings", f"{name}({key}={candidate})")(given).nearest(2)[0]).all()


# --- scores and folds ---------------------------------------------------------------------------------------------


def truth_and_answers(form: str, wants: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, a right and a wrong answer to it, as a metric that takes this form and wants this is given them."""
    truth = np.repeat(np.arange(8), 5)
    right = np.eye(8)[truth] * 0.9 + 0.0125
    wrong = np.roll(right, 1, axis=0)[::-1]
    if form == "numbers":
        return (10.0 * truth[:, None], *(10.0 * values.argmax(axis=1)[:, None] for values in (right, wrong)))
    if form == "labels":
        truth = np.eye(8, dtype=np.float32)[truth]
        return (truth, right, wrong) if wants == "probability" else (truth, right.round(), wrong.round())
    return (truth, right, wrong) if wants == "probability" else (truth, right.argmax(axis=1), wrong.argmax(axis=1))


def images_and_answers(form: str) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Truth of three images of their own sizes, right and wrong answers to it; the second shows nothing."""
    truth = []
    for seed, (height, width) in enumerate([(8, 6), (5, 9), (12, 12)]):
        classes = np.random.default_rng(seed).integers(CLASSES, size=(height // 2 + 1, width // 2 + 1))
        pixels = classes.repeat(2, axis=0).repeat(2, axis=1)[:height, :width] * (seed != 1)
        dtype = {"objects": np.int32}.get(form, np.uint8)
        truth.append((pixels == np.arange(CLASSES)[:, None, None] if form == "masks" else pixels).astype(dtype))
    wrong = [1 - one if form == "masks" else (one + 1) % CLASSES for one in truth]
    if form == "objects":
        wrong = [np.ones_like(one) for one in truth]
    return truth, [one.copy() for one in truth], wrong


def lists_and_answers() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many each of 40 queries could find, ranked lists that find them at once, and others that find none."""
    truth = np.repeat([1, 2, 3, 4], 10)
    right = (np.arange(9) <= truth[:, None]).astype(np.int8)
    right[:, 0] = -1
    return truth, right, np.zeros_like(right)


def given_to_metrics(form: str, wants: str) -> tuple:
    """Truth, a right and a wrong answer of a form."""
    if form == RANKS:
        return lists_and_answers()
    return images_and_answers(form) if form in MAPS else truth_and_answers(form, wants)


def score_of(name: str, truth: list[np.ndarray] | np.ndarray, answer: list[np.ndarray] | np.ndarray) -> float:
    """What a metric says of rows, or of images one by one."""
    metric, facts = registry.build("metrics", name), registry.facts("metrics", name)
    if not isinstance(truth, list):
        value = metric(truth, answer)
        assert np.shape(value) == ((len(truth),) if facts.get("rowwise") else ())
        return float(np.mean(value))
    found = [metric(one, other, CLASSES) for one, other in zip(truth, answer, strict=True)]
    assert all(one.dtype == np.float64 for one in found)
    assert all(one.shape == (2, CLASSES) if facts.get("pooled") else one.ndim == 1 for one in found)
    return score(found, facts.get("pooled", False))


@each("metrics")
def test_metric_prefers_the_truth(name: str) -> None:
    facts = registry.facts("metrics", name)
    assert isinstance(facts["greater"], bool)
    assert facts["wants"] in ("decision", "probability")
    assert facts["takes"], "declare the forms it takes"
    assert set(facts["takes"]) <= {*FORMS, *MAPS, RANKS}
    for form in facts["takes"]:
        given = given_to_metrics(form, facts["wants"])
        good, bad = (score_of(name, given[0], answer) for answer in given[1:])
        assert np.isfinite([good, bad]).all()
        assert (good > bad) == facts["greater"]


@each("metrics")
def test_metric_of_one_row_and_of_one_class_is_finite(name: str) -> None:
    facts = registry.facts("metrics", name)
    for form in facts["takes"]:
        given = given_to_metrics(form, facts["wants"])
        for rows in (slice(1), slice(1, 2), slice(5), slice(2 if form in MAPS else 35, None)):
            truth, right, wrong = (table[rows] for table in given)
            assert np.isfinite([score_of(name, truth, answer) for answer in (right, wrong)]).all()


@each("metrics")
def test_metric_of_images_counts_no_void(name: str) -> None:
    facts = registry.facts("metrics", name)
    for form in facts["takes"]:
        if form not in MAPS:
            continue
        truth, right, wrong = images_and_answers(form)
        for one, answer, other in zip(truth, right, wrong, strict=True):
            if form == "objects":
                one[3:], other[:3] = -1, answer[:3]
            else:
                one[..., 3:, :], other[..., :3, :] = 255, answer[..., :3, :]
        assert score_of(name, truth, wrong) == score_of(name, truth, right)


def target_and_column(form: str, column: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    """A target of this form and the text of the column that a split declares, 60 rows."""
    rows = np.arange(60)
    columns = {
        "group": np.array([f"g{row // 2}" for row in rows]),
        "order": (rows // 2).astype(np.str_),
        "holdout": (rows % 3 == 0).astype(np.str_),
    }
    targets = {
        "classes": np.array([f"c{row % 6}" for row in rows]),
        "labels": np.stack([rows % 2, rows % 3 == 0], axis=1).astype(np.int64),
        "numbers": rows[:, None] / 7,
    }
    return targets[form], columns[column] if column else None


@each("splits")
def test_split_deals_every_row_by_its_seed(name: str) -> None:
    facts = registry.facts("splits", name)
    assert facts["takes"], "declare the forms of target that it balances"
    if facts.get("given"):
        pytest.skip("reads the folds that are there")
    split = registry.build("splits", name)
    for form in facts["takes"]:
        target, column = target_and_column(form, facts.get("column"))
        folds = split(target, column, 4, 0)
        assert (folds.shape, folds.dtype) == ((60,), np.int64)
        there = set(folds.tolist()) - {-1}
        assert there == set(range(len(there) if facts.get("own_count") else 4))
        assert np.array_equal(folds, split(target, column, 4, 0))
        by_seed = not facts.get("own_count") and not facts.get("past_only")
        assert np.array_equal(folds, split(target, column, 4, 1)) != by_seed
        if facts.get("column") == "group":
            assert all(len(set(folds[column == one])) == 1 for one in set(column))
