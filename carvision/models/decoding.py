"""Decode logits to predicted classes where one label follows from another (make from model)."""

from torch import Tensor

RULES = ("independent", "joint", "marginal")


def decode(
    logits: dict[str, Tensor],
    parents: dict[str, tuple[str, Tensor]],
    rule: str,
    likeliest: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return the predicted classes of logits {head: (B, C)}, as {head: int64 (B,)}.

    parents: {child: (parent, codes)}, codes int64 (child classes,): the parent's class for each of the child's.
    likeliest: each head's most probable classes, if already computed.
    rule: "independent": each head's most probable class; make and model may contradict each other.
    "joint": the most probable pair that fits together, by p(make) * p(model).
    "marginal": the most probable model; the make whose models' probabilities have the largest sum.
    """
    predicted = dict(likeliest or {name: values.argmax(dim=1) for name, values in logits.items()})
    if rule == "independent":
        return predicted
    for child, (parent, codes) in parents.items():
        if child not in logits or parent not in logits:
            continue
        of_child, of_parent = logits[child].float(), logits[parent].float()
        if rule == "joint":
            # Logits instead of log p: for one photo they differ by a constant, the same for all pairs
            predicted[child] = (of_child + of_parent.index_select(1, codes)).argmax(dim=1)
            predicted[parent] = codes[predicted[child]]
        else:
            predicted[parent] = sum_by_parent(of_child.softmax(dim=1), codes, of_parent.shape[1]).argmax(dim=1)
    return predicted


def sum_by_parent(probs: Tensor, codes: Tensor, num_parents: int) -> Tensor:
    """Sum the columns of each parent's children: probs (B, children) -> (B, num_parents)."""
    return probs.new_zeros(len(probs), num_parents).index_add_(1, codes, probs)


def probs_of(logits: dict[str, Tensor], temperature: dict[str, float]) -> dict[str, Tensor]:
    """Return softmax(logits / temperature), float32 (B, C), of each head in `temperature`; Guo et al. 2017, eq. 9."""
    return {name: (logits[name].float() / value).softmax(dim=1) for name, value in temperature.items()}
