"""Define the configuration's keys and their allowed values (ALLOWED), and check a configuration against them.

Imports nothing slow, so that a wrong value is reported at once.
"""

from pathlib import Path

from carvision.config.validators import (
    Check,
    distinct,
    either,
    flag,
    list_of,
    mapping,
    mapping_of,
    matching,
    number,
    one_of,
    optional,
    path,
    span,
    text,
    whole,
)
from carvision.errors import InputError, suggest

_border = one_of("reflect", "edge", "black")
_rotation = {"degrees": number(0, 180), "border": _border}
_data_sets = (
    "demo", "compcars", "compcars_surveillance", "compcars_parts", "stanford_cars", "oxford102", "folder", "manifest",
    "packed",
)  # fmt: skip
_parts = (
    "headlight", "taillight", "fog_light", "air_intake", "console", "steering_wheel", "dashboard", "gear_lever",
)  # fmt: skip

# The keys of each step of the augmentation, beside p
AUGMENT_STEPS: dict[str, dict[str, Check]] = {
    "flip": {},
    "vertical_flip": {},
    "brightness": {"factor": span(number(0))},
    "brightness_shift": {"limit": number(0, 1)},
    "contrast": {"factor": span(number(0)), "per_channel": flag},
    "saturation": {"factor": span(number(0)), "in_hsv": flag},
    "hue": {"turns": number(0, 0.5)},
    "brightness_contrast": {"brightness": number(0, 1), "contrast": number(0, 1)},
    "hue_saturation_value": {"hue": number(0, 90), "saturation": number(0, 255), "value": number(0, 255)},
    "grayscale": {},
    "rotate": _rotation,
    "shift_scale_rotate": {**_rotation, "shift": number(0, 1), "scale": number(0, 0.9)},
    "affine": {**_rotation, "shift": number(0, 1), "shear_degrees": number(0, 80), "zoom": number(0, 0.9)},
    "grid_distortion": {"num_steps": whole(1, 20), "limit": number(0, 0.9), "border": _border},
    "blur": {"kernel_px": span(one_of(*range(1, 16, 2)))},
    "erase": {
        "area": span(number(0, 0.9, above=True)),
        "ratio": span(number(0, above=True)),
        "fill": one_of("noise", "mean"),
    },
    "rand_augment": {"num_ops": whole(1, 8), "magnitude": whole(0, 30)},
    "trivial_augment": {},
}

# How many of the last layers, one layer and all after it, ...
_train_layers = either(whole(1), matching("from:.+", "from:<module>"), one_of("all", "none", "partial"))
_layers = {
    "hidden": list_of(whole(1)),
    "dropout": either(number(0, 1), list_of(number(0, 1))),
    "activation": one_of("relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid", "none"),
    "activation_slope": number(0),
    "batch_norm": either(flag, one_of("keras")),
    "bias": flag,
    "l2": either(number(0), list_of(number(0))),
    "activity_l1": either(number(0), list_of(number(0))),
    "activity_l1_reduction": one_of("mean", "sum"),
}

# "*" stands for any one name. A key whose value is a mapping is checked as a whole.
ALLOWED: dict[str, Check] = {
    "seed": whole(0, 2**32 - 1),
    "deterministic": flag,
    "compile": flag,
    "run.dir": optional(path),
    "run.allow_changes": flag,
    "run.checkpoint_every_minutes": optional(number(0)),
    "run.max_minutes": optional(number(0)),
    "run.max_epochs_per_start": optional(whole(1)),
    "run.keras_metrics": flag,
    "run.price_per_hour": optional(number(0)),
    "run.seeds": optional(distinct(list_of(whole(0, 2**32 - 1)))),
    "run.test": flag,
    "run.report": flag,
    "data.name": one_of(*_data_sets),
    "data.root": optional(path),
    "data.image_px": whole(8, 4096),
    "data.resize": one_of("squash", "crop"),
    "data.batch_size": either(whole(1), one_of("auto")),
    "data.num_workers": optional(whole(0)),
    "data.crop_to_box": flag,
    "data.allow_missing": flag,
    "data.min_images_per_class": whole(1),
    "data.classes": optional(distinct(list_of(either(text, whole(0))))),
    "data.names": optional(path),
    "data.one_against_rest": optional(either(text, whole(0))),
    "data.sampler": one_of("shuffle", "balanced", "per_class"),
    "data.photos_per_class": whole(1),
    "data.epoch_fraction": number(0, 1, above=True),
    "data.on_bad_image": one_of("error", "skip", "blank"),
    "data.split.kind": one_of("auto", "official", "stratified", "kfold", "unseen_classes"),
    "data.split.train_classes": either(whole(2), number(0, 0.999, above=True)),
    "data.split.fractions": list_of(number(0, 1), 3),
    "data.split.val_fraction": number(0, 0.9),
    "data.split.val_as_test": flag,
    "data.split.test_as_train": flag,
    "data.split.num_folds": whole(2),
    "data.split.fold": either(one_of("all"), whole(0)),
    "data.split.keep_groups": flag,
    "data.split.seed": whole(0, 2**32 - 1),
    "data.split.file": optional(path),
    "data.images_per_model": whole(20, 10_000),
    "data.part": either(one_of("all", *_parts), whole(1, len(_parts))),
    "data.download": flag,
    "data.file": path,
    "data.labels": distinct(list_of(text)),
    "data.numbers": distinct(list_of(text)),
    "data.parents": optional(mapping_of(text)),
    "data.shuffle_shards": optional(whole(1)),
    "data.cache": optional(path),
    "data.cache_gb": optional(number(0, above=True)),
    "model.backbone": text,
    "model.backbone_kwargs": optional(mapping),
    "model.weights": path,
    "model.mean": optional(list_of(number(), 3)),
    "model.std": optional(list_of(number(0, above=True), 3)),
    "model.interpolation": optional(one_of("bilinear", "bicubic", "lanczos")),
    "model.pool": one_of("default", "avg", "max", "avgmax", "catavgmax", "flatten", "gem"),
    "model.neck": list_of(one_of("spatial_dropout", "attention", "se")),
    "model.neck_dropout": number(0, 1),
    "model.attention_reduction": whole(1),
    "model.se_reduction": whole(1),
    "model.train_layers": _train_layers,
    "model.freeze_statistics": flag,
    "model.start": one_of("auto", "linear", "random"),
    "model.decoding": one_of("independent", "joint", "marginal"),
    **{f"model.{part}.{key}": check for part in ("trunk", "embedding", "difference") for key, check in _layers.items()},
    **{f"model.heads.*.{key}": check for key, check in _layers.items()},
    "loss.name": one_of("cross_entropy", "binary_cross_entropy", "focal"),
    "loss.label_smoothing": number(0, 1),
    "loss.form": one_of("softmax", "sigmoid", "binary_of_softmax"),
    "loss.gamma": number(0),
    "loss.alpha": optional(number(0, 1)),
    "loss.class_weights": one_of("none", "balanced", "effective"),
    "loss.head_weights": optional(either(mapping_of(number(0)), one_of("learned"))),
    "metric_loss.name": one_of("none", "triplet", "coupled_clusters", "supcon", "arcface", "proxy_anchor"),
    "metric_loss.label": optional(text),
    "metric_loss.weight": number(0, above=True),
    "metric_loss.heads": one_of("joint", "probe"),
    "metric_loss.margin": number(0),
    "metric_loss.mining": one_of("semi_hard", "batch_hard"),
    "metric_loss.unit_length": flag,
    "metric_loss.temperature": number(0, above=True),
    "metric_loss.scale": number(0, above=True),
    "metric_loss.alpha": number(0, above=True),
    "metric_loss.sub_centres": whole(1, 100),
    "augment.crop_scale": span(number(0, 1, above=True)),
    "augment.crop_ratio": span(number(0, above=True)),
    "augment.order": list_of(one_of(*AUGMENT_STEPS)),
    "augment.mixup": number(0),
    "augment.cutmix": number(0),
    "augment.mix_p": number(0, 1),
    **{
        f"augment.steps.{step}.{key}": check
        for step, keys in AUGMENT_STEPS.items()
        for key, check in {"p": number(0, 1), **keys}.items()
    },
    "optimizer.name": text,
    "optimizer.lr": number(0, above=True),
    "optimizer.weight_decay": number(0),
    "optimizer.lr_factors": optional(mapping_of(number(0))),
    "optimizer.layer_decay": number(0, 1, above=True),
    "optimizer.sam_rho": optional(number(0, above=True)),
    "optimizer.arguments": optional(mapping),
    "optimizer.momentum": number(0, 1),
    "optimizer.nesterov": flag,
    "optimizer.betas": list_of(number(0, 1), 2),
    "optimizer.eps": number(0),
    "optimizer.alpha": number(0, 1),
    "optimizer.rho": number(0, 1),
    "optimizer.momentum_decay": number(0),
    "optimizer.initial_accumulator_value": number(0),
    "schedule.name": one_of("constant", "cosine", "r0", "inverse_time", "plateau", "one_cycle"),
    "schedule.warmup_epochs": number(0),
    "schedule.final_fraction": number(0, 1),
    "schedule.decay": number(0),
    "schedule.peak": optional(number(0, above=True)),
    "schedule.monitor": text,
    "schedule.mode": one_of("min", "max"),
    "schedule.factor": number(0, 0.999, above=True),
    "schedule.patience": whole(1),
    "schedule.min_lr": number(0),
    "schedule.pct_start": number(0.001, 0.999),
    "schedule.div_factor": number(1),
    "schedule.final_div_factor": number(1),
    "features.keep": either(flag, one_of("auto")),
    "features.dir": optional(path),
    "features.max_gb": number(0),
    "phases": optional(mapping),
    "phases.*": mapping,
    "phases.*.optimizer": mapping,
    "phases.*.schedule": mapping,
    "phases.*.epochs": whole(1),
    "phases.*.train_layers": _train_layers,
    "trainer.accelerator": one_of("cpu", "gpu", "tpu", "auto"),
    "trainer.devices": either(one_of("auto"), whole(1), distinct(list_of(whole(0)))),
    "trainer.num_nodes": whole(1),
    "trainer.strategy": text,
    "trainer.precision": one_of("auto", "32-true", "16-mixed", "bf16-mixed", "bf16-true", "16-true", "64-true"),
    "trainer.max_epochs": optional(whole(1)),
    "trainer.accumulate_grad_batches": whole(1),
    "trainer.gradient_clip_val": optional(number(0, above=True)),
    "trainer.profiler": optional(one_of("simple", "torch")),
    "callbacks.monitor": text,
    "callbacks.mode": one_of("min", "max"),
    "callbacks.patience": optional(whole(1)),
    "callbacks.stop_monitor": optional(text),
    "callbacks.stop_mode": optional(one_of("min", "max")),
    "callbacks.ema_decay": optional(number(0, 0.99999, above=True)),
    "callbacks.progress_bar": flag,
    "logger.tensorboard": flag,
    # carvision.sweep
    "sweep.space": mapping,
    "sweep.follows": mapping,
    "sweep.trials": optional(whole(1)),
    "sweep.objective": optional(mapping_of(one_of("min", "max"))),
    "sweep.seed": whole(0, 2**32 - 1),
    "sweep.sampler": one_of("tpe", "random", "grid", "cmaes"),
    "sweep.startup_trials": whole(0),
    "sweep.grid_fraction": optional(number(0, 1, above=True)),
    "sweep.cells": optional(distinct(list_of(whole(0)))),
    "sweep.pruner": one_of("hyperband", "halving", "median", "none"),
    "sweep.min_epochs": whole(1),
    "sweep.reduction_factor": whole(2),
    "sweep.dir": optional(path),
    "sweep.storage": optional(path),  # or a URL
    "sweep.study": optional(text),
    "sweep.workers": whole(1, 1000),
    "sweep.keep": whole(1),
    "sweep.retries": whole(0),
    "sweep.dead_after_s": number(1),
    # carvision.check
    "out": optional(path),
    "num_workers": optional(whole(0)),
    "show": list_of(either(text, whole(0))),
    "num_per_class": whole(1, 100),
    # carvision.pack, beside out and num_workers
    "photos": one_of("original", "shrunk", "decoded"),
    "short_side_px": optional(whole(8)),
    "jpeg_quality": whole(1, 100),
    "shard_mb": number(0, above=True),
    "verify": optional(path),
    # carvision.augment_sheet, beside out
    "num_photos": whole(1, 60),
    "num_versions": whole(1, 30),
}

# Keys that change no result. data.root is included: moved data is fine, require_same_photos checks that it is the same.
KEYS_WITHOUT_EFFECT = {"data.num_workers", "data.root", "data.cache", "data.cache_gb"}
KEYS_WITHOUT_EFFECT |= {"callbacks.progress_bar", "trainer.profiler", "logger.tensorboard"}


def check_values(config: dict, prefix: str = "", complete: bool = True) -> None:
    """Raise InputError for the first key that is unknown or has a wrong value.

    complete: also for the first value that is missing ("???").
    """
    for name, value in config.items():
        key = f"{prefix}{name}"
        if prefix == "phases." and "." in str(name):
            raise InputError(f"phases: {name!r} is not a name without dots")
        check = check_of(key)
        if check is None and not isinstance(value, dict):
            raise InputError(f"{key}: there is no such key{suggest(key, ALLOWED)}")
        if value == "???":
            if complete:
                raise InputError(f"{key}: must be given; add {key}=<value>")
        elif wrong := check and check(value):
            raise InputError(f"{key}: {value!r} is not {wrong}")
        if isinstance(value, dict) and (check is None or f"{key}.".startswith("phases.")):
            check_values(value, f"{key}.", complete)
    if prefix.startswith("phases.") and prefix.count(".") == 2 and "epochs" not in config:
        raise InputError(f"{prefix}epochs: must be given; add +{prefix}epochs=<n>")


def check_of(key: str) -> Check | None:
    """Return the check of a key's value; None if there is no such key."""
    match key.split("."):
        case ["model", "heads", _, name]:
            key = f"model.heads.*.{name}"
        case ["phases", _, "optimizer" | "schedule", _]:  # the same keys as those of the whole run
            key = key.split(".", 2)[2]
        case ["phases", _, *names]:
            key = ".".join(["phases.*", *names])
    return ALLOWED.get(key)


def is_key(key: str) -> bool:
    """Return whether a configuration may have the key, such as data.root, model.heads.make.hidden or +phases.head."""
    return check_of(key.lstrip("+~")) is not None


def is_path(key: str) -> bool:
    """Return whether the key may hold a path."""
    return (check := check_of(key)) is not None and check(Path()) is None


def is_mapping(key: str) -> bool:
    """Return whether the key may hold a mapping, to which keys can be added."""
    return (check := check_of(key)) is not None and check({}) is None


def random_transforms(cfg: dict) -> str | None:
    """Return the keys that change a training photo from epoch to epoch, as text; None if none does.

    A frozen backbone's features can be cached only if none does.
    """
    augment = cfg["augment"]
    steps = [name for name in augment["order"] if augment["steps"][name]["p"] > 0]
    changing = [f"augment.order=[{','.join(steps)}]"] if steps else []
    changing += [f"augment.{key}={augment[key]}" for key in ("crop_scale", "crop_ratio") if set(augment[key]) != {1}]
    if augment["mix_p"]:
        changing += [f"augment.{key}={augment[key]}" for key in ("mixup", "cutmix") if augment[key]]
    if cfg["data"]["resize"] == "crop":
        changing.append("data.resize=crop")  # a random square of a training photo
    return ", ".join(changing) or None


def reason_not_cacheable(cfg: dict) -> str | None:
    """Return the setting that rules out caching features, or with which it is untested; None if there is none."""
    if cfg["trainer"]["strategy"] == "fsdp":
        return "trainer=fsdp, whose weights are sharded"
    return "trainer=tpu" if cfg["trainer"]["accelerator"] == "tpu" else None
