"""Decide from a configuration whether a frozen backbone's features can be cached. Imports nothing."""


def random_transforms(cfg: dict) -> str | None:
    """Return the keys that change a training photo from epoch to epoch, as text; None if it stays the same."""
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
    """Return what makes caching features impossible or has not been tried with it; None if nothing does."""
    if cfg["trainer"]["strategy"] == "fsdp":
        return "trainer=fsdp, whose weights are sharded"
    return "trainer=tpu" if cfg["trainer"]["accelerator"] == "tpu" else None
