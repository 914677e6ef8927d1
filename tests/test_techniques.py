"""The techniques of the notes: each can be switched on by a setting, and help lists its part. None is forgotten."""

from __future__ import annotations

import shlex

import pytest

from pipeline import config, registry
from pipeline.errors import UserError

NOTES = {
    # losses
    "cross-entropy": "loss=cross_entropy()",
    "label smoothing": "loss=cross_entropy(smoothing=0.1)",
    "class weights, given": "loss=weighted_cross_entropy(weights=(1.0,2.0))",
    "class weights, inverse frequency": "loss=balanced_cross_entropy(how='inverse')",
    "class weights, effective number": "loss=balanced_cross_entropy(how='effective')",
    "focal, multi-class": "loss=focal(gamma=2.0)",
    "focal, multi-label": "loss=focal_labels()",
    "top-k, OHEM": "loss=ohem(k=0.7)",
    "OHEM on any loss": "loss=ohem(k=0.7,loss='bce()')",
    "binary cross-entropy": "loss=bce()",
    "asymmetric (ASL)": "loss=asymmetric()",
    "soft F-beta": "loss=soft_f_beta(beta=2.0)",
    "F-beta surrogate": "loss=soft_f_beta(beta=2.0,average='batch')",
    "Lovász hinge": "loss=lovasz_hinge()",
    "Lovász softmax": "loss=lovasz_softmax()",
    "poly": "loss=poly1()",
    "bi-tempered": "loss=bi_tempered()",
    "symmetric cross-entropy": "loss=symmetric_cross_entropy()",
    "JSD for AugMix": "loss=jsd()",
    "MSE": "loss=mse()",
    "MAE": "loss=mae()",
    "Huber": "loss=huber(delta=1.0)",
    "log-cosh": "loss=log_cosh()",
    "quantile": "loss=quantile(q=0.9)",
    "hinge": "loss=hinge()",
    "NormFace": "loss=normface(s=16.0)",
    "large-margin (L-Softmax)": "loss=l_softmax() head=inner_product()",
    "SphereFace": "loss=sphereface(s=16.0,m=1.35)",
    "AM-softmax, CosFace": "loss=cosface(s=16.0,m=0.35)",
    "ArcFace": "loss=arcface(s=16.0,m=0.5)",
    "sub-centre ArcFace": "loss=arcface() head=cosine(centres=3)",
    "AdaCos": "loss=adacos()",
    "sums and weights of losses": "loss=total(losses=['bce()','soft_f_beta()'],weights=[1.0,0.5])",
    "L1 penalty": "train.l1=1e-5",
    "L2 penalty": "train.l2=1e-4",
    # images without labels
    "mean teacher": "consistency=mean_teacher(distance='kl')",
    "FixMatch": "consistency=fixmatch(threshold=0.95,ratio=7.0)",
    "SoftMatch": "consistency=softmatch(sigmas=2.0,align=true)",
    # pools and heads
    "average pool": "pool=avg()",
    "max pool": "pool=max()",
    "dual pool": "pool=dual()",
    "dual pool, 1×1 reduction": "pool=dual(reduce=64)",
    "GeM, learned p": "pool=gem(p=3.0)",
    "attention pool": "pool=attention()",
    "fractional max pool": "pool=fractional_max()",
    "dropout": "head=linear(dropout=0.5)",
    "multi-sample dropout": "head=multi_sample_dropout()",
    "drop-connect": "head=drop_connect()",
    "BNNeck": "head=bnneck()",
    "linear head": "head=linear()",
    "cosine head": "head=cosine()",
    "MLP head": "head=mlp(hidden=64)",
    "variance-scaled initialisation": "head=linear(init='scaled')",
    "Xavier initialisation": "head=linear(init='xavier')",
    "MSRA initialisation": "head=linear(init='msra')",
    "auxiliary classifier": "auxiliary=middle()",
    # backbones
    "timm by name": "backbone=resnet50",
    "ViT": "backbone=vit_small_patch16_224",
    "grey or many channels": "data.channels=5",
    "GroupNorm": "norm=group()",
    "LayerNorm": "norm=layer()",
    "InstanceNorm": "norm=instance()",
    "no norm": "norm=none()",
    "frozen BatchNorm": "norm=frozen()",
    "ghost BatchNorm": "norm=ghost(size=32)",
    "IBN-a": "norm=ibn(kind='a')",
    "IBN-b": "norm=ibn(kind='b')",
    "ReLU": "activation=relu()",
    "leaky ReLU": "activation=leaky_relu()",
    "ELU": "activation=elu()",
    "SELU": "activation=selu()",
    "GELU": "activation=gelu()",
    "stochastic depth": "backbone=resnet50(drop_path_rate=0.1)",
    "small-image net": "backbone=small_image(width=32,depth=1)",
    "small stem": "stem=small()",
    # fine-tuning
    "new head, train all": "finetune=all_alike()",
    "frozen backbone until the head stops gaining": "finetune=head_until_still()",
    "head at ten times the rate": "finetune=head_faster(factor=10.0)",
    "layer-wise decay": "finetune=layer_decay(decay=0.75)",
    "the shallow half frozen": "finetune=top(share=0.5)",
    "frozen backbone": "finetune=head_only()",
    # optimizers
    "SGD": "optim=sgd(momentum=0.0,nesterov=False)",
    "momentum": "optim=sgd(momentum=0.9,nesterov=False)",
    "Nesterov": "optim=sgd(nesterov=True)",
    "Adagrad": "optim=adagrad()",
    "Adadelta": "optim=adadelta()",
    "RMSProp": "optim=rmsprop()",
    "Adam": "optim=adam()",
    "AdamW": "optim=adamw()",
    "NAdam": "optim=nadam()",
    "RAdam": "optim=radam()",
    "LAMB": "optim=lamb()",
    "LARS": "optim=lars()",
    "Lion": "optim=lion()",
    "Muon": "optim=muon()",
    "schedule-free": "optim=schedule_free()",
    "SAM": "optim=sam(inner='adamw()')",
    "Lookahead": "optim=lookahead(inner='adamw()')",
    "weight decay that spares biases and norms": "optim=adamw(spare=True)",
    "learning rate scaled linearly": "train.scale_lr=linear",
    "learning rate scaled by the root": "train.scale_lr=sqrt",
    # schedules
    "constant": "schedule=constant()",
    "step at given epochs": "schedule=steps(at=(0.5,0.8))",
    "ladder": "schedule=ladder()",
    "exponential": "schedule=exponential()",
    "polynomial": "schedule=polynomial()",
    "inverse time": "schedule=inverse_time()",
    "linear": "schedule=linear()",
    "cosine": "schedule=cosine()",
    "cosine with restarts": "schedule=cosine_restarts()",
    "multi-cycle": "schedule=multicycle_cosine(cycles=3)",
    "linear cosine": "schedule=linear_cosine()",
    "noisy linear cosine": "schedule=noisy_linear_cosine()",
    "inverse square root": "schedule=inverse_sqrt()",
    "one-cycle": "schedule=one_cycle()",
    "warm-up and hold": "schedule=steps(warmup=0.1,hold=0.1)",
    "ReduceLROnPlateau": "schedule=reduce_on_plateau(patience=4,factor=0.1)",
    "halved when a metric passes a level": "schedule=halve_at(levels=(0.9,))",
    # averages
    "EMA": "average=ema(decay=0.99)",
    "Polyak": "average=polyak()",
    "SWA, BatchNorm recomputed": "average=swa(recompute=True)",
    "snapshot ensemble": "average=snapshots()",
    "greedy soup": "average=greedy_soup()",
    "seeds": "train.seeds=3",
    # augmentation
    "flips": "augment=flips()",
    "random crop": "augment=pad_crop()",
    "centre crop and resize": "augment=centre_crop()",
    "random resized crop": "augment=crop()",
    "cutout": "augment=cutout()",
    "erasing": "augment=erasing()",
    "colour": "augment=colour()",
    "blur": "augment=blur()",
    "noise": "augment=noise()",
    "AutoAugment": "augment=auto_augment()",
    "RandAugment": "augment=rand_augment()",
    "AugMix": "augment=aug_mix()",
    "TrivialAugment": "augment=trivial_augment()",
    "mixup": "mix=mixup(alpha=0.2)",
    "cutmix": "mix=cutmix(alpha=1.0)",
    "their mix": "mix=mix_of(mixes=['mixup()','cutmix()'])",
    "multi-scale training": "sizes=multi_scale()",
    "progressive resizing": "sizes=progressive()",
    "a grid of originals and augmented images": "stage=preview",
    "the backbone's normalisation": "data.normalise=backbone()",
    "the data set's normalisation": "data.normalise=dataset()",
    "normalisation per image": "data.normalise=per_image()",
    "PCA whitening": "data.normalise=pca()",
    "tanh(x/C)": "data.normalise=tanh(c=128.0)",
    "tanh(x/C) of 16 bits": "data.reader=tanh(c=1000.0)",
    "CLAHE": "data.preprocess=clahe()",
    "borders trimmed": "data.preprocess=trim_borders()",
    "Ben Graham's": "data.preprocess=ben_graham()",
    "grey": "data.preprocess=grey()",
    # imbalance
    "class-balanced": "sampler=balanced()",
    "square root": "sampler=square_root()",
    "over-sampling of rare classes": "sampler=over_sample()",
    "P classes × K images": "sampler=identities(p=8,k=4)",
    # the loop
    "clipping by norm": "train.clip_norm=1.0",
    "clipping by value": "train.clip_value=0.5",
    "gradient accumulation": "train.accumulate=4",
    "gradient checkpointing": "train.checkpointing=true",
    "compile": "train.compile=true",
    "trained to the clock": "train.seconds=90",
    # tuning
    "learning-rate range test": "stage=find_lr",
    "batch size by throughput": "stage=find_batch",
    "search by grid": "stage=tune tune.method=grid",
    "search at random": "stage=tune tune.method=random",
    "search by TPE": "stage=tune tune.method=tpe",
    "searched AutoAugment policy": "stage=tune tune.space=policy",
    # other models over the same folds
    "kNN on embeddings": "stage=knn",
    "logistic regression": "stage=features features.classifier=logistic()",
    "linear SVM": "stage=features features.classifier=svm()",
    "LightGBM": "stage=features features.classifier=lightgbm()",
    "frozen backbone features": "stage=features features.descriptors=backbone()",
    "raw pixels": "stage=features features.descriptors=raw_pixels()",
    "colour histograms": "stage=features features.descriptors=colour_histogram()",
    "HOG": "stage=features features.descriptors=hog()",
    "codebook of visual words": "stage=features features.descriptors=visual_words()",
}
# SyncBN needs no key: it comes with several devices, see test_objective.py


def faults(settings: str) -> list[str]:
    """What does not fit: keys and stages that are not there, parts that are none, arguments they do not take."""
    found = []
    for word in shlex.split(settings, posix=False):
        try:
            for key, text in config.parse_arguments([word]).items():
                check(key, config.convert(key, text))
        except UserError as fault:
            found.append(str(fault))
    return found


def check(key: str, value: object) -> None:
    """Raises UserError as a command line with this setting would."""
    from pipeline import backbone_names, stages

    if key == "stage":
        stages.check_name(str(value))
    if key == "backbone":
        backbone_names.check(str(value))
    for item in value if isinstance(value, list) else [value]:
        config._check_value(config.keys()[key], item)


@pytest.mark.parametrize("name", NOTES)
def test_it_can_be_switched_on(name):
    assert faults(NOTES[name]) == []


def test_several_at_once_on_the_digits(project):
    words = ["loss=ohem(k=0.7)", "mix=mixup(alpha=0.2)", "average=ema(decay=0.99)"]
    words += ["schedule=multicycle_cosine(cycles=3)", "stage=train", "fold=0", "run=try1"]
    found = config.compose(config.parse_arguments(words))
    assert (found.competition, found.loss, found.mix) == ("digits", "ohem(k=0.7)", "mixup(alpha=0.2)")


def test_a_wrong_argument_fails_before_any_work(project):
    answer = project.run("stage=train", "fold=0", "loss=focal(gama=2)")
    assert answer.code == 2
    assert "focal has no argument 'gama'" in answer.err
    assert "did you mean gamma?" in answer.err
    assert sorted(path.name for path in project.root.iterdir()) == ["configs"]


def test_help_lists_every_part_with_a_sentence_and_its_source(project):
    shown = project.run("help", "parts").out.splitlines()
    for kind in registry.kinds():
        for part in registry.parts(kind).values():
            assert f"  {part.signature}" in shown, f"help parts leaves out {kind}: {part.name}"
            sentence = f"      {part.summary}  [{part.facts['source']}]"
            assert part.summary.endswith(".")
            assert part.facts["source"]
            assert sentence in shown
