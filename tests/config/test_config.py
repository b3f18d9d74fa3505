"""The configuration: every file composes, every key is checked and documented, every mistake gives one line."""

import re
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from carvision.config.compose import compose_alone, conf_dir, help_of, options_of, plain_config
from carvision.config.schema import check_values
from carvision.errors import InputError, one_line_errors

GROUPS = (
    "data", "model", "loss", "metric_loss", "augment", "optimizer", "schedule", "trainer", "callbacks", "logger",
    "experiment", "sweep",
)  # fmt: skip


def composed(*overrides: str) -> dict:
    return plain_config(compose_alone("train", list(overrides)), complete=False)


def test_heads_follow_the_data_and_open_mappings_take_new_keys():
    assert list(composed("data=demo")["model"]["heads"]) == ["make", "model"]
    assert list(composed("data=oxford102")["model"]["heads"]) == ["class"]
    changed = composed("model.heads.make.dropout=0.5", "+model/head@model.heads.type=linear")["model"]["heads"]
    assert changed["make"]["dropout"] == 0.5 and changed["model"]["dropout"] == 0.0
    assert list(changed) == ["make", "model", "type"]
    assert composed("model.backbone_kwargs={pad_type:same}")["model"]["backbone_kwargs"] == {"pad_type": "same"}


@pytest.mark.parametrize(("override", "line"), [
    ("data.split.kind=offical", "data.split.kind: 'offical' is not one of official, stratified, kfold, unseen"),
    ("optimizer.lr=fast", "optimizer.lr: 'fast' is not a number above 0"),
    ("loss.head_weights={make:heavy}", "loss.head_weights: {'make': 'heavy'} is not a mapping onto values"),
    ("+data.colour=red", "data.colour: there is no such key"), ("data=folder", "data.root: must be given"),
    # Messages of Hydra
    ("data.rot=photos", "data.rot: there is no such key; nearest: data.root"),
    ("experiment=oxford102_vg16", "experiment: 'oxford102_vg16' is not one of "),
    ("phases.a.epochs=3", "phases.a.epochs: the phase does not have this key yet"),
    ("optimizer.lr=0.1)", "optimizer.lr: '0.1)' is not a number above 0"),
    ("photos", "'photos' is not <key>=<value>; a value with a space needs quotes"),
    ("optimizer.lr=choice(1", "'optimizer.lr=choice(1' is no override"),
    ("optimizer.lr=0.1,0.2", "optimizer.lr: 0.1,0.2 are several values; write optimizer.lr=[0.1,0.2] for a list"),
])  # fmt: skip
def test_a_mistake_is_one_line_with_what_is_allowed(override, line):
    with pytest.raises(InputError) as caught:
        plain_config(compose_alone("train", [override]))
    message = str(caught.value)
    assert message.startswith(line) and "\n" not in message and "hydra.cc" not in message
    if "vg16" in override:  # a row of a table, not a file
        assert "; nearest: oxford102_vgg1" in message


def test_hydra_and_the_help_know_the_same_choices():
    compose_alone("train", [])  # after which the tables' rows are registered
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        assert all(sorted(loader.get_group_options(group)) == options_of(group) for group in GROUPS)
    assert f"experiment: {', '.join(options_of('experiment'))}\n" in help_of("train")
    assert "python -m carvision.train data=folder data.root=photos" in help_of("train")


def test_what_comments_refer_to_exists_and_experiments_have_a_command():
    top = conf_dir()
    names = {group: set(options_of(group)) for group in GROUPS}
    for file in top.rglob("*.yaml"):
        comments = " ".join(re.findall(r"#(.*)", file.read_text(encoding="utf-8")))
        found = re.findall(r"((?:README|docs/[\w/-]+)\.md|shared/\w+\.yaml)", comments)
        folders = (top.parent, file.parent, top / "experiment")
        assert [name for name in found if not any((folder / name).is_file() for folder in folders)] == [], file
        for group, name in re.findall(r"(?<![\w.])(\w+)=(\w+)(?![\w.(])", comments):
            assert group not in names or name in names[group], f"{file}: {group}={name}"
        if "experiment" in file.parts and file.parent.name != "shared":
            experiment = r"\w+" if file.parent.name == "tables" else file.stem
            assert re.search(rf"python -m carvision.train experiment={experiment} ", comments), file


def test_errors_are_one_line_without_control_codes_or_odd_bytes():
    with pytest.raises(InputError, match="seeds: there is no such key; nearest: seed"):
        check_values({"seeds": 1})
    message = r"^error: x{100}\.\.\.: the name is too long for this disk; give a shorter one$"
    with pytest.raises(SystemExit, match=message), one_line_errors():
        Path("x" * 300).stat()
    assert str(InputError("K\udce4fer.jpg is missing")) == "K\\xe4fer.jpg is missing"
    assert str(InputError("'a\nb\x1b[31m' is wrong")) == "'a\\nb\\x1b[31m' is wrong"
