"""The configuration: every file composes, every key is checked, every mistake gives one line; overrides as typed."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from carvision.config import compose
from carvision.config.compose import compose_alone, conf_dir, help_of, options_of, plain_config
from carvision.config.overrides import expand_options, parse_overrides, with_quoted_paths
from carvision.config.schema import ALLOWED, check_values
from carvision.errors import InputError, one_line_errors
from carvision.search.space import read_space, split_overrides

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
    ("data.split.kind=offical", "data.split.kind: 'offical' is not one of auto, official, stratified, kfold, uns"),
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
    assert "carvision train data=folder data.root=photos" in help_of("train")
    for command, keys in {"check": ("out", "show", "num_per_class"), "pack": ("photos", "shard_mb", "verify")}.items():
        text = help_of(command)
        assert all(f"\n  {key}=" in text for key in keys) and "optimizer:" not in text and "compcars, " in text


def test_errors_are_one_line_without_control_codes_or_odd_bytes():
    with pytest.raises(InputError, match="seeds: there is no such key; nearest: seed"):
        check_values({"seeds": 1})
    message = r"^error: x{100}\.\.\.: the name is too long for this disk; give a shorter one$"
    with pytest.raises(SystemExit, match=message), one_line_errors():
        Path("x" * 300).stat()
    assert str(InputError("K\udce4fer.jpg is missing")) == "K\\xe4fer.jpg is missing"
    assert str(InputError("'a\nb\x1b[31m' is wrong")) == "'a\\nb\\x1b[31m' is wrong"


PATHS = [
    "/x/Blüten", "photos (1)", "a#b", "it's", "[new]", "{x}", "a,b", "日本", "$HOME/x", "~no-one/x", "ends with\\",
    "C:\\photos", "a'b\\'c", "a\"b'c", "2024", "true", "choice(1,2)", "epoch=9-step=100.ckpt", "a${b", " lead",
    "s3://bucket/k?x=y&z=1,2", "!x", "%d", "a;b", "*?", "nullable",
]  # fmt: skip


def value_of(word: str):
    [override] = parse_overrides([word])
    return override.value()


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_taken_literally(path):
    for prefix in ("", "+", "++"):
        [word] = quoted = with_quoted_paths([f"{prefix}data.root={path}"])
        assert value_of(word) == path.replace("${", "\\${")  # as OmegaConf has it
        assert with_quoted_paths(quoted) == quoted


def test_paths_arrive_in_the_configuration():
    words = ["data=manifest", "data.root=a${b (it's)", "data.file=[a].csv", "data.split.file=~/s=1.csv", "out=~/a,b"]
    cfg = plain_config(compose_alone("check", words))
    assert (cfg["data"]["root"], cfg["data"]["file"]) == ("a${b (it's)", "[a].csv")
    assert (cfg["data"]["split"]["file"], cfg["out"]) == (f"{os.environ['HOME']}/s=1.csv", f"{os.environ['HOME']}/a,b")
    words = ["sweep.dir=~/a,b", "sweep.storage=postgresql://u:p=w@h/db?a=b", "+sweep.space.x='${y}'"]
    _, settings = compose.compose_sweep(words)
    assert settings["dir"] == f"{os.environ['HOME']}/a,b" and settings["storage"] == "postgresql://u:p=w@h/db?a=b"
    assert settings["space"] == {"x": "${y}"}


def test_null_quotes_and_interpolations_keep_their_meaning(tmp_path, monkeypatch):
    assert value_of("data.root=null") is None and value_of("data.root=") == ""
    assert value_of("data.root='it\\'s'") == "it's" and value_of('data.root="a b"') == "a b"
    assert value_of("data.root=${oc.env:HOME}/x") == "${oc.env:HOME}/x"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "${oc.env:HOME}").mkdir()  # a folder of exactly that name
    assert value_of("data.root=${oc.env:HOME}") == "\\${oc.env:HOME}"


def test_home_folders_are_expanded_in_files_and_options(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = {"data": {"root": "~/photos", "classes": ["~"], "split": {"file": "~no-one/s.csv"}}, "out": "~"}
    data = {"root": "/home/me/photos", "classes": ["~"], "split": {"file": "~no-one/s.csv"}}
    assert compose.checked(given) == {"data": data, "out": "/home/me"}
    words = ["RUN", "--out=~/a.csv", "--out", "~/b", "--label=a=~b", "--root=~no-one", "-x=~"]
    assert expand_options(words) == ["RUN", "--out=/home/me/a.csv", *words[2:]]


@pytest.mark.parametrize(("word", "wanted"), [
    ("data.root=~/a,/x/Blüten", ["~/a", "/x/Blüten"]),
    ("data.root=choice(~/a,'b, c',it's (1))", ["~/a", "b, c", "it's (1)"]),
    ("model.weights=tag('seed==1',choice(~/x,random,a (1)))", ["~/x", "random", "a (1)"]),
    ("data.root=2024_01,1e-3,null,a b", ["2024_01", "1e-3", None, "a b"]),
])  # fmt: skip
def test_several_paths_in_a_search(word, wanted):
    space = read_space(split_overrides([word, "seed=1,2"])[1], {}, lambda key: True)
    [dimension] = [dimension for dimension in space.dimensions if dimension.key != "seed"]
    drawn = [space.overrides({dimension.key: value})[0] for value in dimension.values()]
    assert [value_of(word) for word in drawn] == wanted
    if "tag(" not in word:  # and as Hydra's -m splits them
        [override] = OverridesParser.create().parse_overrides(with_quoted_paths([word], sweeps=True))
        parts = override.sweep_string_iterator()
        assert [value_of(f"{override.get_key_element()}={part}") for part in parts] == wanted


def test_one_path_and_null_in_a_search(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b").mkdir()
    assert split_overrides(["data.root=a,b", "sweep.dir=c,d", "data.file='e,f'"])[1] == []
    assert [key.partition("=")[0] for key in split_overrides(["data.root=c,d"])[1]] == ["data.root"]
    assert with_quoted_paths(["data.root=c,d"]) == ["data.root='c,d'"]  # outside a search
    for word in ("a.b=null,3", "a.b=tag('seed==1',choice(null,3))"):
        space = read_space(split_overrides([word, "seed=1,2"])[1], {}, lambda key: True)
        assert next(found.choices for found in space.dimensions if found.key == "a.b") == ("null", 3)
    word = "callbacks.patience=choice(null,3)"
    assert with_quoted_paths([word], sweeps=True) == ["callbacks.patience=null,3"]  # for -m


@pytest.mark.parametrize(("word", "shown"), [
    ("data.classes=[it's,b]", r'''"data.classes=['it\'s',b]"'''),
    ("model.backbone=res net#", "\"model.backbone='res net#'\""),
    ("optimizer.name=a\"$b'", None),
])  # fmt: skip
def test_the_message_shows_the_quoting_that_works(word, shown):
    with pytest.raises(InputError) as caught:
        compose_alone("train", [word])
    line, key = str(caught.value), word.partition("=")[0]
    assert line.startswith(f"{key}: ") and "\n" not in line
    [typed] = shlex.split(line.partition("within the word: ")[2])
    assert shown is None or line.endswith(shown)  # and a shell reads it as Python does
    printed = subprocess.run(["sh", "-c", f"printf %s {line.partition('within the word: ')[2]}"], capture_output=True)
    assert printed.stdout.decode() == typed
    assert ALLOWED[key](value_of(typed)) is None
    assert str(value_of(typed)).count("'") >= word.count("'")


def test_paths_with_hydras_own_flags(tmp_path):
    """--config-dir and --cfg, with an experiment in a folder of an odd name."""
    folder = tmp_path / "it's (1)" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\nseed: 7\n", encoding="utf-8")
    words = ["--config-dir=~/it's (1)", "experiment=mine", "data=folder", "data.root=Blüten (1)"]
    words += ["model.weights=a=1, b"]
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "carvision.train", *words, "--cfg", "job"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", env=environment)
    assert done.returncode == 0, done.stderr
    assert all(line in done.stdout for line in ("seed: 7", "  root: Blüten (1)", "  weights: a=1, b")), done.stdout
