"""Say in a sentence how good a model is, and above which probability to believe it."""

import numpy as np

from carvision.evaluation.calibration import MIN_ANSWERS, answers_of, threshold_for
from carvision.reports.tables import percent
from carvision.run_report.gather import RunResults

WANTED = 0.95  # accuracy of the answers that are worth believing, at least


def verdict(results: RunResults) -> list[str]:
    """Return sentences: accuracy with its interval, the threshold of WANTED, other heads, what is uncertain."""
    head, values, intervals = results.main_head, results.measured.values, results.measured.intervals
    what = f"{results.split if results.split == 'test' else 'validation'} photos"
    if head is None:
        return _number_sentences(results, what)
    part = results.heads[head]
    name = f"{head}/top1"
    low, high = intervals.get(name, (np.nan, np.nan))
    sentence = (
        f"It names the right {head} for {share(values[name])} [{percent(low)}, {percent(high)}] of {len(part.right):,} "
        f"{what}"
    )
    others = [f"the right {other} for {share(values[f'{other}/top1'])}" for other in results.heads if other != head]
    if "joint/top1" in values and len(results.heads) > 1:
        others.append(f"and {'both' if len(results.heads) == 2 else 'all of them'} for {share(values['joint/top1'])}")
    sentences = [", ".join([sentence, *others]) + "."]
    sentences.append(_belief(results, head))
    if results.split == "val":
        sentences.append(
            "There are no test photos: the epoch was chosen by these photos, so the truth is a little worse."
        )
    if high - low > 0.1:
        sentences.append("The interval is wide, as there are few photos: more of them would tell more.")
    return sentences


def _belief(results: RunResults, head: str) -> str:
    """Return the sentence about the probability above which answers can be believed."""
    part = results.heads[head]
    threshold = threshold_of(results, head)
    if threshold is None:
        return "No probability sets right answers apart: check every one."
    accepted = part.confidence >= threshold
    if not accepted.any():
        return f"Believe it above {threshold:.2f}, which no photo here reaches."
    return (
        f"Believe it above a probability of {threshold:.2f}: it is so sure of {share(accepted.mean(), 0)} of them, "
        f"and right in {share(part.right[accepted].mean())} of these."
    )


def threshold_of(results: RunResults, head: str) -> float | None:
    """Return the lowest probability above which half as many validation photos are wrong as of all, and at most 5 %.

    None if there is none. Without validation photos it is chosen by those shown.
    """
    confidence, right = _confidence_and_right(results, head, "val" if "val" in results.judged else results.split)
    if not len(right):
        return None
    return threshold_for(confidence, right, max(WANTED, 1 - (1 - right.mean()) / 2), MIN_ANSWERS)


def _confidence_and_right(results: RunResults, head: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the probability of the predicted class and whether it is right, of the photos of known class."""
    if split == results.split:
        part = results.heads[head]
    else:  # by the same decoding rule
        predictions, rule = results.judged[split].predictions, results.model.about["decoding"]
        part = answers_of(predictions, results.labels, rule).get(head)
    return (np.zeros(0), np.zeros(0, bool)) if part is None else (part.confidence, part.right)


def share(value: float, digits: int = 1) -> str:
    """Return a value 0..1 in %, with a space at which no line breaks."""
    return f"{percent(value, digits)}\N{NO-BREAK SPACE}%"


def _number_sentences(results: RunResults, what: str) -> list[str]:
    sentences = []
    for name, label in results.labels.items():
        if f"{name}/mae" in results.measured.values:
            low, high = results.measured.intervals[f"{name}/mae"]
            error = results.measured.values[f"{name}/mae"]
            count = int(results.judged[results.split].predictions.known(name).sum())
            sentences.append(
                f"The {name} is wrong by {error:.4g} {label.get('unit', '')} [{low:.4g}, {high:.4g}] on average, over "
                f"{count:,} {what}."
            )
    return sentences
