"""Build checks of values, for schema.ALLOWED and for JSON files that anybody may have written."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import cast

from carvision.errors import InputError, one_line, suggest

# A check returns None for a valid value, else what is allowed: the end of the sentence "<key>: <value> is not ...".
Check = Callable[[object], str | None]

# Limits of a JSON file: more than a model of 100,000 classes or a pack of 100,000 shards needs, and read within seconds
MAX_JSON_BYTES, MAX_JSON_VALUES = 16_000_000, 1_000_000


def parse_json(content: bytes, name: str) -> object:
    """Parse JSON text in UTF-8. name: the file's, for messages.

    Raises InputError if it is not JSON, or exceeds MAX_JSON_BYTES or MAX_JSON_VALUES.
    """
    if len(content) > MAX_JSON_BYTES or content.count(b",") > MAX_JSON_VALUES:
        raise InputError(
            f"{name}: holds more than {MAX_JSON_BYTES / 1e6:.0f} MB or {MAX_JSON_VALUES:,} values, which none that "
            "carvision writes does; it is damaged or was changed by hand"
        )
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: can't be read as JSON ({one_line(error, 120)})") from None


def one_of(*words: str) -> Check:
    """Allow these words."""
    return lambda value: None if value in words else f"one of {', '.join(words)}{suggest(str(value), words)}"


def whole(low: int, high: float = float("inf")) -> Check:
    """Allow whole numbers from `low` to `high`, and no booleans."""
    reach = f"from {low}" if high == float("inf") else f"from {low} to {high}"
    return lambda value: (
        None
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        else f"a whole number {reach}"
    )


def number(low: float = float("-inf"), high: float = float("inf"), above: bool = False) -> Check:
    """Allow numbers from `low` to `high`. above: `low` itself is not allowed."""
    reach = f" above {low:g}" if above else f" from {low:g}" if low > float("-inf") else ""
    reach += f" to {high:g}" if high < float("inf") else ""

    def check(value):
        valid = isinstance(value, int | float) and not isinstance(value, bool)
        valid = valid and (low < value if above else low <= value) and value <= high
        return None if valid else f"a number{reach}"

    return check


def flag(value) -> str | None:
    """Allow true and false."""
    return None if isinstance(value, bool) else "true or false"


def text(value) -> str | None:
    """Allow text that is not empty."""
    return None if isinstance(value, str) and value else "non-empty text"


def path(value) -> str | None:
    """Allow a path; the only check that takes a Path, by which schema.is_path knows the keys that hold one."""
    return None if isinstance(value, str | Path) and str(value) else "a path"


def mapping(value) -> str | None:
    """Allow any mapping."""
    return None if isinstance(value, dict) else "a mapping such as {key: value}"


def mapping_of(check: Check) -> Check:
    """Allow mappings whose values all pass the check."""

    def all_values(value):
        wrong = mapping(value) or next((check(item) for item in value.values() if check(item)), None)
        return wrong and (wrong if wrong.startswith("a mapping") else f"a mapping onto values that are each {wrong}")

    return all_values


def list_of(check: Check, length: int | None = None) -> Check:
    """Allow lists, of this length if given, whose items all pass the check."""

    def all_items(value):
        if not isinstance(value, list) or (length is not None and len(value) != length):
            return f"a list of {length} values" if length else "a list such as [a, b]"
        wrong = next((check(item) for item in value if check(item)), None)
        return wrong and f"a list whose items are each {wrong}"

    return all_items


def record(**checks: Check) -> Check:
    """Allow mappings with exactly these keys, whose values pass the checks."""

    def all_keys(value):
        if not isinstance(value, dict) or value.keys() != checks.keys():
            return f"a mapping with the keys {', '.join(checks)}"
        return next(
            (f"one whose {key} is {wrong}" for key, each in checks.items() if (wrong := each(value[key]))), None
        )

    return all_keys


def matching(pattern: str, what: str) -> Check:
    """Allow text that the pattern matches as a whole, in ASCII. what: the name of such text, for messages."""
    compiled = re.compile(pattern, re.ASCII)
    return lambda value: None if isinstance(value, str) and compiled.fullmatch(value) else what


def distinct(check: Check) -> Check:
    """Allow lists that pass the check and have no item twice."""

    def without_doubles(value):
        wrong = check(value)
        if wrong:
            return wrong
        twice = next((item for index, item in enumerate(value) if str(item) in map(str, value[:index])), None)
        return None if twice is None else f"a list without doubles: {twice!r} comes twice"

    return without_doubles


def optional(check: Check) -> Check:
    """Allow null, too."""
    return lambda value: None if value is None else (lambda wrong: wrong and f"{wrong}, or null")(check(value))


def either(*checks: Check) -> Check:
    """Allow what passes one of the checks."""

    def one_fits(value):
        wrong = [reason for check in checks if (reason := check(value))]
        return None if len(wrong) < len(checks) else " or ".join(wrong)

    return one_fits


def learned(value) -> str | None:
    """Allow the word "learned"."""
    return None if value == "learned" else "the word learned"


def train_layers(value) -> str | None:
    """Allow the values of model.train_layers."""
    if value in ("all", "none", "partial") or whole(1)(value) is None:
        return None
    if isinstance(value, str) and value.startswith("from:") and len(value) > len("from:"):
        return None
    return "all, none, partial, a whole number from 1 (the last so many layers), or from:<module>"


def span(check: Check) -> Check:
    """Allow lists of two values that pass the check, the smaller first."""

    def ordered(value):
        wrong = list_of(check, 2)(value)
        if wrong or value[0] > value[1]:
            return wrong or "two values of which the first is the smaller"
        return None

    return ordered


def odd(low: int, high: int) -> Check:
    """Allow odd whole numbers from `low` to `high`."""
    return lambda value: (
        None if whole(low, high)(value) is None and cast(int, value) % 2 else f"an odd number from {low} to {high}"
    )


def check_parent(name: str, label: dict, labels: dict) -> None:
    """Raise InputError unless a label's classes refer to classes of its parent, and no label is its own ancestor.

    A parent that `labels` lacks (the make, for a network with only a head for models) may be any word.
    """
    above: set[str | None] = {name}
    parent = label.get("parent")
    if parent not in labels:
        return
    ids, codes = labels[parent].get("ids"), label.get("parent_codes", [])
    if ids is None:
        raise InputError(f"labels.{name}.parent: {shown(parent)} has no classes")
    if len(codes) != len(label["ids"]) or max(codes) >= len(ids):
        raise InputError(f"labels.{name}.parent_codes: not a class of {parent} for each of {len(label['ids'])} classes")
    while parent in labels:
        if parent in above:
            raise InputError(f"labels.{name}.parent: {shown(parent)} is above itself")
        above.add(parent)
        parent = labels[parent].get("parent")


def shown(value: object) -> str:
    """Return the value for a message: its repr, cut after 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
