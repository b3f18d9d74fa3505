"""Wrong values of embed, retrieve and verify: one line, and nothing is left."""

import pytest

from carvision.embed import embed, options_of
from carvision.retrieve import retrieve
from carvision.verify import verify


@pytest.mark.parametrize(("command", "words", "message"), [
    (embed, "{run} --layer embedding", "--layer: the network has no embedding layers; use one of pooled, trunk"),
    (embed, "--backbone resnt18", "model.backbone: 'resnt18'"),
    (embed, "{run} --backbone resnet18", "RUN or --backbone: give one of them, not both"),
    (embed, "{run} optimizer.lr=3", "unrecognized arguments: optimizer.lr=3 (of training's keys embed takes"),
    (retrieve, "{run} --label modle", "--label: 'modle' is no label of demo with classes; nearest: model"),
    (retrieve, "{vectors} data.root=x", "data.root=x: {vectors} holds computed embeddings; give the run"),
    (retrieve, "{vectors} --query x.jpg", "--query: {vectors} holds embeddings and no network"),
    (retrieve, "{run} --query x y --box 1 2 3 4", "--box: applies to a single --query, and 2 are given"),
    (retrieve, "{run} --index hnsw", "unrecognized arguments: --index hnsw"),
    (verify, "{run} --pairs list.txt", "list.txt does not exist"),
    (verify, "{run} --pairs list.txt other/list.csv", "--pairs: two of list.txt other/list.csv have the same name"),
    (verify, "{run} --train-split val", "--train-split: val, and the lists of pairs of demo come with training photos"),
    (verify, "{run} --num-pairs 1", "--num-pairs: 1 is not a whole number from 2"),
])  # fmt: skip
def test_wrong_values_are_one_line(run, vectors, tmp_path, monkeypatch, capsys, command, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        command([word.format(run=run, vectors=vectors) for word in words.split()])
    code = ended.value.code
    line = code if isinstance(code, str) else capsys.readouterr().err.splitlines()[-1]
    assert "error: " in line and message.format(run=run, vectors=vectors) in line and "\n" not in line
    assert list(tmp_path.iterdir()) == []


def test_several_processes_are_refused_and_a_file_is_no_override(run, monkeypatch):
    options = options_of([str(run / "model.safetensors"), "data.root=x", "+data.odd=3"])
    assert options.overrides == ["data.root=x", "+data.odd=3"]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="torchrun: this command runs in one process"):
        embed([str(run)])
