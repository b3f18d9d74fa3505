"""python -m carvision.models: the networks that it lists, and their rows."""

import pytest

from carvision.errors import InputError
from carvision.models.__main__ import matching_names, row_of, show


def names(*words: str, report=None, pretrained=False, tags=False) -> list[str]:
    return matching_names(list(words), report, pretrained, tags)


def test_words_tags_and_reports_narrow_the_list():
    assert len(names()) > 1000
    assert {"resnet50", "seresnet50", "alexnet", "oxford102_benchmark", "cars196_cnn", "resnet10_slim"} <= set(names())
    assert all("resnet" in name and "50" in name for name in names("ResNet", "50"))
    assert names("resnet5?") == ["resnet50"] and names("oxford102") == ["oxford102_benchmark"]
    assert set(names("test_", pretrained=True)) <= set(names("test_"))
    assert "resnet50.tv_in1k" in names("resnet50", tags=True) and "alexnet" in names("alexnet", tags=True)
    assert names("small", report="r1") == ["stanford_small_cnn"] and len(names(report="r1", pretrained=True)) == 5
    with pytest.raises(InputError, match="no network is left of convnext --report r4 --pretrained"):
        names("convnext", report="r4", pretrained=True)
    assert row_of("resnet50")[3].startswith("a1_in1k (+")
    assert row_of("resnet50.tv_in1k") == ("resnet50.tv_in1k", "23.51", "224", "yes", "R1 R2 R4")


def test_large_networks_and_long_lists_are_cut(capsys):
    show(["vgg16", "resnet50", "mobilenetv2_100", "mobilenetv1_100"], 30.0, 2)
    done = capsys.readouterr()
    assert [line.split()[0] for line in done.out.splitlines()] == ["network", "resnet50", "mobilenetv2_100"]
    assert done.err == "the first 2; more words narrow the list, --limit 0 shows all of it\n"


def test_the_command_without_a_match_ends_with_one_line(run_forked):
    done = run_forked("carvision.models", "mobilnetv2_100", check=1)
    assert done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: no network is named like mobilnetv2_100; nearest: mobilenetv2_100")
