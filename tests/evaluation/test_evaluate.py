"""carvision.evaluate as a command: training's metrics again, several processes, other data, wrong values."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

import carvision
from carvision.evaluate import evaluate
from tests import forked
from tests.training.distributed.processes import by_torchrun, free_port, run_all


@pytest.fixture(scope="module")
def run(demo_run, tmp_path_factory):  # a copy, whose model.json evaluate may change
    return shutil.copytree(demo_run, tmp_path_factory.mktemp("evaluate") / "run")


@pytest.fixture(scope="module")
def evaluated(run):
    """The folder of an evaluation of the test photos."""
    done = forked.run("carvision.evaluate", run, "--samples", "200", cwd=run.parent, check=0)
    assert "Warning" not in done.stderr, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"evaluate: {run}/evaluations/test_")
    return run.parent / last.removeprefix("evaluate: ")


def read(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def evaluate_in(folder: Path, *arguments) -> dict:
    """Evaluate in this process, without intervals; return evaluation.json."""
    evaluate([*map(str, arguments), "--samples", "0", "--out", str(folder)])
    return read(folder)


def test_the_metrics_are_those_that_training_measured_and_of_predictions_csv(run, evaluated):
    trained, written = json.loads((run / "metrics.json").read_text()), read(evaluated)
    for name, value in trained["test"].items():
        if name == "loss_total":
            continue
        # Training logs in float32, sums the loss in another order, and has its AUC from histograms
        tolerance = 5e-3 if "auc" in name else 1e-4 if "loss" in name else 1e-6
        assert written["figures"][name] == pytest.approx(value, rel=1e-6, abs=tolerance), name
    for rule, values in trained["decodings"]["test"].items():
        assert written["decodings"][rule] == pytest.approx(values)
    rows = pd.read_csv(evaluated / "predictions.csv", dtype={"make_id": str, "model_id": str})
    splits = pd.read_csv(run / "splits.csv", dtype=str)
    wanted = splits[splits["split"] == "test"]
    assert list(rows["path"]) == list(wanted["path"]) and rows["error"].isna().all()
    for head in ("make", "model"):
        right = rows[f"{head}_id"].to_numpy() == wanted[head].to_numpy()
        assert right.mean() == pytest.approx(written["figures"][f"{head}/top1"])
        assert ((rows[head] == rows[f"{head}_true"]).to_numpy() == right).all()


@pytest.mark.parametrize(("module", "words", "last"), [
    ("carvision.evaluate", ["--samples", "0"], "carvision.evaluation.run.write_json"),
    ("carvision.embed", ["--split", "val"], "carvision.embedding.embed.write_index"),
])  # fmt: skip
def test_a_command_killed_before_its_last_file_begins_anew_in_its_folder(run, module, words, last, tmp_path):
    killing = f"import os; from unittest import mock; mock.patch('{last}', lambda *_: os._exit(9)).start()"
    out = tmp_path.with_name(f"{tmp_path.name}.killed")
    begun = forked.start(module, run, *words, "--out", "out", cwd=tmp_path, out=out, first=killing)
    assert forked.finish([begun], [out])[0].returncode == 9
    assert {".unfinished"} < {path.name for path in (tmp_path / "out").iterdir()}
    done = forked.run(module, run, *words, "--out", "out", cwd=tmp_path, check=0)
    assert "beginning anew in it" in done.stderr and done.stdout.splitlines()[-1].endswith(": out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert not {".unfinished", ".lock"} & names and names & {"evaluation.json", "embeddings.json"}
    again = forked.run(module, run, *words, "--out", "out", cwd=tmp_path, check=1)
    assert "error: --out: out exists already" in again.stderr


def test_a_temperature_fitted_on_validation_photos_is_stored_but_not_one_of_whole_photos(run, evaluated, tmp_path):
    file = run / "model.json"
    described = json.loads(file.read_text())
    stored, nll = described["temperature"], {}
    assert carvision.load(run).temperature == stored == read(evaluated)["temperature"] and stored["make"] != 1
    for factor in (0.8, 1.25, 1.0):  # the last one leaves the file as it was
        scaled = {head: value * factor for head, value in stored.items()}
        file.write_text(json.dumps({**described, "temperature": scaled}))
        written = evaluate_in(tmp_path / str(factor), run, "--split", "val", "--device", "cpu")
        nll[factor] = written["figures"]["make/nll_calibrated"]
    assert nll[1.0] < min(nll[0.8], nll[1.25])
    # Of a model that was calibrated before there were operating points: they are added, and its temperature stays
    kept = {name: value * 2 for name, value in stored.items()}
    without = {key: value for key, value in described.items() if key != "operating_points"} | {"temperature": kept}
    file.write_text(json.dumps(without))
    evaluate_in(tmp_path / "added", run, "--temperature", "none")
    assert json.loads(file.read_text()) == without
    evaluate_in(tmp_path / "added too", run)
    added = json.loads(file.read_text())
    assert added["temperature"] == kept and set(added["operating_points"]) == {"make", "model"}
    evaluate_in(tmp_path / "again", run, "--temperature", "fit")
    again = json.loads(file.read_text())
    assert again == described and again["temperature"] == stored
    # Fitted to whole photos, for this evaluation; the model's own is that of boxes, as it was trained
    fitted = evaluate_in(tmp_path / "whole", run, "data.crop_to_box=false")["temperature"]
    assert fitted != stored and json.loads(file.read_text()) == described
    words = ["--temperature", "none", "data.split.kind=stratified", "data.split.seed=5"]
    written = evaluate_in(tmp_path / "none", run, *words)
    assert written["temperature"] == {"make": 1.0, "model": 1.0}
    assert any("no temperature" in note for note in written["notes"])
    assert any(re.match(r"run was trained on [1-9]\d* of these \d+ photos", note) for note in written["notes"])


def test_two_processes_count_each_photo_once(run, evaluated, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    one = pd.read_csv(evaluated / "predictions.csv")
    assert len(one) % 2 == 0
    splits = pd.read_csv(run / "splits.csv", dtype=str)
    fewer = splits[splits["path"] != one["path"].iloc[-1]]  # so that the processes have unequal shares
    fewer.to_csv(tmp_path / "run" / "splits.csv", index=False)
    command, port = ["carvision.evaluate", "run", "--samples", "0", "--out", "two"], free_port()
    done = run_all([(command, by_torchrun(rank, 2, port)) for rank in (0, 1)], tmp_path)
    assert [process.returncode for process in done] == [0, 0], done
    assert done[0].stdout.splitlines()[-1] == "evaluate: two" and "evaluate: " not in done[1].stdout
    two = pd.read_csv(tmp_path / "two" / "predictions.csv")
    pd.testing.assert_frame_equal(two, one.iloc[:-1], rtol=1e-3)
    right = {f"{head}/top1": (one[head] == one[f"{head}_true"]).iloc[:-1].mean() for head in ("make", "model")}
    figures = read(tmp_path / "two")["figures"]
    assert {name: figures[name] for name in right} == pytest.approx(right, abs=1e-9)


def test_an_ensemble_on_photos_in_folders_some_unknown_or_unreadable(run, demo_photos, run_forked, tmp_path):
    splits = pd.read_csv(run / "splits.csv", dtype=str)
    for i, row in enumerate(splits[splits["split"] == "test"].head(20).to_dict("records")):
        target = tmp_path / "folders" / (row["model"] if i % 4 else "another") / f"{i}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(next(demo_photos.rglob(Path(row["path"]).name)), target)
    broken = next(file for file in (tmp_path / "folders").rglob("*.jpg") if file.parent.name != "another")
    broken.write_bytes(b"")
    arguments = ["data=folder", f"data.root={tmp_path / 'folders'}", "--split", "all", "--label", "class=model"]
    with pytest.raises(SystemExit, match="the file is empty"):
        evaluate([str(run), *arguments])
    arguments += ["data.on_bad_image=skip", "--samples", "0", "--temperature", "none", "--tta", "flip", "--out", "out"]
    done = run_forked("carvision.evaluate", run, "--ensemble", run, run, *arguments, check=0)
    for message in ("make: the data have no such label", "their 5 photos are not judged", "1 photos could not be read"):
        assert message in done.stderr
    unmatched = pd.read_csv(tmp_path / "out" / "unmatched.csv", dtype=str)
    assert list(unmatched.loc[unmatched["only_in"] == "data", "name"]) == ["another"]
    assert len(pd.read_csv(tmp_path / "out" / "predictions.csv")) == 15
    assert pd.read_csv(tmp_path / "out" / "bad_images.csv")["reason"].tolist() == ["the file is empty"]
    written = read(tmp_path / "out")
    assert written["ensemble"] == [str(run), str(run)] and written["tta"] == "flip"
    assert "model/top1" in written["figures"] and "make/top1" not in written["figures"]


def test_wrong_values_end_in_one_line_and_leave_nothing(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        ([run, "data=folder", "data.root=nowhere"], "data.root: nowhere does not exist"),
        ([run, "--out", run], "exists already"),
        ([run / "checkpoints" / "best.ckpt"], "not a model file"),
    ):
        with pytest.raises(SystemExit, match=rf"^error: [^\n]*{message}[^\n]*$"):
            evaluate([str(word) for word in arguments])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit, match="2"):
        evaluate([str(run), "--label", "class"])
    assert "is not of the form" in capsys.readouterr().err
