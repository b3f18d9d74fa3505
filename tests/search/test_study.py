"""The study: its journal after a kill, its identity, Hyperband's brackets, samplers; and the search as composed."""

import optuna
import pytest

from carvision.errors import InputError
from carvision.search.build import build_sweep
from carvision.search.queue import CELL
from carvision.search.space import read_space, split_overrides
from carvision.search.study import BEGUN_WITH, JOURNAL, brackets_of, create_pruner, describe_brackets, open_storage
from tests.search.small_sweeps import LR, small_sweep, study_of

pytestmark = pytest.mark.optuna


def test_the_journal_of_a_worker_killed_while_writing_is_continued(tmp_path):
    sweep = small_sweep(tmp_path / "sweep", LR)
    journal = sweep.folder / JOURNAL
    sweep.folder.mkdir(exist_ok=True)
    journal.write_bytes(b'{"op_code":0,')  # in its first line
    study, other = study_of(sweep), study_of(sweep)
    study.tell(study.ask(), 1.0)
    before = journal.read_bytes()
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"' + b"x" * 30_000)  # more than one chunk
    assert len(other.trials) == 1
    other.tell(other.ask(), 2.0)
    study.tell(study.ask(), 3.0)
    assert journal.read_bytes().startswith(before) and b"x{" not in journal.read_bytes()
    assert [trial.value for trial in study_of(sweep).trials] == [1.0, 2.0, 3.0]


def test_a_changed_search_is_refused_with_the_difference(tmp_path):
    folder, same = tmp_path / "sweep", [LR, "optimizer=choice(sgd,adam)"]
    study_of(small_sweep(folder, *same))
    study = study_of(small_sweep(folder, *same, "sweep.trials=7", "data.root=elsewhere", "sweep.keep=1"))
    begun = study.user_attrs[BEGUN_WITH]  # by a version that lacked two keys
    del begun["training"]["data.names"], begun["training"]["model.heads.make.l2"]
    study.set_user_attr(BEGUN_WITH, begun)
    study_of(small_sweep(folder, *same))
    for words, message in (
        (["optimizer=choice(sgd,adamw)", LR], r"optimizer: choice\(sgd,adam\) became choice\(sgd,adamw\)\. Give the"),
        ([*same, "callbacks.mode=max"], "sweep.objective: min val/loss became max val/loss"),
        ([*same, "data.names=names.csv"], r"with other values: data\.names: nothing became names\.csv\. Give"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            study_of(small_sweep(folder, *words))
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_the_root_may_be_searched_and_is_required_only_to_run():
    assert [one.key for one in build_sweep(["data=folder", "data.root=a b,c"]).space.dimensions] == ["data.root"]
    assert "optimizer.lr" in {one.key for one in build_sweep(["sweep=r1"], complete=False).space.dimensions}
    with pytest.raises(InputError, match=r"^data\.root: must be given; add data\.root=<value>$"):
        build_sweep(["sweep=r1"])


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    folder = tmp_path / "sweep"
    folder.mkdir()
    for name, content in (("notes.txt", "mine"), ("journal.log", "Dear diary\n"), ("trials.csv", "patient,dose\n")):
        (folder / name).write_text(content)
        with pytest.raises(InputError, match=r"sweep\.dir: .*sweep holds something that this command did not write"):
            study_of(small_sweep(folder, LR))
        for path in folder.iterdir():
            path.unlink()
    storage = open_storage(None, folder)  # a new journal, in which another program begins a study
    optuna.create_study(storage=storage, study_name="theirs").ask()
    with pytest.raises(InputError, match=r"sweep\.dir: .*did not write \(journal\.log\)"):
        study_of(small_sweep(folder, LR, "sweep.study=theirs"))


def test_another_study_or_programs_is_not_continued(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sweep").mkdir()
    url = f"sqlite:///{tmp_path / 'sweep' / 'studies.db'}"
    optuna.create_study(storage=url, study_name="theirs", direction="minimize").ask()
    words = [tmp_path / "sweep", LR, "sweep.storage=sqlite:///~/sweep/studies.db"]
    with pytest.raises(InputError, match=r"sweep\.study: 'theirs' is another program's study; give another name"):
        study_of(small_sweep(*words, "sweep.study=theirs"))
    study_of(small_sweep(*words, "sweep.study=mine"))
    for name in ("logs", "trials"):
        (tmp_path / "sweep" / name).mkdir()
    study_of(small_sweep(*words, "sweep.study=mine"))
    with pytest.raises(InputError, match="holds trials of another study than 'other'"):
        study_of(small_sweep(*words, "sweep.study=other"))


@pytest.mark.parametrize("attributes", [{"retry_of": 0}, {"surplus": True}, {CELL: 5}])
def test_trials_that_earlier_code_gave_several_numbers_are_refused(attributes, tmp_path):
    study = study_of(small_sweep(tmp_path / "sweep", LR))
    study.ask()
    study_of(small_sweep(tmp_path / "sweep", LR))
    study.enqueue_trial({}, attributes)
    with pytest.raises(InputError, match="interrupted trials under new numbers; finish it with that version, or give"):
        study_of(small_sweep(tmp_path / "sweep", LR))


@pytest.mark.parametrize("first, most, factor", [(1, 5, 5), (2, 30, 3), (3, 3, 2)])
def test_brackets_are_those_of_optuna(first, most, factor, tmp_path):
    words = ["sweep.pruner=hyperband", f"sweep.min_epochs={first}", f"sweep.reduction_factor={factor}"]
    sweep = small_sweep(tmp_path, LR, *words, f"trainer.max_epochs={most}", "sweep.trials=4")
    pruner = create_pruner(sweep.settings, sweep.num_epochs)
    pruner._try_initialization(None)
    assert [share for share, _ in brackets_of(sweep)] == pruner._trial_allocation_budgets
    for halving, (_, rungs) in zip(pruner._pruners, brackets_of(sweep), strict=True):
        theirs = [first * factor ** (halving._min_early_stopping_rate + rung) for rung in range(9)]
        assert rungs == [rung for rung in theirs if rung < most]
    *lines, last = describe_brackets(sweep)
    if most == 5:
        assert lines[1].endswith("about 3 trials; one of 5 continues after 1") and "none is pruned" in lines[2]
        assert "4 trials are too few for these brackets, which need 7" in last


@pytest.mark.parametrize("first", [1, 2, 3])
def test_the_median_pruner_judges_no_trial_before_min_epochs(first, tmp_path):
    words = ["sweep.pruner=median", f"sweep.min_epochs={first}", "trainer.max_epochs=4", "callbacks.mode=min"]
    study, pruned = study_of(small_sweep(tmp_path, LR, *words)), []
    for value in [1.0] * 5 + [2.0]:
        trial = study.ask()
        for epoch in range(1, 5):
            trial.report(value, epoch)
            pruned.append(trial.should_prune())
        study.tell(trial, value)
    assert pruned == [False] * 20 + [epoch >= first for epoch in range(1, 5)]


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes"])
def test_every_sampler_draws_within_the_space_and_reproducibly(sampler, tmp_path):
    words = [LR, "model.trunk.dropout=range(0,0.6,step=0.1)", "sweep.startup_trials=4", f"sweep.sampler={sampler}"]
    if sampler != "cmaes":
        words += ["optimizer=choice(sgd,adamw)", "optimizer.momentum=tag('optimizer==sgd',choice(0,0.9))"]
    drawn: list[list[dict]] = [[], []]
    for name, values in enumerate(drawn):
        sweep = small_sweep(tmp_path / f"{name}", *words)
        study = study_of(sweep)
        for _ in range(8):
            trial = study.ask()
            values.append(sweep.space.draw(trial))
            study.tell(trial, values[-1]["optimizer.lr"] + values[-1]["model.trunk.dropout"])
            assert 1e-4 <= values[-1]["optimizer.lr"] <= 1e-1 and values[-1]["model.trunk.dropout"] <= 0.5
            assert ("optimizer.momentum" in values[-1]) == (values[-1].get("optimizer") == "sgd")
    assert drawn[0] == drawn[1]


def space_of(words, follows=None):
    """Read a space in which keys with a dot are the configuration's, others new names."""
    return read_space(words, follows or {}, lambda key: "." in key or key in ("optimizer", "loss", "seed"))


def drawn_of(space, count: int = 60) -> list[dict]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [space.draw(study.ask()) for _ in range(count)]


def test_each_kind_of_dimension_draws_what_the_grammar_says():
    space = space_of([
        "optimizer.lr=tag(log,interval(1e-5,1e-1))", "model.trunk.dropout=range(0,0.6,step=0.1)",
        "optimizer=choice(sgd,adam,rmsprop)", "data.batch_size=16,32", "trainer.max_epochs=int(interval(2,4))",
        "model.neck=choice([se],[attention,se])", "seed=range(3)", "loss=null,focal",
    ])  # fmt: skip
    drawn = drawn_of(space, 300)
    lr = [one["optimizer.lr"] for one in drawn]
    assert 1e-5 <= min(lr) < 1e-4 and 1e-2 < max(lr) <= 1e-1 and 0.3 < sum(v < 1e-3 for v in lr) / 300 < 0.7
    assert {key: {one[key] for one in drawn} for key in drawn[0] if key != "optimizer.lr"} == {
        "model.trunk.dropout": {0, 0.1, 0.2, 0.3, 0.4, 0.5}, "optimizer": {"sgd", "adam", "rmsprop"},
        "data.batch_size": {16, 32}, "trainer.max_epochs": {2, 3, 4}, "model.neck": {"[se]", "[attention,se]"},
        "seed": {0, 1, 2}, "loss": {"null", "focal"},
    }  # fmt: skip
    assert f"model.neck={drawn[0]['model.neck']}" in space.overrides(drawn[0])


def test_conditions_hold_for_the_drawn_values_in_any_order_of_the_overrides():
    words = [
        "a.b=tag('n>=2','m!=x',choice(64,128))", "n=range(1,4)", "m=choice(x,y)", "c.d=tag('a.b==128',interval(0,1))"
    ]  # fmt: skip
    drawn = drawn_of(space_of(words))
    assert all(("a.b" in one) == (one["n"] >= 2 and one["m"] != "x") for one in drawn)
    assert all(("c.d" in one) == (one.get("a.b") == 128) for one in drawn)
    assert {len(one) for one in drawn} == {2, 3, 4}
    drawn = drawn_of(space_of(["optimizer.nesterov=true,false", "a.b=tag('optimizer.nesterov==true',choice(1,2))"]))
    assert {("a.b" in one, one["optimizer.nesterov"]) for one in drawn} == {(True, "True"), (False, "False")}


def test_a_grid_has_every_combination_once():
    space = space_of(["n=range(1,4)", "a.b=tag('n>=2',choice(64,128))", "a.m=choice(x,y)"])
    grid = [tuple(sorted(one.items())) for one in space.grid()]
    assert len(grid) == len(set(grid)) == (1 + 2 + 2) * 2
    with pytest.raises(InputError, match=r"a\.lr: .* has infinitely many values"):
        space_of(["a.lr=interval(0,1)", "a.n=1,2"]).grid()


def test_the_last_override_of_a_key_wins():
    words = ["optimizer.lr=1e-3", "seed=1,2", "optimizer.lr=interval(0,1)", "seed=3", "loss=focal"]
    assert split_overrides(words) == (["seed=3", "loss=focal"], ["optimizer.lr=interval(0,1)"])


def test_keys_follow_from_drawn_keys_and_new_names():
    follows = {
        "model.trunk.hidden": "${repeat:${times:2,${units}},${layers}}",
        "model.heads.make.hidden": "${halving:${units},${layers}}",
        "model.heads.make.dropout": "${model.trunk.dropout}",
        "optimizer.betas": "${pick:${optimizer},{adam:[${beta},0.999]}}",
    }
    names = ["units=choice(64,128)", "layers=range(1,4)", "beta=tag('optimizer==adam',choice(0.8,0.9))"]
    space = space_of([*names, "model.trunk.dropout=range(3)", "optimizer=choice(adam,sgd)"], follows)
    words = space.overrides({"units": 64, "layers": 3, "model.trunk.dropout": 2, "optimizer": "adam", "beta": 0.9})
    assert words == [
        "model.trunk.dropout=2", "optimizer=adam", "model.trunk.hidden=[128,128,128]",
        "model.heads.make.hidden=[64,32,16]", "model.heads.make.dropout=2", "optimizer.betas=[0.9,0.999]",
    ]  # fmt: skip
    words = space.overrides({"units": 64, "layers": 1, "model.trunk.dropout": 2, "optimizer": "sgd"})
    assert not any(word.startswith("optimizer.betas") for word in words)  # null is left out
    with pytest.raises(InputError, match=r"sweep\.follows: .* is not a whole number"):
        space_of(["units=choice(5,7)"], {"a.b": "${halving:${units},2}"}).overrides({"units": 5})
    with pytest.raises(InputError, match=r"sweep\.follows: .*'unit' not found"):
        space_of(["units=choice(5,7)"], {"a.b": "${times:${unit},${units}}"}).overrides({"units": 5})


@pytest.mark.parametrize("words, message", [
    (["optimizer.lr=tag(lg,interval(0,1))"], "the tag 'lg' is neither log nor a condition"),
    (["a.b=tag('layer>=2',choice(1,2))", "layers=1,2"], "names layer, which is not searched; nearest: layers"),
    (["a.a=tag('a.b==1',choice(1,2))", "a.b=tag('a.a==1',choice(1,2))"], "of a.a and a.b depend on each other"),
    (["a.b=tag('optimizer==adm',choice(1,2))", "optimizer=sgd,adam"], "compares with none of the drawn values"),
    (["a.b=interval(2,1)"], "the smaller first"), (["a.b=tag(log,interval(0,1))"], "above 0"),
    (["optimiser=choice(a,b)"], "optimiser: there is no such key, and nothing follows from it; nearest: opt"),
    (["a.b=glob(*)"], "takes choice, range or interval, not glob"), (["a=1"], "nothing is searched"),
])  # fmt: skip
def test_a_mistake_is_one_line(words, message):
    with pytest.raises(InputError, match=message) as caught:
        space_of(split_overrides(words)[1])
    assert "\n" not in str(caught.value)
