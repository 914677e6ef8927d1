"""Every registered part, switched on in turn from the command line alone, trains two batches.

The competitions are drawn, one for each form of target, since digits have classes alone.
"""

from __future__ import annotations

import pytest
import small_tasks

from pipeline import registry

KINDS = {
    "losses": "loss", "pools": "pool", "heads": "head", "augments": "augment", "mixes": "mix", "samplers": "sampler",
    "optims": "optim", "schedules": "schedule", "averages": "average", "norms": "norm", "activations": "activation",
    "stems": "stem", "finetunes": "finetune", "preprocesses": "data.preprocess",
    "normalises": "data.normalise", "sizes": "sizes",
    "auxiliaries": "auxiliary", "pairs": "pairs", "consistencies": "consistency", "backbones": "backbone",
}  # fmt: skip
TASKS = {"classes": "multiclass()", "labels": "multilabel()", "numbers": "regression()"}
MASKS = ("masks", "class_masks")
NEEDED = {  # arguments without a default, and partners
    "weighted_cross_entropy": ("loss=weighted_cross_entropy(weights=[1,2,3])",),
    "total": ("loss=total(losses=['cross_entropy()','focal()'],weights=[1,0.5])",),
    "schedule_free": ("optim=schedule_free()", "average=schedule_free()"),
    "snapshots": ("average=snapshots()", "schedule=multicycle_cosine()"),
    "ibn": ("norm=ibn()", "backbone=resnet18", "image_size=64"),
    "small": ("stem=small()", "backbone=resnet18"),
    "jsd": ("loss=jsd()", "augment=several()"),
    "instance": ("norm=instance()", "image_size=64"),
}
CASES = [
    pytest.param(key, part, id=f"{kind}.{name}")
    for kind, key in KINDS.items()
    for name, part in registry.parts(kind).items()
]


@pytest.mark.parametrize(("key", "part"), CASES)
def test_part_trains_two_batches(project, key: str, part: registry.Part) -> None:
    form = part.facts.get("takes", ("classes",))
    if form[0] in MASKS:
        small_tasks.write_masks(project.root, form[0])
    else:
        small_tasks.write(project.root, TASKS["classes" if "classes" in form else form[0]], rows=24)
    words = list(NEEDED.get(part.name, (f"{key}={part.name}()",)))
    if part.facts.get("cosines") and part.kind == "losses":
        words.append("head=cosine()")
    if part.facts.get("lengths") and part.kind == "losses":
        words.append("head=inner_product()")
    size = ("image_size=16", "batch_size=6", "epochs=1")
    ended = project.run("stage=train", "fold=0", "symmetry=d4", *size, *words)
    assert ended.code == 0, ended.err
    assert "fold0 epoch  1  loss" in ended.out
    assert (project.root / "runs/drawn/tiny/fold0/best.ckpt").exists()


PROMISED = {  # what the project says it has, by kind; a part that vanishes or is renamed must vanish here too
    "losses": "cross_entropy weighted_cross_entropy balanced_cross_entropy focal focal_labels ohem bce asymmetric "
    "soft_f_beta lovasz_hinge lovasz_softmax poly1 bi_tempered symmetric_cross_entropy jsd mse mae huber log_cosh "
    "quantile hinge normface sphereface l_softmax cosface arcface margin_by_count adacos adacos_moving total",
    "pairs": "triplet contrastive circle multi_similarity sup_con proxy_anchor center",
    "pools": "avg max dual gem attention fractional_max stripes granularities",
    "pretrainers": "vae denoising masked simsiam simclr",
    "rerankings": "none query_expansion database_augmentation k_reciprocal diffusion",
    "heads": "linear inner_product mlp cosine bnneck per_part multi_sample_dropout drop_connect",
    "auxiliaries": "none middle",
    "consistencies": "none mean_teacher fixmatch softmatch",
    "optims": "sgd adagrad adadelta rmsprop adam adamw nadam radam lamb lars lion muon schedule_free sam lookahead",
}


@pytest.mark.parametrize("kind", PROMISED)
def test_no_promised_part_is_forgotten(kind: str) -> None:
    assert not set(PROMISED[kind].split()) - registry.parts(kind).keys()
