"""The configuration: layers merge in order, text becomes its key's type, and what does not fit is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import config
from pipeline.errors import UserError

LAYERS = {
    "configs/default.yaml": "competition: whales\nmodel: small\nbatch_size: 16\nlr: 1e-4\n",
    "configs/competition/whales.yaml": "image_size: 64\nbatch_size: 8\nepochs: 3\ndata:\n  channels: 1\n",
    "configs/competition/birds.yaml": "symmetry: hflip\nmodel: wide\n",
    "configs/model/small.yaml": "epochs: 4\nloss: focal(gamma=1)\ntrain: {clip_norm: 1}\n",
    "configs/model/wide.yaml": "backbone: wide_resnet50_2\n",
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    for name, text in LAYERS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def compose(*words: str, step: dict | None = None) -> config.Config:
    return config.compose(config.parse_arguments(list(words)), step)


def refused(*words: str, step: dict | None = None) -> str:
    with pytest.raises(UserError) as caught:
        compose(*words, step=step)
    return str(caught.value)


def with_model(project: Path, text: str) -> None:
    (project / "configs/model/small.yaml").write_text(text, encoding="utf-8")


# --- merging ------------------------------------------------------------------------------------------------------


def test_layers_merge_in_order() -> None:
    merged = compose("epochs=6")
    assert merged.precision == "auto"  # dataclass
    assert merged.lr == 1e-4  # default.yaml, where YAML reads a text
    assert (merged.batch_size, merged.data.channels) == (8, 1)  # competition
    assert (merged.loss, merged.train.clip_norm) == ("focal(gamma=1)", 1.0)  # model
    assert merged.epochs == 6  # command line
    assert compose().epochs == 4


def test_recipe_step_beats_the_model_and_the_command_line_beats_both() -> None:
    step = {"epochs": 9, "train": {"accumulate": 2}, "pseudo.rounds": 3}
    merged = compose(step=step)
    assert (merged.epochs, merged.train.accumulate, merged.pseudo.rounds) == (9, 2, 3)
    assert merged.train.clip_norm == 1.0
    assert compose("epochs=2", step=step).epochs == 2
    assert "configs/recipe/" in refused(step={"epohcs": 1})


def test_competition_and_model_are_chosen_by_the_nearest_layer() -> None:
    assert compose("competition=birds").backbone == "wide_resnet50_2"
    assert compose("competition=birds", "model=small").epochs == 4
    assert compose(step={"model": "wide"}).backbone == "wide_resnet50_2"


def test_interpolation_in_yaml_sees_the_merged_values(project: Path) -> None:
    with_model(project, "run: ${backbone}-${image_size}\nepochs: ${batch_size}\n")
    assert (compose().run, compose().epochs) == ("resnet18-64", 8)
    assert compose("batch_size=5", "image_size=32").epochs == 5
    assert compose("image_size=32").run == "resnet18-32"


@pytest.mark.parametrize("text", ["epochs: ${nope}", "epochs: ${backbone}", "run: ${env:HOME}", "lr: ${data.nope}"])
def test_wrong_interpolation_names_its_key(project: Path, text: str) -> None:
    with_model(project, text)
    assert refused().startswith(f"{text.partition(':')[0]}: ")


def test_values_do_not_leak_from_one_config_to_the_next() -> None:
    first = compose()
    first.views.append("hflip()")
    first.train.clip_norm = 7.0
    assert compose().views == ["identity()"]
    assert compose().train.clip_norm == 1.0


# --- the command line ---------------------------------------------------------------------------------------------


def test_raw_text_becomes_the_keys_type_and_nothing_else() -> None:
    merged = compose(
        "run=007", "submission=a: b=c", "epochs=5", "lr=1e-2", "pretrained=false", "pseudo.threshold=0.9,0.8",
        "weights=${HOME}/x", "seed=0", "source=true",
    )  # fmt: skip
    assert merged.run == "007"
    assert merged.submission == "a: b=c"
    assert (merged.epochs, merged.lr, merged.pretrained, merged.seed) == (5, 0.01, False, 0)
    assert merged.pseudo.threshold == [0.9, 0.8]
    assert merged.weights == "${HOME}/x"
    assert merged.source == "true"


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("hflip", ["hflip"]),
        ("hflip,vflip", ["hflip", "vflip"]),
        ("[hflip, shift(x=1,y=2)]", ["hflip", "shift(x=1,y=2)"]),
        ("shift(x=1,y=2)", ["shift(x=1,y=2)"]),
        ("f(a=[1,2],b=(3,4)),g", ["f(a=[1,2],b=(3,4))", "g"]),
        ("f(a='x,(y'),g", ["f(a='x,(y')", "g"]),
        ("[]", []),
        ("", []),
    ],
)
def test_lists_split_at_outer_commas(text: str, items: list[str]) -> None:
    assert config.split_list(text) == items


def test_one_value_makes_a_list_and_call_strings_keep_their_commas() -> None:
    assert compose("views=[identity,shift(x=1,y=2)]").views == ["identity", "shift(x=1,y=2)"]
    assert compose("fold=2").fold == ["2"]
    assert compose("fold=0,2").fold == ["0", "2"]
    assert compose("scales=1").scales == [1.0]


def test_data_is_short_for_its_folder(project: Path) -> None:
    assert compose("data=DIR").data.folder == "DIR"
    with_model(project, "data: elsewhere")
    assert compose().data.folder == "elsewhere"


# --- what does not fit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("epoch=2", "did you mean epochs?"),
        ("fold.count=3", "did you mean folds.count?"),
        ("threshold=0.9", "did you mean pseudo.threshold?"),
        ("train", "'train' is not key=value; write stage=train"),
        ("=3", "there is no key ''"),
        ("epochs=x", "epochs=x, but epochs is a whole number"),
        ("epochs=1.5", "epochs=1.5"),
        ("epochs=-1", "epochs=-1, but epochs must be ≥ 1"),
        ("batch_size=0", "batch_size=0, but batch_size must be ≥ 1"),
        ("lr=0", "lr=0.0, but lr must be > 0"),
        ("lr=nan", "lr must be finite"),
        ("lr=1e999", "lr must be finite"),
        ("pretrained=yes", "true or false"),
        ("select=bets", "did you mean best?"),
        ("scales=1.0,abc", "scales=abc"),
        ("scales=1.0,-1", "scales=-1.0"),
        ("views=", "views is empty"),
        ("loss=focal(gama=2)", "did you mean gamma?"),
        ("loss=focall", "did you mean focal?"),
        ("loss=focal(gamma=-1)", "gamma must be ≥ 0"),
        ("views=identity,hflp", "did you mean hflip?"),
        ("competition=wales", "did you mean whales?"),
        ("model=../wide", "model='../wide'"),
    ],
)
def test_wrong_argument_is_named_with_the_next_move(word: str, says: str) -> None:
    assert says in refused(word)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epohcs: 3", "configs/model/small.yaml: there is no key 'epohcs'; did you mean epochs?"),
        ("folds: {cuont: 3}", "did you mean folds.count?"),
        ("epochs: abc", "configs/model/small.yaml: epochs='abc', but epochs is a whole number"),
        ("epochs: 2.5", "epochs=2.5"),
        ("epochs: true", "epochs=True"),
        ("epochs: null", "epochs=None"),
        ("epochs: [1, 2]", "epochs=[1, 2]"),
        ("pretrained: 1", "pretrained=1"),
        ("loss: 5", "loss=5: '5' is not a part"),
        ("- a", "must hold key: value lines"),
        ("a: [", "cannot be read as YAML"),
        ("epochs: 1\nepochs: 2", "duplicate key epochs"),
    ],
)
def test_wrong_yaml_is_named_with_its_file(project: Path, text: str, says: str) -> None:
    with_model(project, text)
    assert says in refused()


def test_yaml_takes_flat_nested_and_single_values(project: Path) -> None:
    with_model(project, "train.clip_norm: 2\nfolds:\n  count: 3\nviews: identity\nfold: [0, 1]\n")
    merged = compose()
    assert (merged.train.clip_norm, merged.folds.count, merged.views, merged.fold) == (2.0, 3, ["identity"], ["0", "1"])
    with_model(project, "")
    assert compose().epochs == 3


# --- copies -------------------------------------------------------------------------------------------------------


def test_replace_checks_and_leaves_the_original() -> None:
    first = compose()
    second = config.replace(first, epochs=9, train__soft="folder")
    assert (second.epochs, second.train.soft, second.train.clip_norm) == (9, "folder", 1.0)
    assert (first.epochs, first.train.soft) == (4, "")
    with pytest.raises(UserError, match="epochs must be ≥ 1"):
        config.replace(first, epochs=0)
    with pytest.raises(UserError, match=r"did you mean train\.soft"):
        config.replace(first, train__sotf="x")


def test_scopes_part_the_keys() -> None:
    merged = compose()
    run, predict = config.scoped(merged, "run"), config.scoped(merged, "predict")
    assert {"epochs", "loss", "train.clip_norm", "data.channels"} <= run.keys()
    assert {"views", "scales", "merge"} <= predict.keys()
    assert not {"device", "views", "debug"} & run.keys()
    assert config.flatten(merged).keys() == config.keys().keys()


def test_every_key_says_what_it_means_and_takes_its_own_default() -> None:
    for name, key in config.keys().items():
        assert key.rules["help"], name
    config.check(config.Config())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"optim": "schedule_free()"}, "needs its own average; add average=schedule_free"),
        ({"average": "schedule_free()"}, "serves optim=schedule_free.. alone"),
        ({"optim": "lookahead(inner='adaam()')"}, "did you mean adam"),
        ({"loss": "total(losses=['cross_entropy()', 'focl()'], weights=[1, 1])"}, "did you mean focal"),
        ({"schedule": "ladder(at=[0.5], rates=[1, 2, 3])"}, "ladder"),
    ],
)
def test_parts_that_do_not_go_together_fail_before_any_work(project, words: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        config.compose(words)


@pytest.mark.parametrize(("word", "moving", "fits"), [
    *((f"augment={name}()", name, "flips") for name in ("auto_augment", "rand_augment", "trivial_augment", "several")),
    ("augment=compose(parts=['aug_mix()'])", "aug_mix", "flips"), ("views=identity,five_crop", "five_crop", "d4"),
    ("data.preprocess=trim_borders()", "trim_borders", "clahe"),
    ("data.preprocess=clahe(),ben_graham()", "ben_graham", "clahe"),
])  # fmt: skip
def test_what_moves_pixels_without_their_masks_is_refused_for_masks(word: str, moving: str, fits: str) -> None:
    told = refused("task=segmentation()", "mask.rle=rle", "model=wide", "symmetry=d4", word)
    before, _, listed = told.partition("those that fit: ")
    assert moving in before
    assert fits in listed.split(", ")
    assert moving not in listed.split(", ")
    compose("symmetry=d4", word)


def test_what_keeps_pixels_with_their_masks_is_taken() -> None:
    words = "augment=heavy()", "views=identity,d4", "data.preprocess=clahe()"
    assert compose("task=segmentation()", "mask.rle=rle", "model=wide", "symmetry=d4", *words).augment == "heavy()"


def test_no_key_is_another_word_in_yaml():
    import yaml

    leaves = {key.name.rpartition(".")[2] for key in config.keys().values()}
    assert {leaf for leaf in leaves if yaml.safe_load(leaf) != leaf} == set()  # on, off, yes, no are truth values


def test_calls_are_the_same_with_and_without_quotes():
    assert config.same("loss", "ohem(loss='bce()', k=0.5)", "ohem(loss=bce(),k=0.5)")
    assert config.same("views", ["identity()", "shift(x=1)"], ["identity()", "shift( x = 1 )"])
    assert not config.same("views", ["identity()"], ["identity()", "hflip()"])
    assert not config.same("loss", "ohem(k=0.5)", "ohem(k=0.6)")
    assert not config.same("loss", "", "bce()")
    assert not config.same("lr", 0.1, 0.2)
