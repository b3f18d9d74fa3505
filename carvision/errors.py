"""The one error that is shown to a person as a single line, without a traceback."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something a person gave is wrong. The message names the value, what was allowed, and the mend."""


def nearest(value: str, allowed: Iterable[str], count: int = 3) -> str:
    """``"; nearest: a, b"`` for the allowed words most like `value`, or an empty string."""
    by_lower = {word.lower(): word for word in allowed}
    hits = difflib.get_close_matches(value.lower(), by_lower, n=count, cutoff=0.5)
    return f"; nearest: {', '.join(by_lower[hit] for hit in hits)}" if hits else ""
