"""What settings mean together: what follows from several keys, and what does not go with what.

``check`` is the last part of ``config.check``, once each value fits its key. What a new setting does not go with is a
function here and a name in RULES; what a task forbids stands in the task.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import backbone_names, budget, registry, tasks
from pipeline.errors import UserError
from pipeline.symmetry import check_symmetry

if TYPE_CHECKING:
    from pipeline.config import Config

TIMED = ("all", "auto", "train", "pretrain", "search", "answer")  # the stages that keep to a budget
UNFINISHED = ("new", "download")  # what these stages write is checked when it is whole


def check(config: Config) -> None:
    """UserError at the first of the RULES that the settings break."""
    for rule in RULES:
        rule(config)


def followers(config: Config) -> list[str]:
    """The parts that follow the scores of the member's own fold while it trains, as the user wrote them."""
    calls = {"schedule": config.schedule, "finetune": config.finetune, "average": config.average}
    return [f"{key}={call}" for key, call in calls.items() if registry.facts(f"{key}s", call).get("own_fold")]


def own_fold(config: Config) -> list[str]:
    """All settings by which a member is selected on its own fold, whose OOF that flatters (law 2)."""
    selected = ["select=best"] if config.select == "best" else []
    stopped = [f"train.patience={config.train.patience}"] if config.train.patience else []
    return [*selected, *stopped, *followers(config)]


def unbatched(config: Config) -> list[str]:
    """What keeps batches from being made on the device: parts of augment that change single images alone, tiles."""
    asked = {"augment": config.augment, **({"strong": beside["strong"]} if (beside := consistent(config)) else {})}
    known = [(key, text) for key, call in asked.items() for text in registry.unfold("augments", call)]
    tiles = ["data.resize=tiles"] if config.data.resize == "tiles" else []
    return tiles + [f"{key}={text}" for key, text in known if not registry.facts("augments", text).get("batched")]


def consistent(config: Config) -> dict[str, Any]:
    """All arguments of the consistency, what makes its strong view with the task's default; empty without one."""
    if registry.parse(config.consistency).name == "none":
        return {}
    return {**registry.complete_arguments("consistencies", config.consistency), "strong": tasks.strong(config)}


def averaging(config: Config) -> str:
    """The call-string of the average that is kept: of a teacher that follows the student, where there is one."""
    follows = registry.facts("consistencies", config.consistency).get("teacher")
    return f"ema(decay={consistent(config)['decay']})" if follows else config.average


def has_levels(decoder: str) -> bool:
    """Whether a decoder learns at several levels."""
    return bool(decoder and registry.complete_arguments("decoders", decoder).get("deep"))


def check_levels(config: Config) -> None:
    """UserError where a level is asked of a decoder without any."""
    if config.level != "last" and not has_levels(config.decoder):
        raise UserError(
            f"level={config.level} needs a decoder whose levels learn, but decoder={config.decoder}; leave it out, or "
            "train decoder=unet_plus_plus(deep=true)"
        )


def _check_pair(config: Config) -> None:
    """An optimizer that needs an average of its own, and that average, come together."""
    average = registry.parse(config.average).name
    known = [registry.facts("optims", one) for one in registry.unfold("optims", config.optim)]
    needed = next((facts["average"] for facts in known if "average" in facts), None)
    serves = {part.facts["average"]: name for name, part in registry.parts("optims").items() if "average" in part.facts}
    if needed and average != needed:
        raise UserError(f"optim={config.optim} needs its own average; add average={needed}()")
    if average in serves and not needed:
        raise UserError(f"average={config.average} serves optim={serves[average]}() alone; choose another average")
    average_facts = registry.facts("averages", config.average)
    if average_facts.get("own_fold") and config.select != "last":
        raise UserError(f"average={config.average} chooses among the epochs itself; leave out select={config.select}")
    if average_facts.get("cycles"):
        chosen, call = registry.bind("schedules", config.schedule)
        if (chosen.arguments | call.arguments).get("cycles", 1) < 2:
            raise UserError(
                f"average={config.average} needs several cycles of the learning rate, but schedule={config.schedule} "
                "has one; take schedule=multicycle_cosine(cycles=5)"
            )


def _check_seeds(config: Config) -> None:
    if config.train.seeds > 1 and config.select == "common":
        raise UserError(f"train.seeds={config.train.seeds} does not go with select=common; choose one of them")


def _check_own_fold(config: Config) -> None:
    """A training on everything has no fold of its own to follow."""
    if config.fold == ["full"] and followers(config):
        raise UserError(
            f"fold=full trains on everything, but {' and '.join(followers(config))} follows the scores of the member's "
            "own fold, of which there is none; take one that does not, under another name, run=NAME"
        )


def _check_pixels(config: Config) -> None:
    """Each preprocess can read so many channels; a patch has a middle."""
    data = config.data
    for text in data.preprocess:
        known = registry.facts("preprocesses", text).get("channels")
        if known and data.channels not in known:
            raise UserError(
                f"data.preprocess={text} reads images of {' or '.join(map(str, known))} channels, but data.channels="
                f"{data.channels}; leave it out"
            )
    if registry.bind("normalises", data.normalise)[1].arguments.get("patch", 1) % 2 == 0:
        raise UserError(f"data.normalise={data.normalise}, but patch is an odd number, such as 3: it has a middle")


def _check_unlabelled(config: Config) -> None:
    """Images that nobody labelled lie in data.folder, and have no row that tells a box."""
    data = config.data
    path = Path(data.unlabelled)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(
            f"data.unlabelled={data.unlabelled} would leave data.folder; move the images there, or link their folder"
        )
    if data.unlabelled and data.box:
        raise UserError(
            f"data.unlabelled={data.unlabelled} has no table, and so no boxes to crop to, which data.box="
            f"{','.join(data.box)} asks for; leave one of them out"
        )


def _check_active(config: Config) -> None:
    """Each criterion is named once, and has a weight or none has."""
    active = config.active
    named = f"active.criteria={','.join(active.criteria)}"
    if len(set(active.criteria)) < len(active.criteria):
        raise UserError(f"{named} names a criterion twice; name each once, and give it a weight with active.weights")
    if active.weights and (len(active.weights) != len(active.criteria) or not any(active.weights)):
        raise UserError(
            f"active.weights={','.join(f'{weight:g}' for weight in active.weights)}, but {named}; give each a "
            "weight, one of them above 0"
        )


def _check_loader(config: Config) -> None:
    """What loader=device cannot do is refused; auto takes the threads then."""
    if config.loader == "device" and (found := unbatched(config)):
        able = [name for name, part in registry.parts("augments").items() if part.facts.get("batched")]
        raise UserError(
            f"loader=device makes whole batches on the device, where {' and '.join(found)} cannot be done; set "
            f"loader=threads, or take whole images and only these: augment={', '.join(able)}"
        )


def _check_several(config: Config) -> None:
    """A loss that compares views of an image needs an augment that makes them, and both stand alone."""
    _, *inner = registry.unfold("augments", config.augment)
    if any(registry.facts("augments", one).get("several") for one in inner):
        raise UserError(f"augment={config.augment}: several() holds other augments and stands in none")
    _, *inner = registry.unfold("losses", config.loss) if config.loss else [""]
    for one in inner:
        facts = registry.facts("losses", one)
        if facts.get("views") or facts.get("memory") or facts.get("lengths"):
            raise UserError(f"loss={config.loss}: {one} cannot stand in another loss; give it alone")
    made = registry.facts("augments", config.augment).get("several")
    if config.loss and registry.facts("losses", config.loss).get("views") and not made:
        raise UserError(
            f"loss={config.loss} compares views of each image, but augment={config.augment} makes one; set "
            f"augment=several(base={config.augment})"
        )
    if made and registry.parse(config.mix).name != "none":
        raise UserError(
            f"augment={config.augment} makes views of one image, which mix={config.mix} would blend with others; "
            "leave one of them out"
        )


def _check_consistency(config: Config) -> None:
    """A consistency compares two views of an image, of which a loader makes no more, by rows that stand alone."""
    asked = consistent(config)
    if not asked:
        return
    given = f"consistency={config.consistency}"
    teacher = registry.facts("consistencies", config.consistency).get("teacher")
    loss = registry.facts("losses", config.loss) if config.loss else {}
    wrong = {
        f"average={config.average}, since its teacher is an average": teacher and _but(config.average, "none()"),
        "train.compile=true, since its teacher has other weights": teacher and config.train.compile,
        f"pairs={','.join(config.pairs)}": config.pairs,
        f"loss={config.loss}": loss.get("views") or loss.get("lengths"),
        f"augment={config.augment}": registry.facts("augments", config.augment).get("several"),
        f"optim={config.optim}, which keeps an average of its own": teacher and _own_average(config.optim),
    }
    found = next((text for text, there in wrong.items() if there), "")
    if found:
        raise UserError(f"{given} does not go with {found}; leave one of them out")
    if any(registry.facts("augments", one).get("several") for one in registry.unfold("augments", asked["strong"])):
        raise UserError(f"{given}: strong makes one view, and several() makes more; give what changes a single image")
    check_symmetry([asked["strong"]], config.symmetry, "augments", config.competition)


def _check_level(config: Config) -> None:
    """What level may be; of a run under its model's name, that there are some."""
    if config.level not in ("last", "auto") and not (config.level.isdecimal() and int(config.level)):
        raise UserError(f"level={config.level}, but level is last, auto or a number from 1 on")
    if not config.run:  # else the run knows its decoder
        check_levels(config)


def _check_pretrain(config: Config) -> None:
    """Views of a pretraining keep to the declared symmetry, and are made by its method; devices share its batches."""
    if config.pretrain.batch_size % config.devices:
        raise UserError(
            f"pretrain.batch_size={config.pretrain.batch_size}, but devices={config.devices} share a batch evenly; "
            f"take {max(1, config.pretrain.batch_size // config.devices) * config.devices}"
        )
    if config.pretrain.augment:
        own = [config.pretrain.augment]
        check_symmetry(own, config.symmetry, "augments", config.competition, "pretrain.augment")
        if any(registry.facts("augments", one).get("several") for one in registry.unfold("augments", own[0])):
            raise UserError(
                f"pretrain.augment={own[0]}: how many views there are is up to pretrain.method="
                f"{config.pretrain.method}; give what is done to each of them, such as pretrain.augment=light()"
            )


def _check_budget(config: Config) -> None:
    """A budget is a time, and of a command that trains and can be continued."""
    budget.seconds_of(config.package.budget)
    if not config.budget:
        return
    budget.seconds_of(config.budget)
    asked = config.arguments.get("stage", "all")
    if asked not in TIMED and "budget" in config.arguments:
        timed = ", ".join(f"stage={name}" for name in TIMED)
        raise UserError(f"budget={config.budget} goes with {timed}, not with stage={asked}; leave it out")


def _check_upload(config: Config) -> None:
    """An upload costs one of the day's tries: it is asked for by name, and for one submission."""
    asked = config.arguments.get("stage", "all")
    if config.upload and ("upload" not in config.arguments or asked != "submit"):
        raise UserError(
            f"upload=true goes with stage=submit on the command line, not with stage={asked} or in a YAML; write "
            f"./run.sh stage=submit upload=true competition={config.competition}"
        )
    if config.message and not config.upload:
        raise UserError(f"message={config.message} is shown beside an upload; add upload=true, or leave it out")


def _check_launcher(config: Config) -> None:
    """jobs= and device= mean something to the launcher."""
    facts = registry.facts("launchers", config.launcher)
    if config.jobs and not facts.get("at_once"):
        raise UserError(f"jobs={config.jobs}, but with launcher={config.launcher} the cluster decides; leave it out")
    if config.jobs and not facts.get("elsewhere") and config.parallel == "none":
        raise UserError(f"jobs={config.jobs} members side by side need parallel=folds; add it, or leave jobs out")
    if facts.get("elsewhere") and ":" in config.device:
        raise UserError(
            f"device={config.device} is one of this machine, but launcher={config.launcher} uses others; set device="
            f"{config.device.partition(':')[0]}"
        )


def _check_checkpointing(config: Config) -> None:
    """What computes activations again in the backward pass must find the weights and the code of the first time."""
    if not config.train.checkpointing:
        return
    if config.train.compile:
        raise UserError("train.checkpointing=true does not go with train.compile=true; choose one of them")
    if registry.parse(config.auxiliary).name != "none":
        raise UserError(
            f"train.checkpointing=true does not go with auxiliary={config.auxiliary}, which looks into the backbone; "
            "leave one of them out"
        )
    if any(registry.facts("optims", one).get("sharpness") for one in registry.unfold("optims", config.optim)):
        raise UserError(
            f"train.checkpointing=true does not go with optim={config.optim}, whose second pass has other weights; "
            "save memory with a smaller batch_size and train.accumulate"
        )


def _check_devices(config: Config) -> None:
    """Devices share a batch evenly, and whole classes where a sampler deals these; what counts seconds has one."""
    count, share = config.devices, config.batch_size // config.devices
    if count == 1:
        return
    if config.batch_size % count:
        raise UserError(
            f"devices={count}, but batch_size={config.batch_size} is no multiple of it: a batch is that of all devices "
            f"together; take batch_size={max(share, 1) * count}"
        )
    arguments = registry.complete_arguments("samplers", config.sampler)
    *_, each = [1, *(arguments[name] for name in registry.facts("samplers", config.sampler).get("batch", ()))]
    if share % each:
        raise UserError(
            f"devices={count} takes {share} rows each of batch_size={config.batch_size}, which cuts the {each} rows of "
            f"a class apart that sampler={config.sampler} puts together; let batch_size be a multiple of {count * each}"
        )
    if config.train.seconds:
        raise UserError(
            f"train.seconds={config.train.seconds:g} is measured on one device, but devices={count}; set epochs instead"
        )
    if config.stage == "tune":
        raise UserError(
            f"devices={count}, but each trial of stage=tune has one; set devices=1, and start the search several times "
            "at once"
        )
    if config.stage == "search":
        raise UserError(f"devices={count}, but each trial of stage=search has one; set devices=1")


def _check_schedule(config: Config) -> None:
    """A schedule may refuse its arguments together, or beside the epochs, of which train.seconds tells none."""
    epochs = 0 if config.train.seconds else config.epochs
    counts = (epochs,) if registry.facts("schedules", config.schedule).get("epochs") else ()
    try:
        registry.build("schedules", config.schedule)(0, 1000, *counts)
    except UserError as fault:
        raise UserError(f"schedule={config.schedule}: {fault}") from fault


def _check_backbone(config: Config) -> None:
    """It is there; what is for timm's nets alone is asked of none of ours."""
    backbone_names.check(config.backbone)
    name, _ = backbone_names.split(config.backbone)
    if name not in registry.parts("backbones"):
        return
    changes = {"norm": config.norm, "stem": config.stem}
    resnets = [f"{key}={call}" for key, call in changes.items() if registry.facts(f"{key}s", call).get("resnets")]
    if resnets:
        raise UserError(f"{resnets[0]} is for timm's ResNets, such as resnet18, not for backbone={name}; leave it out")
    if config.train.checkpointing:
        raise UserError(
            f"train.checkpointing=true, but {config.backbone} cannot compute its blocks again; save memory "
            "with a smaller batch_size and train.accumulate"
        )


def _check_task(config: Config) -> None:
    if config.stage not in UNFINISHED:
        tasks.check(config)


def _check_declared_symmetry(config: Config) -> None:
    """Flips and turns only where the competition says that they change no answer (law 5)."""
    check_symmetry(config.views, config.symmetry, "views", config.competition)
    check_symmetry([config.augment], config.symmetry, "augments", config.competition)


def _own_average(optim: str) -> bool:
    return any("average" in registry.facts("optims", one) for one in registry.unfold("optims", optim))


def _but(call: str, plain: str) -> bool:
    return registry.parse(call) != registry.parse(plain)


RULES = (
    _check_schedule, _check_pair, _check_pixels, _check_unlabelled, _check_active, _check_loader, _check_checkpointing,
    _check_devices, _check_own_fold, _check_several, _check_consistency, _check_seeds, _check_level, _check_launcher,
    _check_budget, _check_upload, _check_backbone, _check_task, _check_declared_symmetry, _check_pretrain,
)  # fmt: skip
