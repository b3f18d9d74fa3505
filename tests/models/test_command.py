"""python -m carvision.models: which networks it lists, and what it says of them."""

import subprocess
import sys

import pytest

from carvision.errors import InputError
from carvision.models.__main__ import matching_names, num_parameters, row_of, show


def names(*words: str, report=None, pretrained=False, tags=False) -> list[str]:
    return matching_names(list(words), report, pretrained, tags)


def test_words_narrow_the_list():
    assert len(names()) > 1000
    assert {"resnet50", "seresnet50", "alexnet", "oxford102_benchmark", "cars196_cnn", "resnet10_slim"} <= set(names())
    assert all("resnet" in name and "50" in name for name in names("ResNet", "50"))
    assert names("resnet5?") == ["resnet50"]
    assert "wide_resnet50_2" in names("*resnet50*") and "wide_resnet50_2" not in names("resnet50*")
    assert set(names("test_", pretrained=True)) <= set(names("test_"))
    assert names("oxford102") == ["oxford102_benchmark"]


def test_tags_name_sets_of_weights():
    assert "resnet50.tv_in1k" in names("resnet50", tags=True)
    assert names("resnet50.tv_in1k") == ["resnet50.tv_in1k"]
    assert "alexnet" in names("alexnet", tags=True)


def test_networks_of_a_report():
    assert names(report="r3") == ["mobilenetv2_100.ra_in1k"]
    assert len(names(report="r4")) == 11
    assert names("small", report="r1") == ["stanford_small_cnn"]
    assert len(names(report="r1", pretrained=True)) == 5


@pytest.mark.parametrize(
    ("words", "kwargs", "message"),
    [
        (["resnt50"], {}, "no network is named like resnt50; nearest: resnet50"),
        (["xqzxqz"], {}, "no network is named like xqzxqz$"),
        (["alexnet"], {"pretrained": True}, "no network is left of alexnet --pretrained"),
        (["convnext"], {"report": "r4"}, "no network is left of convnext --report r4"),
    ],
)
def test_nothing_found_is_one_line(words, kwargs, message):
    with pytest.raises(InputError, match=message):
        names(*words, **kwargs)


def test_a_row():
    assert row_of("resnet50")[0::4] == ("resnet50", "R1 R2 R4")
    assert row_of("resnet50")[3].startswith("a1_in1k (+")
    assert row_of("resnet50.tv_in1k") == ("resnet50.tv_in1k", "23.51", "224", "yes", "R1 R2 R4")
    assert row_of("resnet50.a1_in1k")[3:] == ("yes", "")
    assert row_of("oxford102_benchmark") == ("oxford102_benchmark", "0.03", "256", "none", "R4")
    assert num_parameters("mobilenetv2_100") == 2_223_872


def test_large_networks_and_long_lists_are_cut(capsys):
    show(["vgg16", "resnet50", "mobilenetv2_100", "mobilenetv1_100"], 30.0, 2)
    done = capsys.readouterr()
    assert [line.split()[0] for line in done.out.splitlines()] == ["network", "resnet50", "mobilenetv2_100"]
    assert done.err == "the first 2; more words narrow the list, --limit 0 shows all of it\n"
    show(["vgg16", "resnet50", "mobilenetv2_100"], 30.0, 2)
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match="--max-params: all 1 networks of these names have more than 30 million"):
        show(["vgg16"], 30.0, 2)


def test_the_command_without_a_match_ends_with_one_line(run_forked):
    done = run_forked("carvision.models", "mobilnetv2_100", check=1)
    assert done.stdout == ""
    assert done.stderr.startswith("error: no network is named like mobilnetv2_100; nearest: mobilenetv2_100")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_stops_early_is_no_error():
    command = [sys.executable, "-m", "carvision.models", "resnet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("network")
        process.stdout.close()
        assert process.stderr.read() == ""
