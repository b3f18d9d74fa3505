"""Build checks of values, for schema.ALLOWED and for JSON files that anybody may have written."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

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


def one_of(*choices: str | int) -> Check:
    """Allow these words or whole numbers; not True or 1.0 for 1."""
    words = [str(choice) for choice in choices]

    def check(value):
        valid = type(value) in (str, int) and value in choices
        return None if valid else f"one of {', '.join(words)}{suggest(str(value), words)}"

    return check


def number(low: float = -math.inf, high: float = math.inf, above: bool = False, only_whole: bool = False) -> Check:
    """Allow numbers from `low` to `high`, and no booleans. above: `low` itself is not allowed."""
    kind, name = (int, "a whole number") if only_whole else (int | float, "a number")
    reach = f" above {low}" if above else f" from {low}" if low > -math.inf else ""
    reach += f" to {high}" if high < math.inf else ""

    def check(value):
        valid = isinstance(value, kind) and not isinstance(value, bool)
        valid = valid and (low < value if above else low <= value) and value <= high
        return None if valid else f"{name}{reach}"

    return check


def whole(low: int, high: float = math.inf) -> Check:
    """Allow whole numbers from `low` to `high`, and no booleans."""
    return number(low, high, only_whole=True)


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
        if not isinstance(value, dict):
            return mapping(value)
        wrong = next(filter(None, map(check, value.values())), None)
        return wrong and f"a mapping onto values that are each {wrong}"

    return all_values


def list_of(check: Check, length: int | None = None) -> Check:
    """Allow lists, of this length if given, whose items all pass the check."""

    def all_items(value):
        if not isinstance(value, list) or (length is not None and len(value) != length):
            return f"a list of {length} values" if length else "a list such as [a, b]"
        wrong = next(filter(None, map(check, value)), None)
        return wrong and f"a list whose items are each {wrong}"

    return all_items


def record(**checks: Check) -> Check:
    """Allow mappings with exactly these keys, whose values pass the checks."""

    def all_keys(value):
        if not isinstance(value, dict) or value.keys() != checks.keys():
            return f"a mapping with the keys {', '.join(checks)}"
        found = ((key, check(value[key])) for key, check in checks.items())
        return next((f"one whose {key} is {wrong}" for key, wrong in found if wrong), None)

    return all_keys


def matching(pattern: str, what: str) -> Check:
    """Allow text that the pattern matches as a whole, in ASCII. what: the name of such text, for messages."""
    compiled = re.compile(pattern, re.ASCII)
    return lambda value: None if isinstance(value, str) and compiled.fullmatch(value) else what


def distinct(check: Check) -> Check:
    """Allow lists that pass the check and have no item twice."""

    def without_doubles(value):
        if wrong := check(value):
            return wrong
        twice = next((item for item, count in Counter(map(str, value)).items() if count > 1), None)
        return twice and f"a list without doubles: {twice} comes twice"

    return without_doubles


def optional(check: Check) -> Check:
    """Allow null, too."""

    def unless_null(value):
        wrong = None if value is None else check(value)
        return wrong and f"{wrong}, or null"

    return unless_null


def either(*checks: Check) -> Check:
    """Allow what passes one of the checks."""

    def one_fits(value):
        wrong = [reason for check in checks if (reason := check(value))]
        return None if len(wrong) < len(checks) else " or ".join(wrong)

    return one_fits


def span(check: Check) -> Check:
    """Allow lists of two values that pass the check, the smaller first."""

    def ordered(value):
        wrong = list_of(check, 2)(value)
        return wrong or ("two values of which the first is the smaller" if value[0] > value[1] else None)

    return ordered


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
