"""Overrides: the words <key>=<value> of a command line. Imports no torch, and Hydra only to parse.

The value of a key that holds a path is the rest of the word as it stands: data.root=photos (1), model.weights=a=1.ckpt.
All others are in Hydra's grammar.
"""

import inspect
import os
import re
import shlex
from functools import cache
from typing import TYPE_CHECKING

from carvision.config.schema import ALLOWED, check_of, is_path
from carvision.errors import nearest

if TYPE_CHECKING:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override

WORD = re.compile(r"(?P<prefix>\+{0,2})(?P<key>[A-Za-z_][^\s=]*)=(?P<value>.*)", re.DOTALL)
QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
IS_QUOTED = re.compile(QUOTED, re.DOTALL)
ITEM = re.compile(rf"\s*({QUOTED}|(?:\$\{{[^{{}}]*\}}|[^,])+?)\s*(?:,|$)", re.DOTALL)  # of a list, without its comma
PLAIN = re.compile(r"[A-Za-z0-9_/.+%@|-]+")  # needs no quotes, if a number may be one
PLAIN_PATH = re.compile(r"(?!(?:true|false|inf|nan)$)(?:[a-z_]|\.{0,2}/)[a-z0-9_/.+%@|-]*", re.IGNORECASE)
CHOICE = re.compile(r"(?P<tags>tag\(.*?)?\bchoice\((?P<items>.*)\)(?(tags)\))", re.DOTALL)
FUNCTION = re.compile(r"(bool|choice|float|glob|int|interval|range|shuffle|sort|str|tag)\(")


def with_quoted_paths(words: list[str], sweeps: bool = False) -> list[str]:
    """The same overrides for Hydra, which would parse what people type for paths as lists, calls or nothing at all.

    null, ${...} and a value in quotes keep their meaning. sweeps: `a,b` and `choice(a,b)` are several paths, unless a
    file or folder has that very name. What is quoted already stays, so this may be applied again.
    """
    return [_with_quoted_path(word, sweeps) for word in words]


def _with_quoted_path(word: str, sweeps: bool) -> str:
    match = WORD.fullmatch(word)
    if not match:
        return expand_options([word])[0]
    key, value = match["key"], match["value"]
    head = word[: match.start("value")]
    choice = CHOICE.fullmatch(value) if sweeps else None
    if not is_path(key):
        # Hydra's choice() takes anything but null, and a list without it takes null, too
        has_null = choice and not choice["tags"] and "null" in choice["items"].lower()
        return f"{head}{choice['items']}" if choice and has_null else word
    if sweeps and not key.startswith("sweep.") and not _exists(value):
        items = ITEM.findall(choice["items"] if choice else value)
        if choice and choice["tags"]:
            return f"{head}{choice['tags']}choice({','.join(map(quote_item, items))}))"
        if not choice and FUNCTION.match(value) and value.endswith(")"):
            return word
        if choice or len(items) > 1:
            return head + ",".join(map(quote_item, items))
    return head + quote(value)


def quote(path: str) -> str:
    """The value of an override that gives this path."""
    from hydra.core.override_parser.types import Quote, QuotedString

    if not path or path.lower() == "null" or IS_QUOTED.fullmatch(path):
        return path
    if "${" in path and (_exists(path) or not _is_interpolation(path)):
        path = re.sub(r"(\\*)\$\{", lambda match: f"{match[1] * 2}\\${{", path)
    return QuotedString(path, Quote.single).with_quotes()


def quote_item(path: str) -> str:
    """One of several paths, in quotes only where it would be something else without."""
    return path if PLAIN_PATH.fullmatch(path) else quote(path)


def expand_home(path: str) -> str:
    """The path with "~" or "~user" expanded; as it stands where there is no such user."""
    return os.path.expanduser(path)  # noqa: PTH111  Path.expanduser raises there


def expand_options(words: list[str]) -> list[str]:
    """The words of a command line, with "~" expanded where shells leave it as it is: --out=~/predictions.csv."""
    return [re.sub(r"^(--[\w-]+=)(~.*)", lambda match: match[1] + expand_home(match[2]), word) for word in words]


def _exists(path: str) -> bool:
    return os.path.exists(expand_home(path))  # noqa: PTH110  Path.exists raises for names that are too long


def _is_interpolation(text: str) -> bool:
    from omegaconf import OmegaConf
    from omegaconf.errors import GrammarParseError

    try:
        OmegaConf.create({"value": text})
    except GrammarParseError:
        return False
    return True


@cache
def overrides_parser() -> "OverridesParser":
    """Hydra's, whose choice() takes null, too."""
    from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions

    functions = create_functions()
    functions.definitions["choice"] = inspect.signature(lambda *choices: None)
    return OverridesParser(functions)


def parse_overrides(words: list[str], sweeps: bool = False) -> "list[Override]":
    """Raises Hydra's OverrideParseException."""
    return overrides_parser().parse_overrides(with_quoted_paths(words, sweeps))


def explain(word: str, reason: str) -> str:
    """One line for an override that Hydra can't parse, with the quoting that works. reason: Hydra's message."""
    from hydra.errors import HydraException

    match = WORD.fullmatch(word)
    if not match:
        return f'{word!r} is not <key>=<value>; a value with a space needs quotes, as in "data.root=my photos"'
    key, value = match["key"], match["value"]
    if FUNCTION.match(value):
        return f"{word!r} is no override: {reason}"
    check = check_of(key)
    if check is None and not key.startswith("hydra"):
        return f"{key}: there is no such key{nearest(key, ALLOWED)}"
    for candidate in _quotings(value):
        quoted = word[: match.start("value")] + candidate
        try:
            [override] = overrides_parser().parse_overrides([quoted])
        except HydraException:
            continue
        if check is None or check(override.value()) is None:
            return f"{key}: {value!r} can't be parsed; quote it within the word: {_in_a_shell(quoted)}"
    wrong = check and check(value)
    return f"{key}: {value!r} is not {wrong}" if wrong else f"{word!r} is no override: {reason}"


def _quotings(value: str) -> list[str]:
    """How the value may have been meant: as a list, a mapping, or a text."""
    is_list = value.startswith("[") and value.endswith("]")
    is_mapping = value.startswith("{") and value.endswith("}")
    items = ITEM.findall(value[1:-1] if is_list or is_mapping else value)

    def quoted(item: str) -> str:
        return item if PLAIN.fullmatch(item) else quote(item)

    as_list = f"[{','.join(map(quoted, items))}]"
    pairs = [item.partition(":") for item in items]
    as_mapping = "{" + ",".join(f"{key}:{quoted(text.strip())}" for key, _, text in pairs) + "}"
    return [as_list] * is_list + [as_mapping] * is_mapping + [quote(value), as_list]


def _in_a_shell(word: str) -> str:
    """As one word of a shell's command line."""
    if not re.search(r"[\"$`!]|\\(?!')", word):
        return f'"{word}"'
    return shlex.quote(word)
