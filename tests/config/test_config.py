"""The configuration: every file composes, every key is checked and documented, every mistake gives one line."""

import importlib.util
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from carvision.config.compose import compose_alone, conf_dir, help_of, hydra_message, options_of, plain_config
from carvision.config.schema import ALLOWED, check_values
from carvision.errors import InputError, one_line_errors

GROUPS = (
    "data", "model", "loss", "metric_loss", "augment", "optimizer", "schedule", "trainer", "callbacks", "logger",
    "experiment",
)  # fmt: skip
CHOICES = [f"{group}={choice}" for group in GROUPS for choice in options_of(group)]
MUST = {"data.root": "photos", "data.file": "table.csv", "optimizer.name": "adan"}


@cache
def composed(*overrides: str) -> dict:
    cfg = compose_alone("train", list(overrides))
    for key, value in MUST.items():
        group, name = key.split(".")
        if OmegaConf.is_missing(cfg[group], name):
            OmegaConf.update(cfg, key, value)
    return plain_config(cfg)


def keys_of(values: dict, prefix: str = "") -> list[str]:
    keys = []
    for name, value in values.items():
        key = f"{prefix}{name}"
        keys += keys_of(value, f"{key}.") if isinstance(value, dict) and value else [key]
    return keys


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_has_allowed_values(choice):
    composed(choice)


def test_every_allowed_key_exists_in_some_file():
    written = set()
    for choice in [*CHOICES, "+phases.a={epochs:1,schedule:{name:constant}}"]:
        for key in keys_of(composed(choice)):
            parts = key.split(".")
            if (parts[:2] == ["model", "heads"] and parts[3:]) or (parts[0] == "phases" and parts[2:]):
                place = 2 if parts[0] == "model" else 1
                parts[place] = "*"
            written.add(".".join(parts))
            written |= {".".join(parts[:n]) for n in range(1, len(parts))}
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for command in ("check", "augment_sheet", "pack", "sweep"):
            written |= set(keys_of(OmegaConf.to_container(compose(command))))
    assert set(ALLOWED) - written == set()


def test_every_key_of_the_files_is_explained_in_place():
    for file in conf_dir().rglob("*.yaml"):
        if file.parent.name == "experiment" or file.name in ("train.yaml", "check.yaml"):
            continue  # experiments change keys that are explained elsewhere
        text = file.read_text(encoding="utf-8")
        assert "#" in text, f"{file} explains nothing"


@pytest.mark.parametrize("group", ["cpu", "gpu", "tpu", "ddp", "fsdp"])
def test_trainer_files_have_the_same_keys(group):
    assert composed(f"trainer={group}")["trainer"].keys() == composed("trainer=cpu")["trainer"].keys()


def test_heads_follow_the_data_and_can_be_changed():
    assert list(composed("data=demo")["model"]["heads"]) == ["make", "model"]
    assert list(composed("data=oxford102")["model"]["heads"]) == ["class"]
    changed = composed("model.heads.make.dropout=0.5", "+model/head@model.heads.type=linear")["model"]["heads"]
    assert changed["make"]["dropout"] == 0.5 and changed["model"]["dropout"] == 0.0
    assert list(changed) == ["make", "model", "type"]


def test_open_mappings_take_new_keys():
    assert composed("model.backbone_kwargs={pad_type:same}")["model"]["backbone_kwargs"] == {"pad_type": "same"}
    assert composed("loss.head_weights={make:0.5}")["loss"]["head_weights"] == {"make": 0.5}


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "data.split.kind=offical",
            "data.split.kind: 'offical' is not one of official, stratified, kfold, unseen_classes; nearest: official",
        ),
        ("optimizer.lr=fast", "optimizer.lr: 'fast' is not a number above 0"),
        ("optimizer.lr=0", "optimizer.lr: 0 is not a number above 0"),
        ("data.batch_size=2.5", "data.batch_size: 2.5 is not a whole number from 1"),
        ("data.batch_size=true", "data.batch_size: True is not a whole number from 1"),
        ("data.split.fractions=[0.5,0.5]", "data.split.fractions: [0.5, 0.5] is not a list of 3 values"),
        ("model.train_layers=some", "model.train_layers: 'some' is not all, none, partial, a whole number"),
        ("model.heads.make.dropout=7", "model.heads.make.dropout: 7 is not a number from 0 to 1"),
        ("loss.head_weights={make:heavy}", "loss.head_weights: {'make': 'heavy'} is not a mapping onto values"),
        ("run.seeds=[0,1,0]", "run.seeds: [0, 1, 0] is not a list without doubles: 0 comes twice"),
        ("data.classes=[3,'3']", "data.classes: [3, '3'] is not a list without doubles: '3' comes twice"),
        (
            "trainer.devices=[1,1]",
            "trainer.devices: [1, 1] is not one of auto or a whole number from 1 or a list without",
        ),
        ("+data.colour=red", "data.colour: there is no such key"),
        ("data=folder", "data.root: must be given"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_allowed(override, line):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", overrides=[override])
    with pytest.raises(InputError) as caught:
        plain_config(cfg)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("data.rot=photos", "data.rot: there is no such key; nearest: data.root"),
        ("data=foldr", "data: 'foldr' is not one of compcars, compcars_parts, compcars_surveillance, demo, folder"),
        ("experiment=typo", "experiment: 'typo' is not one of "),
        ("dta=folder", "dta: there is no such key"),
        ("optimizer.momentum=0.9", "optimizer.momentum: the optimizer that is chosen has no such key; choose another"),
        ("phases.a.epochs=3", "phases.a.epochs: the phase does not have this key yet"),
    ],
)
def test_hydras_errors_become_one_line(override, line):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"), pytest.raises(Exception) as caught:
        compose("train", overrides=[override])
    assert hydra_message(caught.value).startswith(line) and "\n" not in hydra_message(caught.value)


def test_a_mistyped_row_of_a_table_names_the_nearest():
    with pytest.raises(InputError, match=r"'oxford102_vg16' is not one of .*; nearest: oxford102_vgg1[69]"):
        compose_alone("train", ["experiment=oxford102_vg16"])


def test_hydra_and_the_help_know_the_same_choices():
    compose_alone("train", [])  # after which the tables' rows are registered
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        assert {group: sorted(loader.get_group_options(group)) for group in (*GROUPS, "sweep")} == {
            group: options_of(group) for group in (*GROUPS, "sweep")
        }
    assert f"experiment: {', '.join(options_of('experiment'))}\n" in help_of("train")


def test_what_the_comments_point_to_is_there():
    top = conf_dir()
    names = {group: set(options_of(group)) for group in (*GROUPS, "sweep")}
    for file in top.rglob("*.yaml"):
        comments = " ".join(re.findall(r"#(.*)", file.read_text(encoding="utf-8")))
        for name in re.findall(r"(?:README|docs/[\w/-]+)\.md", comments):
            assert (top.parent / name).is_file(), f"{file}: {name}"
        for name in re.findall(r"(shared/\w+\.yaml)", comments):
            assert (file.parent / name).is_file() or (top / "experiment" / name).is_file(), f"{file}: {name}"
        for group, name in re.findall(r"(?<![\w.])(\w+)=(\w+)(?![\w.(])", comments):
            assert group not in names or name in names[group], f"{file}: {group}={name}"
        for name in re.findall(r"python -m (carvision[.\w]*)", comments):
            assert importlib.util.find_spec(name), f"{file}: {name}"


def test_values_of_unknown_keys_are_refused():
    with pytest.raises(InputError, match="seeds: there is no such key; nearest: seed"):
        check_values({"seeds": 1})


def test_the_command_line_says_it_in_one_line_without_importing_torch(tmp_path):
    # -X importtime lists every module that is imported
    for override in ("data.split.kind=offical", "data.rot=photos", "data=folder"):
        command = [sys.executable, "-X", "importtime", "-m", "carvision.train", override]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"HYDRA_FULL_ERROR": ""}
        )
        imported = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
        rest = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
        assert done.returncode == 1
        assert len(rest) == 1 and rest[0].startswith("error: data"), rest
        assert not any(line.endswith((" torch", " pytorch_lightning", " pandas")) for line in imported)
        assert list(tmp_path.iterdir()) == []


def test_help_shows_an_example_and_the_groups(run_module):
    text = run_module("carvision.train", "--help", check=0).stdout
    assert "python -m carvision.train data=folder data.root=photos" in text
    assert "data: compcars, compcars_parts, compcars_surveillance, demo, folder, manifest, oxford102, packed, " in text
    assert "python -m carvision.check" in run_module("carvision.check", "--help", check=0).stdout


def test_a_name_that_is_too_long_is_one_line():
    message = r"^error: x{100}\.\.\.: the name is too long for this disk; give a shorter one$"
    with pytest.raises(SystemExit, match=message), one_line_errors():
        Path("x" * 300).stat()


def test_a_message_has_no_codes_for_a_terminal():
    assert str(InputError("'a\nb\x1b[31m' is wrong")) == "'a\\nb\\x1b[31m' is wrong"
