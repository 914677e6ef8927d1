"""Optimizers against the formulas of their papers, step by step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.parts import averages, optims

GRADIENTS = [0.5, -1.0, 0.25, 2.0]
LONG = [0.5, -1.0, 0.25, 2.0, 1.0, -0.5, 0.1, 0.7, -0.2, 1.5, 0.3, 0.9]


def walk(build, gradients=GRADIENTS) -> float:
    """The weight after steps with given gradients, from 1."""
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = build([weight])
    for gradient in gradients:
        weight.grad = torch.tensor([gradient])
        optimizer.step()
    return float(weight.detach())


def drawn(*shape: int, count: int = 4) -> list[np.ndarray]:
    """Weights, and gradients for some steps."""
    generator = np.random.default_rng(0)
    return [generator.normal(size=shape) for _ in range(count + 1)]


def walk_layers(build, layers: list[list[np.ndarray]]) -> list[np.ndarray]:
    """The weights of layers after steps with given gradients; each layer's list begins with its first weights."""
    weights = [torch.nn.Parameter(torch.tensor(layer[0], dtype=torch.float32)) for layer in layers]
    optimizer = build(weights)
    for step in range(1, len(layers[0])):
        for weight, layer in zip(weights, layers, strict=True):
            weight.grad = torch.tensor(layer[step], dtype=torch.float32)
        optimizer.step()
    return [weight.detach().double().numpy() for weight in weights]


def slow_adam(lr: float, decay: float, decoupled: bool) -> float:
    weight, mean, square = 1.0, 0.0, 0.0
    for step, gradient in enumerate(GRADIENTS, start=1):
        if decoupled:
            weight -= lr * decay * weight
        else:
            gradient += decay * weight
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        weight -= lr * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)) ** 0.5 + 1e-8)
    return weight


def slow_sgd(lr: float, momentum: float, nesterov: bool, decay: float) -> float:
    weight, speed = 1.0, 0.0
    for gradient in GRADIENTS:
        gradient += decay * weight
        speed = momentum * speed + gradient
        weight -= lr * (gradient + momentum * speed if nesterov else speed)
    return weight


def test_adam_and_adamw() -> None:
    assert walk(lambda p: optims.adam(p, 0.1)) == pytest.approx(slow_adam(0.1, 0.0, False), rel=1e-5)
    assert walk(lambda p: optims.adam(p, 0.1, weight_decay=0.2)) == pytest.approx(slow_adam(0.1, 0.2, False), rel=1e-5)
    assert walk(lambda p: optims.adamw(p, 0.1)) == pytest.approx(slow_adam(0.1, 0.01, True), rel=1e-5)


def test_sgd() -> None:
    assert walk(lambda p: optims.sgd(p, 0.1)) == pytest.approx(slow_sgd(0.1, 0.9, True, 0.0), rel=1e-5)
    plain = walk(lambda p: optims.sgd(p, 0.1, nesterov=False, weight_decay=0.3))
    assert plain == pytest.approx(slow_sgd(0.1, 0.9, False, 0.3), rel=1e-5)
    assert walk(lambda p: optims.sgd(p, 0.1, momentum=0.0)) == pytest.approx(slow_sgd(0.1, 0.0, False, 0.0), rel=1e-5)


def slow_adagrad(lr: float, decay: float, initial: float) -> float:
    weight, total = 1.0, initial
    for gradient in GRADIENTS:
        gradient += decay * weight
        total += gradient**2
        weight -= lr * gradient / (total**0.5 + 1e-10)
    return weight


def slow_adadelta(lr: float, rho: float, decay: float) -> float:
    weight, square, moved = 1.0, 0.0, 0.0
    for gradient in GRADIENTS:
        gradient += decay * weight
        square = rho * square + (1 - rho) * gradient**2
        move = gradient * ((moved + 1e-6) / (square + 1e-6)) ** 0.5
        moved = rho * moved + (1 - rho) * move**2
        weight -= lr * move
    return weight


def slow_rmsprop(lr: float, alpha: float, momentum: float, centered: bool, decay: float) -> float:
    weight, square, mean, speed = 1.0, 0.0, 0.0, 0.0
    for gradient in GRADIENTS:
        gradient += decay * weight
        square = alpha * square + (1 - alpha) * gradient**2
        mean = alpha * mean + (1 - alpha) * gradient
        speed = momentum * speed + gradient / ((square - mean**2 if centered else square) ** 0.5 + 1e-8)
        weight -= lr * speed
    return weight


def slow_nadam(lr: float, decay: float, decoupled: bool) -> float:
    weight, mean, square, product = 1.0, 0.0, 0.0, 1.0
    for step, gradient in enumerate(GRADIENTS, start=1):
        if decoupled:
            weight *= 1 - lr * decay
        else:
            gradient += decay * weight
        now, later = (0.9 * (1 - 0.5 * 0.96 ** (t * 0.004)) for t in (step, step + 1))
        product *= now
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        ahead = later * mean / (1 - product * later) + (1 - now) * gradient / (1 - product)
        weight -= lr * ahead / ((square / (1 - 0.999**step)) ** 0.5 + 1e-8)
    return weight


def slow_radam(lr: float, decay: float, decoupled: bool, memory: float) -> float:
    weight, mean, square = 1.0, 0.0, 0.0
    longest = 2 / (1 - memory) - 1
    for step, gradient in enumerate(LONG, start=1):
        if decoupled:
            weight *= 1 - lr * decay
        else:
            gradient += decay * weight
        mean, square = 0.9 * mean + 0.1 * gradient, memory * square + (1 - memory) * gradient**2
        length = longest - 2 * step * memory**step / (1 - memory**step)
        scale = 1.0
        if length > 5:
            above, below = (length - 4) * (length - 2) * longest, (longest - 4) * (longest - 2) * length
            scale = math.sqrt(above / below) / math.sqrt(square / (1 - memory**step))
        weight -= lr * scale * mean / (1 - 0.9**step)
    return weight


def slow_lion(lr: float, decay: float) -> float:
    weight, mean = 1.0, 0.0
    for gradient in GRADIENTS:
        direction = math.copysign(1.0, 0.9 * mean + 0.1 * gradient)
        mean = 0.99 * mean + 0.01 * gradient
        weight -= lr * (direction + decay * weight)
    return weight


def slow_lamb(layer: list[np.ndarray], lr: float, decay: float, scaled: bool) -> np.ndarray:
    weight, mean, square = layer[0], 0.0, 0.0
    for step, gradient in enumerate(layer[1:], start=1):
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        move = (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-6) + decay * weight
        ratio = np.sqrt((weight**2).sum()) / np.sqrt((move**2).sum()) if scaled else 1.0
        weight = weight - lr * ratio * move
    return weight


def slow_lars(layer: list[np.ndarray], lr: float, decay: float, trust: float, scaled: bool) -> np.ndarray:
    weight, speed = layer[0], 0.0
    for gradient in layer[1:]:
        sizes = [np.sqrt((values**2).sum()) for values in (weight, gradient)]
        local = trust * sizes[0] / (sizes[1] + decay * sizes[0]) if scaled else 1.0
        speed = 0.9 * speed + local * (gradient + decay * weight)
        weight = weight - lr * speed
    return weight


def test_adagrad_and_adadelta() -> None:
    assert walk(lambda p: optims.adagrad(p, 0.1)) == pytest.approx(slow_adagrad(0.1, 0.0, 0.0), rel=1e-5)
    calm = walk(lambda p: optims.adagrad(p, 0.1, weight_decay=0.2, initial=0.5))
    assert calm == pytest.approx(slow_adagrad(0.1, 0.2, 0.5), rel=1e-5)
    assert walk(lambda p: optims.adadelta(p, 1.0)) == pytest.approx(slow_adadelta(1.0, 0.9, 0.0), rel=1e-5)
    short = walk(lambda p: optims.adadelta(p, 5.0, rho=0.5, weight_decay=0.2))
    assert short == pytest.approx(slow_adadelta(5.0, 0.5, 0.2), rel=1e-5)


def test_adagrad_makes_its_state_where_the_weights_are_at_the_first_step() -> None:
    assert not optims.adagrad([torch.nn.Parameter(torch.ones(2))], 0.1).state


def test_rmsprop() -> None:
    plain = walk(lambda p: optims.rmsprop(p, 0.01))
    assert plain == pytest.approx(slow_rmsprop(0.01, 0.99, 0.0, False, 0.0), rel=1e-5)
    other = walk(lambda p: optims.rmsprop(p, 0.01, alpha=0.9, momentum=0.8, centered=True, weight_decay=0.1))
    assert other == pytest.approx(slow_rmsprop(0.01, 0.9, 0.8, True, 0.1), rel=1e-5)


@pytest.mark.parametrize("decoupled", [False, True])
def test_nadam_and_radam(decoupled: bool) -> None:
    given = {"weight_decay": 0.2, "decoupled": decoupled}
    assert walk(lambda p: optims.nadam(p, 0.1, **given)) == pytest.approx(slow_nadam(0.1, 0.2, decoupled), rel=1e-5)
    for memory in (0.9, 0.999):
        found = walk(lambda p, memory=memory: optims.radam(p, 0.05, betas=(0.9, memory), **given), LONG)
        assert found == pytest.approx(slow_radam(0.05, 0.2, decoupled, memory), rel=1e-4)


def test_lion() -> None:
    assert walk(lambda p: optims.lion(p, 0.01)) == pytest.approx(slow_lion(0.01, 0.1), rel=1e-5)
    assert walk(lambda p: optims.lion(p, 0.01, weight_decay=0.0)) == pytest.approx(slow_lion(0.01, 0.0), rel=1e-5)


@pytest.mark.parametrize("spare", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lamb_and_lars_scale_each_layer(spare: bool, decay: float) -> None:
    layers = [drawn(4, 3), [3 * values for values in drawn(5, 2)], drawn(6)]
    decays = [decay, decay, 0.0 if spare else decay]
    scaled = [True, True, not spare]
    found = walk_layers(lambda p: optims.lamb(p, 0.05, weight_decay=decay, spare=spare), layers)
    for weight, layer, own, scales in zip(found, layers, decays, scaled, strict=True):
        np.testing.assert_allclose(weight, slow_lamb(layer, 0.05, own, scales), rtol=1e-4, atol=1e-5)
    found = walk_layers(lambda p: optims.lars(p, 2.0, weight_decay=decay, trust=0.01, spare=spare), layers)
    for weight, layer, own, scales in zip(found, layers, decays, scaled, strict=True):
        np.testing.assert_allclose(weight, slow_lars(layer, 2.0, own, 0.01, scales), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (6, 2, 3, 3)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_moves_matrices_by_nearly_orthogonal_steps(shape: tuple[int, ...], nesterov: bool) -> None:
    layer = drawn(*shape)
    before, after = (
        walk_layers(lambda p: optims.muon(p, 0.1, weight_decay=0.2, nesterov=nesterov), [layer[:count]])[0]
        for count in (4, 5)
    )
    mean: np.ndarray | float = 0.0
    for gradient in layer[1:]:
        mean = 0.95 * mean + 0.05 * gradient
    ahead = 0.95 * mean + 0.05 * layer[-1] if nesterov else mean
    rows, columns = shape[0], math.prod(shape[1:])
    left, _, right = np.linalg.svd(np.reshape(ahead, (rows, columns)), full_matrices=False)
    step = ((1 - 0.1 * 0.2) * before - after).reshape(rows, columns) / (0.1 * 0.2 * math.sqrt(max(rows, columns)))
    inside = left.T @ step @ right.T  # the identity if the step were exactly the nearest orthogonal matrix
    assert np.all((np.diag(inside) > 0.6) & (np.diag(inside) < 1.4))
    assert np.abs(inside - np.diag(np.diag(inside))).max() < 0.1


def test_muon_leaves_biases_and_thin_weights_to_adamw() -> None:
    layers = [drawn(5), drawn(7, 1), drawn(3, 2)]
    found = walk_layers(lambda p: optims.muon(p, 0.01, weight_decay=0.3, nesterov=False), layers)
    for weight, layer in zip(found, layers, strict=True):
        expected, mean, square = layer[0], 0.0, 0.0
        for step, gradient in enumerate(layer[1:], start=1):
            mean, square = 0.9 * mean + 0.1 * gradient, 0.95 * square + 0.05 * gradient**2
            move = (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.95**step)) + 1e-7)
            expected = expected - 0.01 * 0.3 * expected - 0.01 * move
        np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("place", [0.9, 0.5, 0.0])
def test_schedule_free_with_its_average_is_the_papers_three_sequences(place: float) -> None:
    """Algorithm 1 of the paper with x, y and z all kept."""
    start, *gradients = drawn(3, 2, count=12)
    rates = [0.01, 0.02, *[0.03] * 10]
    x, z, square = start, start, 0.0
    model = torch.nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(start))
    optimizer = optims.schedule_free(model.parameters(), 1.0, weight_decay=0.1, betas=(place, 0.99))
    average = averages.schedule_free(model, beta=place)
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True)):
        y = (1 - place) * z + place * x
        np.testing.assert_allclose(model.weight.detach(), y, rtol=1e-4, atol=1e-5)
        square = 0.99 * square + 0.01 * gradient**2
        z = z - rate * (gradient / (np.sqrt(square / (1 - 0.99 ** (step + 1))) + 1e-8) + 0.1 * y)
        x = x + (z - x) / (step + 1)
        optimizer.param_groups[0]["lr"] = rate
        model.weight.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
        average.update(model, step)
        np.testing.assert_allclose(average.weights["weight"], x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("k", "alpha"), [(1, 0.5), (3, 0.8), (5, 0.5), (2, 0.0), (2, 1.0)])
def test_lookahead(k: int, alpha: float) -> None:
    fast = slow = 1.0
    speed = 0.0
    for step, gradient in enumerate(LONG, start=1):
        speed = 0.9 * speed + gradient
        fast -= 0.1 * (gradient + 0.9 * speed)
        if step % k == 0:
            slow += alpha * (fast - slow)
            fast = slow
    assert walk(lambda p: optims.lookahead(p, 0.1, inner="sgd()", k=k, alpha=alpha), LONG) == pytest.approx(
        fast, rel=1e-5
    )


def test_lookahead_has_its_inner_optimizers_groups_also_after_loading() -> None:
    weight = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = optims.lookahead([weight], 0.1, inner="adamw(weight_decay=0.3)")
    assert optimizer.param_groups[0]["weight_decay"] == 0.3
    assert optimizer.param_groups[0]["fused"] is True
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0] is optimizer.inner.param_groups[0]
    assert optimizer.slow == []
    with pytest.raises(UserError, match="adamv"):
        optims.lookahead([weight], 0.1, inner="adamv()")


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "adagrad"])
def test_fused_kernels_are_used_and_fp16_gradients_can_be_clipped(name: str) -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = getattr(optims, name)([weight], 0.1)
    assert optimizer.param_groups[0]["fused"] is True
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(weight * 3.0).sum().backward()
    scaler.unscale_(optimizer)
    assert float(weight.grad) == pytest.approx(3.0)
    torch.nn.utils.clip_grad_norm_([weight], 0.5)
    scaler.step(optimizer)
    plain = torch.nn.Parameter(torch.tensor([1.0]))
    plain.grad = torch.tensor([0.5])
    getattr(optims, name)([plain], 0.1).step()
    assert float(weight.detach()) == pytest.approx(float(plain.detach()))
    from lightning_fabric.plugins.precision.amp import _optimizer_handles_unscaling

    assert not _optimizer_handles_unscaling(optimizer)
