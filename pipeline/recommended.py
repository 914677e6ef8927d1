"""Search spaces by name: what to tune for how many trials, with its usual range; and an augmentation policy. No torch.

The order is that of practice: the learning rate decides most and is tuned alone until there are ten trials; each
further key wants about five more. Ranges are usual ones, widened to hold what the config says now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline import registry
from pipeline.symmetry import SYMMETRIES

if TYPE_CHECKING:
    from pipeline.config import Config

ADAM = ("adam", "nadam", "radam", "adamw", "rmsprop", "lamb")
DECOUPLED = ("adamw", "lamb", "lion", "muon", "schedule_free")  # their weight decay is not divided by anything
RATES = {**dict.fromkeys(ADAM, (1e-3, 1e-2)), "sgd": (1e-3, 1e-1)}  # from random weights; others: around their own
FINE = (100, 10)  # the ends of the range are divided by these where weights are pretrained
LOSSES = {
    "cross_entropy": ("smoothing", "uniform(0, 0.2)"),
    "bce": ("smoothing", "uniform(0, 0.1)"),
    "focal": ("gamma", "uniform(0.5, 4)"),
    "focal_labels": ("gamma", "uniform(0.5, 4)"),
    "poly1": ("epsilon", "uniform(-1, 4)"),
    "arcface": ("m", "uniform(0.1, 0.6)"),
    "cosface": ("m", "uniform(0.1, 0.5)"),
    "huber": ("delta", "log(0.1, 10)"),
}
MAGNITUDES = {
    "light": {"shift": "uniform(0, 0.15)", "rotate": "uniform(0, 30)", "scale": "uniform(0, 0.25)"},
    "medium": {"scale": "uniform(0.3, 1)", "colour": "uniform(0, 0.4)"},
    "heavy": {"scale": "uniform(0.1, 0.8)", "strength": "uniform(0.1, 0.8)"},
    "pad_crop": {"pad": "int(1, 8)"},
    "pad_crop_flips": {"pad": "int(1, 8)"},
    "colour": {"strength": "uniform(0.1, 0.8)"},
    "cutout": {"size": "uniform(0.1, 0.5)"},
    "rand_augment": {"number": "int(1, 3)", "magnitude": "int(1, 15)"},
    "trivial_augment": {"rotate": "uniform(0, 45)"},
    "aug_mix": {"severity": "int(1, 8)"},
}


def notes(config: Config) -> list[str]:
    """The keys for ``tune.trials`` trials, in their order, each where the config's parts have it.

    lr; from 10 trials weight decay; 15 dropout; 20 the backbone's lr beside the head's (pretrained weights); 25 the
    augmentation's magnitudes; 30 the loss's own argument; 40 momentum.
    """
    calls: dict[str, dict[str, str]] = {}
    plain = [f"lr={_rate(config)}"]
    trials = config.tune.trials
    optim, head, loss = (registry.bind(kind, text)[0] for kind, text in (
        ("optims", config.optim), ("heads", config.head), ("losses", config.loss)))  # fmt: skip
    if trials >= 10 and "weight_decay" in optim.arguments:
        decay = "log(1e-3, 0.3)" if optim.name in DECOUPLED else "log(1e-6, 1e-3)"
        calls.setdefault("optim", {})["weight_decay"] = decay
    if trials >= 15 and "dropout" in head.arguments:
        calls["head"] = {"dropout": "uniform(0, 0.5)"}
    if trials >= 20 and (config.pretrained or config.weights) and config.finetune in ("all_alike()", "all_alike"):
        plain.append("finetune=choice(all_alike(), head_faster(factor=log(2, 30)), layer_decay(decay=uniform(0.6, 1)))")
    if trials >= 25:
        name = registry.parse(config.augment).name
        if name == "none":
            plain.append("augment=choice(none(), light(scale=uniform(0, 0.25)), rand_augment(magnitude=int(1, 15)))")
        elif name in MAGNITUDES:
            calls["augment"] = MAGNITUDES[name]
    if trials >= 30 and loss.name in LOSSES:
        calls["loss"] = dict([LOSSES[loss.name]])
    if trials >= 40:
        momentum = {"momentum": "uniform(0.8, 0.99)", "betas": "(uniform(0.8, 0.98), 0.999)"}
        fitting = {name: text for name, text in momentum.items() if name in optim.arguments}
        calls.setdefault("optim", {}).update(dict(list(fitting.items())[:1]))
    return [*plain, *(f"{key}={_with(getattr(config, key), ranges)}" for key, ranges in calls.items() if ranges)]


def policy(config: Config) -> list[str]:
    """An augmentation policy: a move, a change of colours, a part hidden; each a preset with its magnitudes, or none.

    After AutoAugment (Cubuk et al. 2019), which searches operations and magnitudes, over the presets that
    ``parts/augments.py`` names. Flips are among them where the competition's symmetry allows. Short trainings favour
    weak augmentation: give them more of ``tune.coarse_epochs``.
    """
    allowed = SYMMETRIES.index(config.symmetry)
    mirrors = ["nothing", *(["flips()"] if allowed >= 1 else []), *(["d4()"] if allowed >= 2 else [])]
    moves = ["nothing", _preset("light"), "crop(scale=(uniform(0.3, 1), 1.0))",
             f"pad_crop(pad=int(1, {max(2, config.image_size // 8)}))"]  # fmt: skip
    tones = ["nothing", _preset("colour"), _preset("rand_augment"), _preset("trivial_augment"), _preset("aug_mix"),
             "auto_augment(policy=choice('imagenet', 'cifar10'))"]  # fmt: skip
    hidden = ["nothing", "cutout(size=uniform(0.1, 0.5))", "erasing(area=(0.02, uniform(0.05, 0.4)))"]
    steps = [options for options in (mirrors, moves, tones, hidden) if len(options) > 1]
    choices = ", ".join(f"choice({', '.join(options)})" for options in steps)
    return [f"augment=compose(parts=[{choices}])"]


NAMED = {"notes": notes, "policy": policy}


def spelled(text: str, config: Config) -> list[str]:
    """The ``key=range`` texts that a name stands for; any other text as it is."""
    return NAMED[text](config) if text in NAMED else [text]


def _rate(config: Config) -> str:
    """The range of the learning rate: the optimizer's usual one, lower for pretrained weights, around the config's."""
    low, high = RATES.get(registry.parse(config.optim).name, (config.lr / 10, config.lr * 10))
    if registry.parse(config.optim).name in RATES and (config.pretrained or config.weights):
        low, high = low / FINE[0], high / FINE[1]
    return f"log({min(low, config.lr / 3):.3g}, {max(high, config.lr * 3):.3g})"


def _preset(name: str) -> str:
    return f"{name}({', '.join(f'{key}={text}' for key, text in MAGNITUDES[name].items())})"


def _with(call: str, ranges: dict[str, str]) -> str:
    """A call-string with ranges in the place of some arguments."""
    parsed = registry.parse(call)
    kept: dict[str, Any] = {name: repr(value) for name, value in parsed.arguments.items()}
    return f"{parsed.name}({', '.join(f'{name}={text}' for name, text in {**kept, **ranges}.items())})"
