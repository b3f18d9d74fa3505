"""Quote and parse overrides, the words <key>=<value> of a command line. Imports no torch, and Hydra only to parse.

The value of a key that holds a path is taken literally: data.root=photos (1), model.weights=a=1.ckpt. All others are in
Hydra's grammar.
"""

import inspect
import os
import re
import shlex
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from carvision.config.schema import ALLOWED, check_of, is_path
from carvision.errors import InputError, suggest

if TYPE_CHECKING:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override

# Keys that options of other programs mean, beside those of which the last part is the option's name
MEANT = {
    "epochs": "trainer.max_epochs", "learning_rate": "optimizer.lr", "opt": "optimizer", "sched": "schedule",
    "bs": "data.batch_size", "b": "data.batch_size", "batch": "data.batch_size", "workers": "data.num_workers",
    "image_size": "data.image_px", "img_size": "data.image_px", "imgsz": "data.image_px", "size": "data.image_px",
    "model": "model.backbone", "arch": "model.backbone", "pretrained": "model.weights",
    "data": "data.root", "data_dir": "data.root", "device": "trainer", "gpu": "trainer", "cpu": "trainer",
    "out": "run.dir", "output": "run.dir", "output_dir": "run.dir", "name": "run.dir", "resume": "run.dir",
}  # fmt: skip
GROUPS = ("trainer", "optimizer", "schedule", "loss", "augment", "experiment", "data")
# Hydra's own options, and those of them that take a value
FLAGS = {"-h", "--help", "--hydra-help", "--version", "--resolve", "-r", "--run", "-m", "--multirun"}
WITH_VALUE = {"-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"}
WITH_VALUE |= {"-i", "--info", "-sc", "--shell-completion", "--experimental-rerun"}
WORD = re.compile(r"(?P<prefix>\+{0,2})(?P<key>[A-Za-z_][^\s=]*)=(?P<value>.*)", re.DOTALL)
QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
IS_QUOTED = re.compile(QUOTED, re.DOTALL)
ITEM = re.compile(rf"\s*({QUOTED}|(?:\$\{{[^{{}}]*\}}|[^,])+?)\s*(?:,|$)", re.DOTALL)  # an item of a list
PLAIN = re.compile(r"[A-Za-z0-9_/.+%@|-]+")  # needs no quotes; may be a number
PLAIN_PATH = re.compile(r"(?!(?:true|false|inf|nan)$)(?:[a-z_]|\.{0,2}/)[a-z0-9_/.+%@|-]*", re.IGNORECASE)
CHOICE = re.compile(r"(?P<tags>tag\(.*?)?\bchoice\((?P<items>.*)\)(?(tags)\))", re.DOTALL)
FUNCTION = re.compile(r"(bool|choice|float|glob|int|interval|range|shuffle|sort|str|tag)\(")


def with_quoted_paths(words: list[str], sweeps: bool = False) -> list[str]:
    """Return the overrides with paths in quotes, which Hydra would otherwise parse as lists or calls, or not at all.

    null, ${...} and quoted values keep their meaning, so this may be applied twice. sweeps: `a,b` and `choice(a,b)` are
    several paths, unless a file or folder has exactly that name.
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
        # Hydra's choice() does not take null, a list of values does
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
    """Return the value of an override that sets this path."""
    from hydra.core.override_parser.types import Quote, QuotedString

    if not path or path.lower() == "null" or IS_QUOTED.fullmatch(path):
        return path
    if "${" in path and (_exists(path) or not _is_interpolation(path)):
        path = re.sub(r"(\\*)\$\{", lambda match: f"{match[1] * 2}\\${{", path)
    return QuotedString(path, Quote.single).with_quotes()


def quote_item(path: str) -> str:
    """Return one of several paths, in quotes only if it needs them."""
    return path if PLAIN_PATH.fullmatch(path) else quote(path)


def expand_home(path: str) -> str:
    """Expand "~" or "~user" at the beginning of a path; unchanged if there is no such user."""
    return os.path.expanduser(path)  # noqa: PTH111  Path.expanduser raises there


def require_overrides(command: str, words: list[str]) -> None:
    """Raise InputError, with the line to type, for options as other programs take them, and for a lone folder or table.

    command: such as train. words: of the command line; Hydra's own options are left alone.
    """
    typed, wrong = [], ""
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if name in WITH_VALUE or name in FLAGS:
            typed += [word, *left[: name in WITH_VALUE and not equals]]
            del left[: name in WITH_VALUE and not equals]
        elif re.match(r"--?[A-Za-z]", word):
            wrong = wrong or name
            if not equals:
                value = left.pop(0) if left and not re.match(r"-|[\w.]+=", left[0]) else "<value>"
            typed += _meant(command, name, value)
        elif not equals and (chosen := _chosen_data(word)):
            wrong = wrong or word
            is_all = command == "train" and len(words) == 1  # whoever types no more wants a good model soon
            typed += [*(["experiment=quick"] if is_all else []), *chosen]
        else:
            typed.append(word)
    if wrong:
        line = re.sub(r"'([\w.]+=<value>)'", r"\1", shlex.join(["carvision", command, *typed]))
        dashes = ", without dashes" if wrong.startswith("-") else ""
        raise InputError(f"{wrong}: this command takes <key>=<value>{dashes}; type: {line}")


def _meant(command: str, name: str, value: str) -> list[str]:
    """Return the overrides that an option means. Raises InputError if none is known."""
    plain = name.strip("-").replace("-", "_").lower()
    last_parts = {key.rpartition(".")[2]: key for key in reversed(ALLOWED) if "*" not in key}
    key = MEANT.get(plain) or (plain if plain in GROUPS else last_parts.get(plain))
    if key is None:
        raise InputError(
            f"{name}: is no option of this command, which takes <key>=<value> (carvision keys lists them)"
            f"{suggest(plain, {**MEANT, **last_parts})}"
        )
    if key == "run.dir" and command not in ("train", "sweep"):
        key = "out"
    if key == "data.root":
        return _chosen_data(value) or ["data=folder", f"data.root={value}"]
    if key == "trainer":
        value = "cpu" if "cpu" in (plain, value) else "gpu"
    return [f"{key}={value}"]


def _chosen_data(path: str) -> list[str]:
    """Return the overrides that choose these photos: a folder, or a table of them; [] if it is neither."""
    if os.path.isdir(path):  # noqa: PTH112  Path.is_dir raises for names that are too long
        return ["data=folder", f"data.root={path}"]
    if path.endswith((".csv", ".tsv", ".parquet")) and _exists(path):
        folder, name = os.path.split(path)
        return ["data=manifest", f"data.root={folder or '.'}", f"data.file={name}"]
    return []


def expand_options(words: list[str]) -> list[str]:
    """Expand "~" in the words of a command line where shells don't: --out=~/predictions.csv."""
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
    """Return Hydra's parser of overrides, with a choice() that takes null, too."""
    from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions

    functions = create_functions()
    functions.definitions["choice"] = inspect.signature(lambda *choices: None)
    return OverridesParser(functions)


def parse_overrides(words: list[str], sweeps: bool = False) -> "list[Override]":
    """Parse overrides, paths without quotes included. Raises Hydra's OverrideParseException."""
    return overrides_parser().parse_overrides(with_quoted_paths(words, sweeps))


def explain(word: str, reason: str) -> str:
    """Return a line for an override that Hydra can't parse, with the quoting that works. reason: Hydra's message."""
    from hydra.errors import HydraException

    match = WORD.fullmatch(word)
    if not match:
        return f'{word!r} is not <key>=<value>; a value with a space needs quotes, as in "data.root=my photos"'
    key, value = match["key"], match["value"]
    if FUNCTION.match(value):
        return f"{word!r} is no override: {reason}"
    check = check_of(key)
    if check is None and not key.startswith("hydra"):
        return f"{key}: there is no such key{suggest(key, ALLOWED)}"
    for candidate in _quotings(value):
        quoted = word[: match.start("value")] + candidate
        try:
            [override] = overrides_parser().parse_overrides([quoted])
        except HydraException:
            continue
        if check is None or check(override.value()) is None:
            typed = shlex.quote(quoted) if re.search(r"[\"$`!]|\\(?!')", quoted) else f'"{quoted}"'
            return f"{key}: {value!r} can't be parsed; quote it within the word: {typed}"
    wrong = check and check(value)
    return f"{key}: {value!r} is not {wrong}" if wrong else f"{word!r} is no override: {reason}"


def _quotings(value: str) -> list[str]:
    """Return the readings of a value, each quoted: as a list, a mapping, or a text."""
    is_list = value.startswith("[") and value.endswith("]")
    is_mapping = value.startswith("{") and value.endswith("}")
    items = ITEM.findall(value[1:-1] if is_list or is_mapping else value)

    def quoted(item: str) -> str:
        return item if PLAIN.fullmatch(item) else quote(item)

    as_list = f"[{','.join(map(quoted, items))}]"
    pairs = [item.partition(":") for item in items]
    as_mapping = "{" + ",".join(f"{key}:{quoted(text.strip())}" for key, _, text in pairs) + "}"
    return [as_list] * is_list + [as_mapping] * is_mapping + [quote(value), as_list]


@dataclass(frozen=True)
class Searched:
    """The values that an override searches.

    kind: "choice", "range", "interval", or another of Hydra's functions, such as "glob". tags: sorted. values: of a
    choice or range, each as an override writes it. start, end: of an interval. step: of a range.
    """

    kind: str
    tags: tuple[str, ...]
    values: tuple[str, ...] = ()
    start: float | int = 0
    end: float | int = 0
    step: float | int = 0


def parse_search(word: str) -> tuple[str, Searched | None]:
    """Return an override's key, and what it searches: None if it sets a single value. Raises Hydra's
    OverrideParseException."""
    from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep

    [override] = parse_overrides([word], sweeps=True)
    key, sweep = override.get_key_element().removesuffix("="), override.value()
    if not override.is_sweep_override():
        return key, None
    kind = type(sweep).__name__.removesuffix("Sweep").lower()
    match sweep:
        case ChoiceSweep(tags=tags):
            return key, Searched(kind, tuple(sorted(tags)), _written_values(override))
        case RangeSweep(tags=tags, step=step):
            return key, Searched(kind, tuple(sorted(tags)), _written_values(override), step=step)
        case IntervalSweep(tags=tags, start=float() | int() as start, end=float() | int() as end):
            return key, Searched(kind, tuple(sorted(tags)), start=start, end=end)
    return key, Searched(kind, ())


def _written_values(override: "Override") -> tuple[str, ...]:
    from hydra.core.override_parser.types import QuotedString, Transformer

    holds_path = is_path(override.key_or_group)

    def write(value) -> str:
        if holds_path and isinstance(value, str | QuotedString):  # Hydra drops its quotes within choice()
            return quote_item(value if isinstance(value, str) else value.text)
        return Transformer.str(value)

    return tuple(map(str, override.sweep_iterator(write)))


def write_value(value) -> str:
    """Return a plain value as an override writes it: a list as [a,b], text in quotes where it needs them."""
    from hydra.core.override_parser.types import Transformer

    return str(Transformer.encode(value))
