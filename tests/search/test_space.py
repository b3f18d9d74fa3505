"""The space of a search: Hydra's grammar, conditions, keys that follow from drawn values."""

import optuna
import pytest

from carvision.errors import InputError
from carvision.search.space import read_space, split_overrides


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
    (["a.b=choice(1,2,1.0)"], "1.0 comes twice; give each choice once"),
    (["optimiser=choice(a,b)"], "optimiser: there is no such key, and nothing follows from it; nearest: opt"),
    (["a.b=glob(*)"], "takes choice, range or interval, not glob"), (["a=1"], "nothing is searched"),
])  # fmt: skip
def test_a_mistake_is_one_line(words, message):
    with pytest.raises(InputError, match=message) as caught:
        space_of(split_overrides(words)[1])
    assert "\n" not in str(caught.value)
