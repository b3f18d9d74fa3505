"""LitClassifier: its loss recomputed, which photos count, augmentation, checkpoints, averaged weights."""

import math

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from carvision.data.table import UNKNOWN
from carvision.models.classifier import Classifier, Head, Layers
from carvision.training.callbacks import MovingAverage
from carvision.training.module import LitClassifier
from carvision.training.optim import Phase

CODES = [0, 0, 1, 2]  # the make of each model
LABELS = {
    "make": {"ids": ["1", "2", "3"], "names": ["A", "B", "C"], "parent": None, "parent_codes": []},
    "model": {"ids": list("abcd"), "names": list("abcd"), "parent": "make", "parent_codes": CODES},
    "speed": {"unit": "km/h", "mean": 200.0, "std": 25.0},
}
AUGMENT = {"order": [], "steps": {"flip": {"p": 0.5}}, "mixup": 0.0, "cutmix": 0.0, "mix_p": 1.0}
FLIP = AUGMENT | {"order": ["flip"]}
OPTIMIZER = {"name": "adamw", "lr": 3e-3, "weight_decay": 0.01}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def phases() -> list[Phase]:
    return [Phase(name="", epochs=1, train_layers="all", optimizer=OPTIMIZER, schedule={"name": "constant"})]


def lit_classifier(heads=("make", "model"), seed=0, trunk=Layers(), **values) -> LitClassifier:  # noqa: B008
    torch.manual_seed(seed)
    sizes = {"make": Head(3), "model": Head(4, Layers((8,))), "speed": Head(1, mean=200.0, std=25.0)}
    model = Classifier("test_resnet", {name: sizes[name] for name in heads}, 32, trunk=trunk)
    arguments = {
        "description": model.description, "labels": {name: LABELS[name] for name in heads},
        "preprocessing": {"size_px": 32, "mean": list(MEAN), "std": list(STD)},
        "loss": {"name": "cross_entropy", "label_smoothing": 0.0, "head_weights": None},
        "phases": phases(), "augment": AUGMENT, "class_weights": {},
    }  # fmt: skip
    return LitClassifier(**arguments | values, model=model)


def batch_of(num: int = 16, seed: int = 0) -> dict:
    random = torch.Generator().manual_seed(seed)
    model = torch.arange(num) % 4
    return {
        "images": torch.randint(0, 256, (num, 3, 32, 32), dtype=torch.uint8, generator=random),
        "targets": {
            "make": torch.tensor(CODES)[model], "model": model, "speed": 200 + 25 * torch.randn(num, generator=random)
        },
        "index": torch.arange(num), "draws": torch.rand(num, 4, generator=random),
        "valid": torch.ones(num, dtype=torch.bool),
    }  # fmt: skip


def fit(lit: LitClassifier, batches: list[dict], epochs: int, *callbacks: pl.Callback) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=[*callbacks], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, check_val_every_n_epoch=epochs,
    )  # fmt: skip
    trainer.fit(lit, DataLoader(batches, batch_size=None), DataLoader(batches, batch_size=None))
    return trainer


def test_sixteen_random_photos_are_learned_and_a_checkpoint_gives_the_same_logits(tmp_path):
    lit = lit_classifier(heads=("make", "model", "speed"), decoding="joint")
    trainer = fit(lit, [batch_of()], epochs=40)
    values = {name: value.item() for name, value in trainer.callback_metrics.items()}
    names = [f"{s}/{n}" for s in ("train", "val") for n in ("make/top1", "model/top1", "joint/top1")]
    assert {values[name] for name in names} == {1} and values["val/speed/mae"] < 5, values
    assert values["train/loss_total"] < 0.3
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt")  # refuses anything but tensors and plain values
    assert checkpoint["hyper_parameters"]["description"]["backbone"] == "test_resnet"
    assert all(name.startswith("model.") for name in checkpoint["state_dict"])
    loaded = LitClassifier.load_from_checkpoint(tmp_path / "last.ckpt").eval()
    assert loaded.hparams.decoding == "joint"
    photos = batch_of(4, seed=3)["images"]
    assert all(torch.equal(loaded(photos)[name], values) for name, values in lit.eval()(photos).items())


def normalised(images: torch.Tensor) -> torch.Tensor:
    return (images.float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def test_the_loss_is_the_weighted_sum_of_the_heads_losses_plus_penalties():
    trunk = Layers((16,), l2=0.01, activity_l1=0.001)
    loss = {"name": "cross_entropy", "label_smoothing": 0.1, "head_weights": {"make": 0.5, "speed": 3.0}}
    lit = lit_classifier(heads=("make", "model", "speed"), trunk=trunk, loss=loss).eval()
    batch = batch_of()
    batch["targets"]["make"][:3], batch["targets"]["speed"][5:9], batch["valid"][10:12] = UNKNOWN, math.nan, False
    logits, penalty, *_ = lit.model.outputs(normalised(batch["images"]))
    expected = {}
    for name in ("make", "model"):
        known = batch["valid"] & (batch["targets"][name] >= 0)
        expected[name] = F.cross_entropy(logits[name][known], batch["targets"][name][known], label_smoothing=0.1)
    known = batch["valid"] & ~batch["targets"]["speed"].isnan()
    expected["speed"] = F.smooth_l1_loss(logits["speed"][known, 0] / 25, batch["targets"]["speed"][known] / 25)
    total = 0.5 * expected["make"] + expected["model"] + 3 * expected["speed"] + penalty
    assert penalty > 0
    found, weights = lit.training_step(batch, 0), list(lit.parameters())
    torch.testing.assert_close(found, total)
    slopes = [torch.autograd.grad(value, weights, materialize_grads=True) for value in (found, total)]
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-4)
    values = lit.train_metrics.compute()
    wanted = {f"{name}/loss": value.item() for name, value in expected.items()}
    wanted |= {"loss": (total - penalty).item(), "loss_total": total.item()}
    assert {name: values[name] for name in wanted} == pytest.approx(wanted, rel=1e-5)


def test_a_batch_of_unreadable_photos_changes_no_weight():
    lit, batch = lit_classifier(heads=("make", "model", "speed")).eval(), batch_of()
    batch["valid"][:], batch["targets"]["speed"][:] = False, math.nan
    lit.training_step(batch, 0).backward()
    assert all((p.grad == 0).all() for p in lit.parameters() if p.grad is not None)


def test_class_weights_count_in_training_and_not_in_validation():
    weights = [0.5, 2.0, 7.0]
    lit = lit_classifier(heads=("make",), class_weights={"make": weights}).eval()
    batch = batch_of()
    targets, logits = batch["targets"]["make"], lit(batch["images"])["make"]
    lit.validation_step(batch, 0)
    plain = F.cross_entropy(logits, targets).item()
    assert lit.val_metrics.compute()["make/loss"] == pytest.approx(plain, rel=1e-5)
    lit.training = True  # the loss' mode, while batch norm stays as it was above
    weighted = F.cross_entropy(logits, targets, weight=torch.tensor(weights)).item()
    assert lit.training_step(batch, 0).item() == pytest.approx(weighted, rel=1e-5)
    assert lit.train_metrics.compute()["make/loss"] == pytest.approx(weighted, rel=1e-5)


def test_photos_are_augmented_only_in_training():
    batch = batch_of()
    mirrored = {**batch, "images": batch["images"].flip(3)}
    flipping = lit_classifier(augment={**FLIP, "steps": {"flip": {"p": 1.0}}}).eval()
    still = lit_classifier().eval()
    torch.testing.assert_close(flipping.training_step(batch, 0), still.training_step(mirrored, 0))
    for lit in (flipping, still):
        lit.validation_step(batch, 0)
    assert flipping.val_metrics.compute() == still.val_metrics.compute()


def test_mixed_photos_have_the_losses_of_both_weighted_by_their_shares():
    lit = lit_classifier(heads=("make", "model", "speed"), augment={**AUGMENT, "mixup": 1.0}, seed=3).eval()
    batch = batch_of()
    batch["targets"]["model"][2], batch["targets"]["speed"][5] = UNKNOWN, math.nan
    images, partner, share = lit.mix(batch["images"].float() / 255, batch["valid"], (0, 0, 0, 0))
    assert ((share > 0) & (share < 1)).sum() > 10
    found = lit.training_step(batch, 0).item()
    logits = lit.model(normalised(255 * images))
    total = 0.0
    for name, targets in batch["targets"].items():
        losses = weights = 0.0
        for i in range(16):
            for photo, part in ((i, share[i]), (partner[i], 1 - share[i])):
                if any(value.isnan() or value == UNKNOWN for value in (targets[photo], targets[i])):
                    continue
                if name == "speed":
                    loss = F.smooth_l1_loss(logits[name][i, 0] / 25, targets[photo] / 25)
                else:
                    loss = F.cross_entropy(logits[name][i], targets[photo])
                losses, weights = losses + part * loss, weights + part
        total += losses / weights
    assert found == pytest.approx(total.item(), rel=1e-5)


def test_each_step_has_a_randomness_of_its_own_that_seed_and_batch_decide():
    lit, drawn = lit_classifier(), []
    for seed, batch_idx in ((0, 0), (0, 1), (1, 0), (0, 0)):
        lit.seed = seed
        lit.on_train_batch_start({}, batch_idx)
        drawn.append(torch.rand(4).tolist())
    assert drawn[0] == drawn[3] and drawn[0] != drawn[1] != drawn[2] != drawn[0]


def test_the_optimizer_is_not_fused_if_lightning_could_not_clip_its_gradients():
    for precision, clip, fused in (("bf16-mixed", 1.0, False), ("bf16-mixed", None, True)):
        options = {"precision": precision, "gradient_clip_val": clip, "max_epochs": 1}
        trainer = pl.Trainer(accelerator="cpu", logger=False, barebones=True, **options)
        trainer.fit(lit_classifier(), DataLoader([batch_of()], batch_size=None))
        assert bool(trainer.optimizers[0].defaults["fused"]) is fused


def test_weights_and_statistics_are_averaged_with_a_decay_that_is_warmed_up():
    lit, states = lit_classifier(), []
    kept = pl.callbacks.LambdaCallback(
        on_train_batch_end=lambda *_: states.append({n: value.clone() for n, value in lit.model.state_dict().items()})
    )
    fit(lit, [batch_of(8, seed=seed) for seed in range(10)], 1, kept, MovingAverage(0.5))
    average = states[0]
    for num, state in enumerate(states[1:], 1):
        decay = min(0.5, (1 + num) / (10 + num))  # 0.5 at the eighth update
        for name, value in state.items():
            average[name] = decay * average[name] + (1 - decay) * value if value.is_floating_point() else value
    for name, value in lit.model.state_dict().items():
        torch.testing.assert_close(value, average[name], rtol=1e-4, atol=1e-6)
    counters = [value for name, value in average.items() if name.endswith("num_batches_tracked")]
    assert counters and all(counter == 10 for counter in counters)
