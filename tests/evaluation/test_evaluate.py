"""carvision.evaluate as a command: the figures of training again, several processes, other data, wrong values."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from carvision.evaluate import evaluate
from tests import forked
from tests.training.distributed.processes import by_torchrun, free_port, run_all


@pytest.fixture(scope="module")
def run(demo_run, tmp_path_factory):
    """A copy, whose model.json evaluate may change."""
    return shutil.copytree(demo_run, tmp_path_factory.mktemp("evaluate") / "run")


@pytest.fixture(scope="module")
def evaluated(run):
    """The folder of an evaluation of the test photos."""
    done = forked.run("carvision.evaluate", run, "--samples", "200", cwd=run.parent, check=0)
    assert "Warning" not in done.stderr, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"evaluate: {run}/evaluations/test_")
    return run.parent / last.removeprefix("evaluate: ")


def figures_of(folder) -> dict:
    return json.loads((folder / "evaluation.json").read_text())["figures"]


def test_the_figures_are_those_that_training_measured(run, evaluated):
    trained = json.loads((run / "metrics.json").read_text())
    figures = figures_of(evaluated)
    for name, value in trained["test"].items():
        if name == "loss_total":
            continue
        # Training logs in float32, sums the loss in another order, and has its AUC from histograms.
        tolerance = 5e-3 if "auc" in name else 1e-4 if "loss" in name else 1e-6
        assert figures[name] == pytest.approx(value, rel=1e-6, abs=tolerance), name
    decodings = json.loads((evaluated / "evaluation.json").read_text())["decodings"]
    assert decodings == trained["decodings"]["test"]


@pytest.mark.parametrize(
    ("module", "words", "last"),
    [
        ("carvision.evaluate", ["--samples", "0"], "carvision.evaluation.run.write_json"),
        ("carvision.embed", ["--split", "val"], "carvision.embedding.embed.write_index"),
    ],
)
def test_a_killed_command_begins_anew_in_its_folder(run, module, words, last, tmp_path):
    """Killed before it has written its last file."""
    killing = f"import os; from unittest import mock; mock.patch('{last}', lambda *_: os._exit(9)).start()"
    out = tmp_path.with_name(f"{tmp_path.name}.killed")
    begun = forked.start(module, run, *words, "--out", "out", cwd=tmp_path, out=out, first=killing)
    assert forked.finish([begun], [out])[0].returncode == 9
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert ".unfinished" in left and len(left) > 1
    done = forked.run(module, run, *words, "--out", "out", cwd=tmp_path, check=0)
    assert "beginning anew in it" in done.stderr and done.stdout.splitlines()[-1].endswith(": out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert not {".unfinished", ".lock"} & names
    assert names & {"evaluation.json", "embeddings.json"}
    again = forked.run(module, run, *words, "--out", "out", cwd=tmp_path, check=1)
    assert "error: --out: out exists already" in again.stderr


def test_every_file_that_was_promised_is_there(evaluated):
    names = {file.name for file in evaluated.iterdir()}
    for head in ("make", "model"):
        files = [f"{kind}_{head}.png" for kind in ("confusion", "confused", "reliability")]
        files += [f"{kind}_{head}.csv" for kind in ("per_class", "confusion", "confused")]
        assert set(files) <= names
    assert {"coverage.png", "results.txt", "evaluation.md", "evaluation.html", "predictions.csv"} <= names
    for file in evaluated.glob("*.png"):
        assert np.asarray(Image.open(file)).std() > 5, file


def test_predictions_csv_has_each_test_photo_once_and_agrees_with_the_figures(run, evaluated):
    rows = pd.read_csv(evaluated / "predictions.csv", dtype={"make_id": str, "model_id": str})
    splits = pd.read_csv(run / "splits.csv", dtype=str)
    wanted = splits[splits["split"] == "test"]
    assert list(rows["path"]) == list(wanted["path"])
    figures = figures_of(evaluated)
    for head in ("make", "model"):
        right = rows[f"{head}_id"].to_numpy() == wanted[head].to_numpy()
        assert right.mean() == pytest.approx(figures[f"{head}/top1"])
        assert ((rows[head] == rows[f"{head}_true"]).to_numpy() == right).all()
    assert rows["error"].isna().all()


def test_the_temperature_was_fitted_on_validation_and_stored(run, evaluated):
    import carvision

    stored = json.loads((run / "model.json").read_text())["temperature"]
    assert carvision.load(run).temperature == stored and stored["make"] != 1
    assert json.loads((evaluated / "evaluation.json").read_text())["temperature"] == stored
    # and its least is there: neighbours have a larger negative log likelihood on the validation photos
    from carvision.evaluation.run import run as run_evaluation

    def nll(temperature: dict) -> float:
        file = run / "model.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "temperature": temperature}))
        folder = run.parent / f"val_{temperature['make']:.3f}"
        run_evaluation(run, [], "val", folder, [], "none", "id", {}, 0, "stored", "cpu")
        return figures_of(folder)["make/nll_calibrated"]

    least = nll(stored)
    for factor in (0.8, 1.25):
        assert nll({head: value * factor for head, value in stored.items()}) > least
    shutil.rmtree(run.parent / f"val_{stored['make']:.3f}")
    assert nll(stored) == pytest.approx(least)  # and the file is as it was


def test_a_temperature_of_other_conditions_is_not_stored(run, tmp_path):
    """Fitted to whole photos, for this evaluation; the model's own is that of boxes, as it was trained."""
    described = json.loads((run / "model.json").read_text())
    stored = described["temperature"]
    evaluate([str(run), "data.crop_to_box=false", "--samples", "0", "--out", str(tmp_path / "whole")])
    fitted = json.loads((tmp_path / "whole" / "evaluation.json").read_text())["temperature"]
    assert fitted != stored and json.loads((run / "model.json").read_text()) == described
    evaluate([str(run), "--temperature", "none", "--samples", "0", "--out", str(tmp_path / "none")])
    written = json.loads((tmp_path / "none" / "evaluation.json").read_text())
    assert written["temperature"] == {"make": 1.0, "model": 1.0} and "no temperature" in written["notes"][0]


def test_photos_that_the_run_was_trained_on_are_told(run, tmp_path):
    evaluate(
        [str(run), "data.split.kind=stratified", "data.split.seed=5", "--samples", "0", "--out", str(tmp_path / "e")]
    )
    written = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    (note,) = (note for note in written["notes"] if "trained on" in note)
    splits = pd.read_csv(run / "splits.csv", dtype=str).set_index("path")["split"]
    seen = pd.read_csv(tmp_path / "e" / "predictions.csv")["path"].map(splits)
    assert f"run was trained on {(seen == 'train').sum()} of these {len(seen)} photos" in note
    assert (seen == "train").any()


def test_two_processes_count_each_photo_once(run, evaluated, tmp_path):
    """One photo fewer, so that the processes have unequal shares."""
    shutil.copytree(run, tmp_path / "run")
    one = pd.read_csv(evaluated / "predictions.csv")
    assert len(one) % 2 == 0
    splits = pd.read_csv(run / "splits.csv", dtype=str)
    splits[splits["path"] != one["path"].iloc[-1]].to_csv(tmp_path / "run" / "splits.csv", index=False)
    command, port = ["carvision.evaluate", "run", "--samples", "0", "--out", "two"], free_port()
    done = run_all([(command, by_torchrun(rank, 2, port)) for rank in (0, 1)], tmp_path)
    assert [process.returncode for process in done] == [0, 0], done
    assert done[0].stdout.splitlines()[-1] == "evaluate: two" and "evaluate: " not in done[1].stdout
    two = pd.read_csv(tmp_path / "two" / "predictions.csv")
    pd.testing.assert_frame_equal(two, one.iloc[:-1], rtol=1e-3)
    figures = figures_of(tmp_path / "two")
    for head in ("make", "model"):
        assert figures[f"{head}/top1"] == pytest.approx((one[head] == one[f"{head}_true"]).iloc[:-1].mean(), abs=1e-9)


def test_ensemble_and_views_of_photos_in_class_folders(run, demo_photos, run_forked, tmp_path):
    """Other data, whose classes match in part, an unreadable photo among them; the run twice is itself."""
    splits = pd.read_csv(run / "splits.csv", dtype=str)
    for place, (_, row) in enumerate(splits[splits["split"] == "test"].head(20).iterrows()):
        name = row["model"] if place % 4 else "another"
        target = tmp_path / "folders" / name / f"{place}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(next(demo_photos.rglob(Path(row["path"]).name)), target)
    broken = next(file for file in (tmp_path / "folders").rglob("*.jpg") if file.parent.name != "another")
    broken.write_bytes(b"")
    arguments = ["data=folder", f"data.root={tmp_path / 'folders'}", "--split", "all", "--label", "class=model"]
    with pytest.raises(SystemExit, match="the file is empty"):
        evaluate([str(run), *arguments])
    arguments += ["data.on_bad_image=skip", "--samples", "0", "--temperature", "none", "--tta", "flip", "--out", "out"]
    done = run_forked("carvision.evaluate", run, "--ensemble", run, run, *arguments, check=0)
    assert "make: the data have no such label" in done.stderr
    assert "their 5 photos are not judged" in done.stderr and "1 photos could not be read" in done.stderr
    unmatched = pd.read_csv(tmp_path / "out" / "unmatched.csv", dtype=str)
    assert list(unmatched.loc[unmatched["only_in"] == "data", "name"]) == ["another"]
    assert len(pd.read_csv(tmp_path / "out" / "predictions.csv")) == 15
    assert pd.read_csv(tmp_path / "out" / "bad_images.csv")["reason"].tolist() == ["the file is empty"]
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written["ensemble"] == [str(run), str(run)] and written["tta"] == "flip"
    assert "model/top1" in written["figures"] and "make/top1" not in written["figures"]


def test_wrong_values_end_in_one_line_and_leave_nothing(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments, words in (
        (["nowhere"], "nowhere does not exist"),
        ([run, "data.rot=3"], "data.rot: there is no such key; nearest: data.root"),
        ([run, "data=folder", "data.root=nowhere"], "data.root: nowhere does not exist"),
        ([run, "--ensemble", "nowhere"], "nowhere does not exist"),
        ([run, "--device", "toaster"], "--device: 'toaster' is not auto"),
        ([run, "--out", run], "exists already"),
        ([run, "--label", "class=make"], "--label: 'class' is not a label of demo; it has "),
        ([run / "checkpoints" / "best.ckpt"], "not a model file"),
        ([run.parent], "no model there"),
    ):
        with pytest.raises(SystemExit) as ended:
            evaluate([str(word) for word in arguments])
        assert ended.value.code.startswith("error: ") and words in ended.value.code
        assert "\n" not in ended.value.code
    assert list(tmp_path.iterdir()) == []
    for arguments, words in (
        ([run, "--split", "tests"], "invalid choice: 'tests'"),
        ([run, "--samples", "-1"], "--samples: -1 is not a whole number from 0"),
        ([run, "--label", "class"], "is not of the form"),
    ):
        with pytest.raises(SystemExit) as ended:
            evaluate([str(word) for word in arguments])
        assert ended.value.code == 2 and words in capsys.readouterr().err
