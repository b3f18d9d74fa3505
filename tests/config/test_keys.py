"""Keys are described by the comments of conf/."""

import pytest

from carvision.config.compose import conf_dir
from carvision.config.keys import describe_keys, find_keys
from carvision.config.schema import ALLOWED
from carvision.errors import InputError
from carvision.keys import keys


def test_every_key_is_described_with_its_file_and_default():
    known = describe_keys()
    assert {key.name for key in known} == set(ALLOWED)
    assert [key.name for key in known if not key.comment or not key.allowed] == []
    assert [key.name for key in known if not key.default and not key.name.startswith("phases.*")] == []
    for key in known:
        assert "#" not in key.default and "\n" not in key.comment and not key.allowed.startswith(";"), key
        if key.file:
            last = key.name.rpartition(".")[2]
            assert f"{last}:" in (conf_dir() / key.file).read_text(encoding="utf-8"), key


def test_comments_and_defaults_are_those_of_the_files():
    of = {key.name: key for key in describe_keys()}
    kind = of["data.split.kind"]
    assert kind.default == "auto" and kind.allowed == "one of auto, official, stratified, kfold, unseen_classes"
    assert kind.comment.startswith(
        "auto: official where the data set has a split of its own, else stratified; official"
    )
    assert kind.comment.endswith("than in training, for carvision retrieve") and kind.file == "data/shared/base.yaml"
    assert of["data.image_px"].default == "224" and of["data.image_px"].others == {"data=demo": "64"}
    assert of["optimizer.lr"].default == "1e-3" and of["optimizer.lr"].others["optimizer=sgd"] == "0.01"
    assert of["optimizer.nesterov"].only_with == "optimizer=sgd" and of["run.dir"].allowed == "a path or null"
    assert of["model.heads.*.hidden"].comment == of["model.trunk.hidden"].comment == "units of each layer"
    assert of["augment.steps.blur.kernel_px"].default == "[3, 7]"
    assert of["phases.*.epochs"].comment == "its passes over the training photos; must be given"
    assert [key.file for key in describe_keys() if key.name == "out"] == [
        "augment_sheet.yaml", "check.yaml", "pack.yaml"
    ]  # fmt: skip


@pytest.mark.parametrize(("word", "names"), [
    ("model.heads.make.hidden", ["model.heads.*.hidden"]), ("phases.head.optimizer.lr", ["optimizer.lr"]),
    ("phases.head.epochs", ["phases.*.epochs"]), ("logger", ["logger.tensorboard"]),
])  # fmt: skip
def test_a_key_is_found_by_name_and_a_group_by_its_keys(word, names):
    assert [key.name for key in find_keys(word)] == names


def test_the_command_explains_a_key_and_names_the_nearest(capsys):
    keys(["data.split.kind=kfold"])
    assert "default  auto\n  allowed  one of auto, official" in " ".join(capsys.readouterr().out.split(" "))
    keys(["experiment"])
    assert "experiment=<choice>: " in capsys.readouterr().out
    keys(["trainer"])
    assert "trainer=<choice>: cpu, ddp, fsdp, gpu, tpu\n\ntrainer.accelerator" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"lr: there is no such key; nearest: optimizer.lr; carvision keys lists all"):
        keys(["lr"])
    with pytest.raises(InputError, match=r"nearest: data.split.kind"):
        find_keys("data.split.kinds")
