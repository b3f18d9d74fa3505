"""The hub's folder: a card that the hub's library reads, the same model, and no path of the owner."""

import re

import pytest
import timm
import torch
from huggingface_hub import ModelCard

import carvision
from carvision.errors import InputError
from carvision.exports.hub import export_hub
from tests.exports.conftest import RUN, save_model
from tests.inference.tiny import change, rewrite


@torch.no_grad()
def test_the_hubs_library_reads_the_card_and_the_model_is_the_same_also_for_timm(tmp_path, monkeypatch):
    run, hub = save_model(tmp_path / "run"), tmp_path / "run" / "hub"
    rewrite(run, operating_points={"make": [{"accuracy": 0.95, "threshold": 0.714, "coverage": 0.666}], "speed": []})
    (run / "splits.csv").write_text("path,split,make\na.jpg,train,3\nb.jpg,train,7\nc.jpg,test,7\n")
    assert "timm/: timm, test_resnet" in export_hub(carvision.load(run), run, hub)
    card = ModelCard.load(hub / "README.md").data
    assert card.to_dict()["library_name"] == "carvision" and card.pipeline_tag == "image-classification"
    assert card.license == "unknown" and "timm" in card.tags
    found = {(each.dataset_split, each.metric_name, each.metric_type, each.metric_value) for each in card.eval_results}
    metrics = [("make/top1", "accuracy", 0.7), ("model.name/top1", "accuracy", 0.45), ("speed/mae", "mae", 13.0)]
    assert found == {("test", *metric) for metric in metrics}
    text = (hub / "README.md").read_text()
    for line in (
        "| model.name | 3 | A4, X5, X5 |", "| speed | a number | in km/h |", "- began with: first", "- weights: raw",
        "- data: cars, 2 photos train, 1 photos test", "| make | accuracy | 0.75 | 0.7 |",
        "- decoding: `joint`, the most probable pair of classes that fits together",
        "- make: from a probability of 0.71 on, 95 % of the answers to validation photos were right; 67 % of the "
        "photos have it.",
        "| model.name | accuracy | 0.5 | 0.45 |", "| all heads right | accuracy | 0.4 |  |",
    ):  # fmt: skip
        assert line in text.splitlines(), line
    images = torch.randn(2, 3, 64, 64)
    ours, theirs = carvision.load(run), carvision.load(hub)
    for name, values in ours(images).items():
        assert torch.equal(values, theirs(images)[name])
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", lambda repo_id, filename, **_: str(hub / filename))
    network = timm.create_model("hf-hub:somebody/cars", pretrained=True).eval()
    assert torch.allclose(network(images), ours(images)["model.name"], atol=1e-5)
    for file in hub.rglob("*"):
        if file.is_file():
            for private in (b"secret", b"owner/", str(run).encode()):
                assert private not in file.read_bytes(), f"{private} in {file}"


def test_the_cards_examples_run_and_no_file_says_where_it_was_made(example_folder, exports, demo_photos, monkeypatch):
    monkeypatch.chdir(exports / "hub")
    blocks = (exports / "hub" / "README.md").read_text().split("```python\n")[1:]
    assert len(blocks) == 2 and "boxes=[(" in blocks[0]  # of a run on boxes
    for block in blocks:
        exec(block.partition("```")[0].replace("a.jpg", str(example_folder / "a.jpg")), {})
    assert "run:\n  dir: " + RUN.name in (exports / "hub" / "README.md").read_text()
    for file in exports.rglob("*.*"):
        if file.suffix != ".pt2":  # which is compressed: test_graphs.py
            content = file.read_bytes()
            assert str(example_folder).encode() not in content and str(demo_photos).encode() not in content, file


def test_markup_in_names_is_escaped_in_the_card(tmp_path):
    run = save_model(tmp_path / "run")
    nasty = "a|b\n---\nlicense: mit\n```\n<script>alert(1)</script> [x](javascript:y)"
    change(run, "labels.make.names", [nasty, "*b*"])
    change(run, "labels.speed.unit", nasty)
    rewrite(run, versions={"carvision": nasty}, config={
        "data": {"name": "folder", "root": f"/x/{nasty}"}, "model": {"weights": nasty}, "callbacks": {"monitor": nasty},
    })  # fmt: skip
    export_hub(carvision.load(run), run, run / "hub")
    card = ModelCard.load(run / "hub" / "README.md")
    assert card.data.license == "unknown" and card.data.to_dict()["library_name"] == "carvision"
    text, _, configuration = card.text.partition("<summary>Configuration of the training</summary>")
    assert r"\<script>alert(1)\</script> \[x\](javascript:y)" in text and r"\*b\*" in text
    assert not re.search(r"(?<!\\)(<script|\|b|\[x)", text) and "\nlicense: mit" not in text
    fence = re.search(r"^(`{4,})yaml$", configuration, re.MULTILINE)[1]
    assert configuration.rstrip().endswith(f"\n{fence}\n\n</details>")


def test_without_metrics_and_without_timm(tmp_path):
    run = save_model(tmp_path / "run", "stanford_small_cnn")
    model = carvision.load(run)
    model.about["metrics"] = {}
    summary = export_hub(model, run, run / "hub")
    assert "no timm form: timm lacks stanford_small_cnn" in summary and not (run / "hub" / "timm").exists()
    card = ModelCard.load(run / "hub" / "README.md")
    assert card.data.eval_results is None and "timm alone" not in card.text
    with pytest.raises(InputError, match="timm lacks the network stanford_small_cnn"):
        export_hub(model, run, run / "other", head="make")
