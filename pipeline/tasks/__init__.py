"""All that differs between tasks, behind one small protocol; ``task: NAME`` in a config is a part of this folder.

Form: ``f(config, competition, *, …) -> Task``. Facts: ``form`` of truth and values and ``learns``, the form of what the
network is trained on (see ``pipeline/forms.py``); ``spatial``, that these are masks; ``strata``, the form of what
splits balance, if it is another; ``seen``, what views and merges see, if it is another; ``scored``, what metrics see,
if it is no form of values; ``open_set``, that the test asks for what training never shows, and ``whole``, that it asks
for nothing else; ``never``, arguments and keys that have no meaning for it; ``without``, stages that it lacks;
``sure``, the usual least confidence of a pseudo-label, if it is not 0.9; ``loss``, ``metric``, ``split``,
``group_split``, ``decoder`` and ``cut``, defaults, in which ``{argument}`` stands for the task's own argument. A fact
that is a dict is chosen by the argument that the fact ``by`` names. Nothing outside this folder asks which task it is.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Protocol

from pipeline import registry
from pipeline.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from pipeline.competition import Competition
    from pipeline.config import Config
    from pipeline.forms import Form
    from pipeline.tasks.answers import Cells


SURE = 0.9  # of a pseudo-label, where the task names no other


class Task(Protocol):
    """What training, prediction and submission must know of a task.

    columns: the names of the C columns of ``values``. space: what values are, such as "probability". form: of truth
    and values. learns: the form of what the network learns, outputs of them. grades: (C,) the numbers that the classes
    stand for, or None. agreement: confidence comes from the agreement of views, since values alone tell none.
    """

    columns: list[str]
    space: str
    form: Form
    learns: Form
    outputs: int
    grades: np.ndarray | None
    agreement: bool

    def strata(self, raw: pd.DataFrame) -> np.ndarray:
        """raw: (N, T) text of the target columns → what a split balances: (N,) text, (N, C) 0/1 or (N, T) float64."""

    def targets(self, raw: pd.DataFrame) -> np.ndarray:
        """raw: (N, T) text of the target columns → truth of the task's form; UserError names what is unknown."""

    def taught(self, raw: pd.DataFrame) -> np.ndarray:
        """raw → what training rows teach: the truth, or softer (N, C) values where the table holds shares."""

    def soft(self, targets: np.ndarray) -> np.ndarray:
        """Truth, or already values (N, C) → (N, C) float32 values that say it with certainty."""

    def fit(self, taught: np.ndarray) -> dict[str, Any]:
        """What a member takes from its own training rows alone, such as their mean; plain, kept in its checkpoint."""

    def encode(self, taught: np.ndarray, state: dict[str, Any]) -> np.ndarray:
        """Truth or values → training targets of the form ``learns``: (N,) int64 or (N, outputs) float32."""

    def activate(self, outputs: Any, state: dict[str, Any]) -> Any:
        """outputs (B, outputs) tensor in any float format → (B, C) float32 tensor of values."""

    def confident(
        self, values: np.ndarray, threshold: float, cap: int = 0, agreement: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """values (N, C) → the (n,) int64 rows, ascending, that may become pseudo-labels and their (n,) confidence.

        agreement: (N,) in 0…1, where the task asks for it.
        """

    def pseudo_labels(
        self, values: np.ndarray, threshold: float, cap: int = 0, soft: bool = False,
        agreement: np.ndarray | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:  # fmt: skip
        """values (N, C) → the rows that ``confident`` names, and the columns in which a labels file holds them.

        Columns by name, of (n,) cells each, hard or soft. All values are asked at once, since labels may be relations.
        """

    def read_labels(self, frame: pd.DataFrame) -> np.ndarray:
        """The rows of a labels file (text cells) → (n, C) float32 values, or (n,) classes if they are never soft."""

    def decide(self, values: np.ndarray) -> np.ndarray:
        """values (N, C) → what is answered, as ``targets`` codes it."""

    def submission(self, ids: np.ndarray, values: np.ndarray, sample: pd.DataFrame) -> pd.DataFrame:
        """ids (N,), values (N, C) → the rows of a submission, with the sample's columns and its order of ids."""

    def allowed(self, sample: pd.DataFrame) -> dict[str, Cells]:
        """What the columns of a submission may hold, beyond what the sample itself shows."""

    def answered(self, frame: pd.DataFrame) -> list[str]:
        """The ids that the rows of ``values`` and ``truth`` speak of."""

    def values(self, frame: pd.DataFrame, sample: pd.DataFrame) -> np.ndarray:
        """A submission's rows (text cells) → (N, C) float32 values: the inverse of ``submission``."""

    def truth(self, solution: pd.DataFrame, sample: pd.DataFrame) -> np.ndarray:
        """A solution's rows (text cells) → truth, as ``targets`` codes it."""


def names() -> list[str]:
    """The tasks there are."""
    return sorted(registry.parts("tasks"))


def facts(task: str) -> dict[str, Any]:
    """The facts of a task's call-string, with its arguments filled into the default metric."""
    part, call = registry.bind("tasks", task)
    arguments = {**part.arguments, **call.arguments}
    chosen = arguments.get(part.facts.get("by", ""), "")
    found = {name: fact.get(chosen, "") if isinstance(fact, dict) else fact for name, fact in part.facts.items()}
    return {**found, "metric": found["metric"].format(**arguments)}


def settle(config: Config) -> None:
    """Fill in what the task and the groups decide: metric, loss and the way to split, where they were left open."""
    known = facts(config.task)
    config.metric = config.metric or known["metric"]
    config.loss = config.loss or known["loss"]
    config.decoder = config.decoder or known.get("decoder", "")
    config.cut = config.cut or known.get("cut", "")
    config.pseudo.threshold = config.pseudo.threshold or [known.get("sure", SURE)]
    groups = config.data.group or config.folds.groups
    config.folds.method = config.folds.method or (known["group_split"] if groups else known["split"])


STRONG = {  # what makes a strong view, by whether pixels must stay in their places
    False: "compose(parts=['rand_augment()','cutout(size=0.5,chance=1)'])",
    True: "compose(parts=['colour()','blur()','cutout(chance=1)'])",
}


def strong(config: Config) -> str:
    """The augment that makes the strong view of a consistency: its own, or the usual one for the task."""
    arguments = registry.complete_arguments("consistencies", config.consistency)
    return str(arguments.get("strong", "none()") or STRONG[bool(facts(config.task).get("spatial"))])


def check(config: Config) -> None:
    """Raise UserError unless loss, metric, split and sampler take what the task gives; reads no data."""
    known = facts(config.task)
    given = {
        "loss": ("losses", config.loss, known["learns"]),
        "auxiliary": ("auxiliaries", config.auxiliary, known["learns"]),
        "augment": ("augments", config.augment, known["learns"]),
        "consistency": ("consistencies", config.consistency, known["learns"]),
        "strong": ("augments", strong(config), known["learns"]),
        "sampler": ("samplers", config.sampler, known["learns"]),
        "metric": ("metrics", config.metric, known.get("scored", known["form"])),
        "folds.method": ("splits", config.folds.method, known.get("strata", known["form"])),
        "merge": ("merges", config.merge, known.get("seen", known["form"])),
        "cut": ("cuts", config.cut, known["form"]),
        "views": ("views", config.views, known.get("seen", known["form"])),
    }
    if not known.get("spatial"):
        given["features.classifier"] = ("classifiers", config.features.classifier, known["learns"])
    for key, (kind, value, form) in given.items():
        for call in filter(None, [value] if isinstance(value, str) else value):
            _check_form(config.task, key, kind, call, form)
    for one in registry.unfold("losses", config.loss) if config.loss else ():
        _check_scale(config, one)
    _check_pairs(config, str(known["learns"]))
    _check_embeddings(config, str(known["form"]))
    _check_open_set(config, bool(known.get("open_set")))
    _check_consistency(config)
    _check_never(config, known.get("never", ()))
    _check_spatial(config, bool(known.get("spatial")))


def _check_consistency(config: Config) -> None:
    """Identities of the test are others; numbers have no KL; of masks a pixel keeps its place in both views."""
    arguments, known = registry.complete_arguments("consistencies", config.consistency), facts(config.task)
    if not arguments:
        return
    if known.get("open_set"):
        raise UserError(
            f"consistency={config.consistency} asks which class an image shows, but those of the test are not known to "
            f"task={config.task}; leave it out"
        )
    if arguments.get("distance") == "kl" and known["learns"] == "numbers":
        raise UserError(
            f"consistency={config.consistency}: distance='kl' compares probabilities, but task={config.task} learns "
            "numbers; set distance='mse'"
        )
    stays = [name for name, part in registry.parts("augments").items() if part.facts.get("stays")]
    moving = [one for one in registry.unfold("augments", strong(config)) if registry.parse(one).name not in stays]
    if known.get("spatial") and moving:
        raise UserError(
            f"consistency={config.consistency}: strong={moving[0]} moves pixels, but task={config.task} compares the "
            f"two views pixel by pixel; augment moves both alike, and for strong there are: {', '.join(stays)}"
        )


def _check_form(task: str, key: str, kind: str, call: str, form: str) -> None:
    """A part, and those that it holds, must take what the task gives."""
    if not all(_takes(registry.facts(kind, one), kind, form) for one in registry.unfold(kind, call)):
        fits = [name for name, part in registry.parts(kind).items() if _takes(part.facts, kind, form)]
        raise UserError(f"{key}={call}, but task={task} has {form}; those that fit: {', '.join(fits)}")


def _check_spatial(config: Config, spatial: bool) -> None:
    """Keys that only masks have, and keys that masks lack."""
    tiles = config.data.resize if config.data.resize == "tiles" else ""
    only = {"decoder": config.decoder, "cut": config.cut, "data.resize": tiles}
    never = {
        "data.extra": config.data.extra,
        "train.hard": config.train.hard,
        "data.box": ",".join(config.data.box),
        "data.image": config.data.image,
        "pseudo.crossfit": "true" if config.pseudo.crossfit else "",
        "data.skip_broken": "true" if config.data.skip_broken else "",
        "pool": _but(config.pool, "avg()"),
        "head": _but(config.head, "linear()"),
        "mix": _but(config.mix, "none()"),
        "merge": _but(config.merge, "mean()"),
        "stack.choose": "" if config.stack.choose == "auto" else config.stack.choose,
        "stack.decisions": "" if config.stack.decisions == ["all"] else ",".join(config.stack.decisions),
    }
    wrong = next((f"{key}={value}" for key, value in (never if spatial else only).items() if value), "")
    if wrong:
        raise UserError(f"{wrong} does not go with task={config.task}, which {_has(spatial)} masks; leave it out")
    decoder = config.decoder if spatial else ""  # empty too before settle
    if decoder and registry.complete_arguments("decoders", decoder).get("aux") and not _takes_aux(config):
        raise UserError(
            f"decoder={config.decoder} learns by aux=true which planes are empty, but each pixel of task={config.task} "
            "has one class; leave aux out"
        )
    if decoder and registry.facts("decoders", decoder).get("several") and config.batch_size < 2:
        raise UserError(
            f"decoder={config.decoder} normalises means over whole images, which a batch of one image has not, but "
            f"batch_size={config.batch_size}; set batch_size=2 or more"
        )
    moves = {name for name, part in registry.parts("preprocesses").items() if part.facts.get("moves")}
    for call in config.data.preprocess if spatial else ():
        if registry.parse(call).name in moves:
            fits = ", ".join(name for name in registry.parts("preprocesses") if name not in moves)
            raise UserError(
                f"data.preprocess={call} moves pixels, and the masks of task={config.task} would not follow; those "
                f"that fit: {fits}"
            )


def _but(call: str, plain: str) -> str:
    """A call-string, empty if it says nothing but the default."""
    return "" if registry.parse(call) == registry.parse(plain) else call


def _takes_aux(config: Config) -> bool:
    """Whether the planes that are learned stand for themselves, so that one may be empty."""
    from pipeline.forms import MAPS  # it imports numpy, which help does without

    return not MAPS[facts(config.task)["learns"]].simplex


def _has(spatial: bool) -> str:
    return "has" if spatial else "has no"


def _check_pairs(config: Config, learns: str) -> None:
    """Losses of pairs need classes, whole images, and no second head."""
    if not config.pairs:
        idle = {"pair_weights": ",".join(map(str, config.pair_weights)), "loss_weight": str(config.loss_weight)}
        wrong = next((f"{key}={value}" for key, value in idle.items() if value not in ("", "1.0")), "")
        if wrong:
            raise UserError(f"{wrong} weighs losses of pairs, of which there are none; set pairs, or leave it out")
        return
    given = f"pairs={','.join(config.pairs)}"
    if learns != "classes":
        raise UserError(f"{given} compares rows by class, but task={config.task} learns {learns}; leave it out")
    if len(config.pair_weights) not in (0, len(config.pairs)):
        raise UserError(f"pair_weights={config.pair_weights}, but {given}; give one weight for each, or none")
    for key in ("mix", "auxiliary"):
        if registry.parse(getattr(config, key)).name != "none":
            raise UserError(f"{given} does not go with {key}={getattr(config, key)}; leave one of them out")


def _check_embeddings(config: Config, form: str) -> None:
    """How a student learns embeddings is no question where there are none."""
    for key, layer in (("distill", config.distill), ("train", config.train)):
        if layer.embeddings != "relations" and form != "embeddings":
            raise UserError(
                f"{key}.embeddings={layer.embeddings} is for task=retrieval(), but task={config.task} predicts {form}; "
                "leave it out"
            )


def _check_open_set(config: Config, open_set: bool) -> None:
    """Re-rankings fit each other, and are for lists; what speaks of known classes alone is not for an open set."""
    from pipeline.ranking import check_rerankings  # it imports numpy, which help does without

    data = config.data
    only = {"data.gallery": data.gallery, "data.role": data.role, "data.camera": data.camera}
    only["rerankings"] = ",".join(config.rerankings)
    wrong = next((f"{key}={value}" for key, value in only.items() if value), "")
    if wrong and not open_set:
        raise UserError(f"{wrong} does not go with task={config.task}; leave it out")
    if config.rerankings:
        check_rerankings(config.rerankings)
    if open_set and config.pseudo.crossfit:
        raise UserError(f"pseudo.crossfit=true mixes members, which task={config.task} cannot compare; leave it out")
    taught = config.train.soft or config.stage == "distill"
    if open_set and taught and registry.parse(config.auxiliary).name != "none":
        raise UserError(
            f"auxiliary={config.auxiliary} has no embedding for a teacher of task={config.task}; leave it out to distil"
        )
    if open_set and config.distill.source != "member":
        raise UserError(
            f"distill.source={config.distill.source} has several members label a student's rows, whose embeddings "
            f"task={config.task} cannot compare; leave it out for distill.source=member"
        )


def _check_never(config: Config, names: tuple[str, ...]) -> None:
    """Arguments of the task, and keys, that have no meaning for it."""
    arguments = registry.complete_arguments("tasks", config.task)
    for name in names:
        value = arguments[name] if name in arguments else functools.reduce(getattr, name.split("."), config)
        if value:
            shown = ",".join(value) if isinstance(value, list) else value
            raise UserError(f"{name}={shown} has no meaning for task={config.task}; leave it out")


def lacks(config: Config, stage: str) -> str:
    """Why a recipe leaves a stage out, empty if it does not; UserError where the user asked for that stage."""
    if stage not in facts(config.task).get("without", ()):
        return ""
    why = f"stage={stage} is not made for task={config.task}, whose test images search the training images of all folds"
    if config.arguments.get("stage") == stage:
        raise UserError(f"{why}: nothing may learn from what they find; leave it out")
    return why


def refuse_spatial(config: Config) -> None:
    """Raise UserError in a stage that has no use for masks or for embeddings."""
    known = facts(config.task)
    if known.get("spatial") or known.get("open_set"):
        raise UserError(f"stage={config.stage} is not made for task={config.task}; its stages are those of the recipe")


def _check_scale(config: Config, loss: str) -> None:
    """A loss of cosines needs the head that gives them, at the same scale; one of lengths the head that has them."""
    part, call = registry.bind("losses", loss)
    head, given = registry.bind("heads", config.head)
    if part.facts.get("lengths") and registry.parse(config.auxiliary).name != "none":
        raise UserError(f"loss={loss} reads lengths, which auxiliary={config.auxiliary} does not tell; leave it out")
    if part.facts.get("lengths") and not head.facts.get("lengths"):
        fits = [f"{name}()" for name, other in registry.parts("heads").items() if other.facts.get("lengths")]
        raise UserError(f"loss={loss} reads lengths, which head={config.head} does not tell; set head={fits[0]}")
    if not part.facts.get("cosines"):
        return
    own, other = {**part.arguments, **call.arguments}.get("s", 0), {**head.arguments, **given.arguments}.get("s", 0)
    if not head.facts.get("cosines") or own != other:
        raise UserError(
            f"loss={loss} reads cosines at the scale s={own:g}, but head={config.head} gives others; set "
            f"head=cosine(s={own:g})"
        )


def _takes(facts: dict[str, Any], kind: str, form: str) -> bool:
    takes = facts.get("takes", (form,))
    return form in takes or (kind == "metrics" and form == "classes" and "numbers" in takes)  # classes may be grades


def task_for(config: Config, competition: Competition) -> Task:
    """The config's task, knowing the competition's classes; UserError if the training rows do not fit it."""
    task: Task = registry.build("tasks", config.task)(config, competition)
    return task
