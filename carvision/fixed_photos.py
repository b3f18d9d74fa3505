"""Whether the features of a frozen backbone are the same in every epoch, as a configuration has it. Imports nothing."""


def random_transforms(cfg: dict) -> str | None:
    """The keys that give a training photo another look in each epoch; None where it is always the same."""
    augment = cfg["augment"]
    steps = [name for name in augment["order"] if augment["steps"][name]["p"] > 0]
    changing = [f"augment.order=[{','.join(steps)}]"] if steps else []
    changing += [f"augment.{key}={augment[key]}" for key in ("crop_scale", "crop_ratio") if set(augment[key]) != {1}]
    if augment["mix_p"]:
        changing += [f"augment.{key}={augment[key]}" for key in ("mixup", "cutmix") if augment[key]]
    if cfg["data"]["resize"] == "crop":
        changing.append("data.resize=crop")  # the square lies anywhere in a training photo
    return ", ".join(changing) or None


def reason_not_cacheable(cfg: dict) -> str | None:
    """What of this run has not been tried with kept features, or can't be."""
    if cfg["trainer"]["strategy"] == "fsdp":
        return "trainer=fsdp, whose weights are divided"
    return "trainer=tpu" if cfg["trainer"]["accelerator"] == "tpu" else None
