"""Describe the configuration's keys by the comments of conf/: what each means, what it allows, its default.

Imports neither torch nor Hydra.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

from carvision.config.compose import conf_dir, options_of
from carvision.config.schema import ALLOWED, Check
from carvision.errors import InputError, suggest

LAYERS = re.compile(r"^model\.(embedding|difference|heads\.\*)\.")  # their keys are as of model.trunk


@dataclass(frozen=True)
class Key:
    """Describe a key, such as data.split.kind; "*" in a name stands for any one name.

    comment: what conf/ says of it. allowed: what its value may be: "one of auto, official". default: as conf/ writes
    it; "" for the keys of phases, of which a file has the comments alone. only_with: the choice that has the key,
    such as optimizer=sgd, if that is not the default. others: {choice: its default} where that differs. file: the path
    below conf/.
    """

    name: str
    comment: str
    allowed: str
    default: str
    only_with: str
    others: dict[str, str]
    file: str


class _Entry(NamedTuple):
    value: str
    comment: str
    file: Path


class _Nothing:
    """Pass no check, and look like no word, so that a check answers what it allows."""

    def __str__(self) -> str:
        return ""


def describe_keys() -> list[Key]:
    """Return all keys in the order of the schema; a key that several commands have (out) once for each of them."""
    found = []
    for name, check in ALLOWED.items():
        group = name.partition(".")[0]
        entries = [(choice, keys[name]) for choice, keys in _files_of(group) if name in keys]
        if "." not in name:  # of commands, each with its own
            found += [_key(name, check, [each], {}) for each in entries]
            continue
        trunk = {key: entry for _, keys in _files_of("model") for key, entry in keys.items()}
        found.append(_key(name, check, entries, trunk))
    return found


def find_keys(word: str) -> list[Key]:
    """Return the key of this name, which may be that of any head or phase; else the keys below it.

    Raises InputError if there is none.
    """
    known = describe_keys()
    for found in (
        [key for key in known if key.name == word],
        [key for key in known if _matches(word, key.name)],
        [key for key in known if _matches(word, re.sub(r"^(optimizer|schedule)\.", r"phases.*.\1.", key.name))],
        [key for key in known if key.name.startswith(f"{word}.")],
    ):
        if found:
            return found
    names = [key.name for key in known]
    last = [name for name in names if name.rpartition(".")[2] == word]
    hint = f"; nearest: {', '.join(last)}" if last else suggest(word, names)
    raise InputError(f"{word}: there is no such key{hint}; carvision keys lists all")


def _matches(word: str, name: str) -> bool:
    return re.fullmatch(re.escape(name).replace(r"\*", r"[^.]+"), word) is not None


def _key(name: str, check: Check, entries: list[tuple[str, _Entry]], trunk: dict[str, _Entry]) -> Key:
    """Describe a key by what the files say, the default's first: (choice, "" for the default's files; its entry)."""
    allowed = (check(_Nothing()) or "any value").removesuffix(", or null") + (" or null" if check(None) is None else "")
    if not entries:
        return Key(name, _comments_alone().get(name, ""), allowed, "", "", {}, "train.yaml")
    choice, first = entries[0]
    # What a file says of another choice's key may be true of that choice alone
    comment = next((entry.comment for other, entry in entries if entry.comment and (other == "" or choice)), "")
    others = {other: entry.value for other, entry in entries[1:] if other and entry.value not in ("", first.value)}
    if LAYERS.match(name):
        comment = trunk[LAYERS.sub("model.trunk.", name)].comment
    elif name.endswith(".name"):
        comment, others = f"set by {name.removesuffix('.name')}=<choice>", {}
    file = first.file.relative_to(conf_dir()).as_posix()
    return Key(name, comment, allowed, first.value, choice, others, file)


@cache
def _files_of(group: str) -> list[tuple[str, dict[str, _Entry]]]:
    """Return {key: its entry} of each file that has keys of the group: of the default choice, of all choices (both as
    ""), then of the other choices, as <group>=<choice>."""
    top = conf_dir()
    if not (top / group).is_dir():
        return [("", _entries(file)) for file in _commands()]
    default = _default_choices().get(group)
    shared = sorted((top / group / "shared").glob("*.yaml"))
    inner = [top / "model" / "head" / "linear.yaml"] if group == "model" else []
    files = [top / group / f"{choice}.yaml" for choice in options_of(group)]
    first = [file for file in files if file.stem == default]
    found = [("", _entries(file)) for file in (*first, *shared, *inner)]
    return found + [(f"{group}={file.stem}", _entries(file)) for file in files if file not in first]


@cache
def _comments_alone() -> dict[str, str]:
    """Return {key: comment} of the keys of phases, whose names are the user's: conf/ has the comments alone."""
    text = (conf_dir() / "train.yaml").read_text(encoding="utf-8")
    return dict(re.findall(r"^# (phases\.\S+): (.*)$", text, re.MULTILINE))


def _commands() -> list[Path]:
    """Return the files of the commands, train's first."""
    return sorted(conf_dir().glob("*.yaml"), key=lambda file: (file.stem != "train", file.stem))


def _default_choices() -> dict[str, str]:
    """Return {group: choice} of carvision train, without data, where the demo's stands for no other data set."""
    choices: dict[str, str] = {}
    for file in ("train.yaml", "sweep.yaml"):
        for entry in yaml.safe_load((conf_dir() / file).read_text(encoding="utf-8"))["defaults"]:
            if isinstance(entry, dict):
                choices |= {group: choice for group, choice in entry.items() if group != "data"}
    return choices


@cache
def _entries(file: Path) -> dict[str, _Entry]:
    """Return the keys of a file of conf/, with their values as they are written there and their comments."""
    text = file.read_text(encoding="utf-8")
    root = yaml.compose(text)
    below = file.relative_to(conf_dir())
    prefix = "" if len(below.parts) == 1 or "@package _global_" in text else f"{below.parts[0]}."
    prefix = {"steps": "augment.steps.", "linear": "model.heads.*."}.get(file.stem, prefix)
    found: dict[str, _Entry] = {}
    if isinstance(root, yaml.MappingNode):
        for name, value, comment in _walk(root, text, prefix, ""):
            found[name] = _Entry(value, comment, file)
    return found


def _walk(node: yaml.MappingNode, text: str, prefix: str, around: str) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and comment of each key. around: the comment of the mapping, for keys without one."""
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if name in ("defaults", "hydra"):
            continue
        is_block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        end = key.end_mark if is_block else value.end_mark
        comment = _comment(text.splitlines(), key.start_mark.line, end.line, end.column)
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _walk(value, text, f"{name}.", comment or around)
        written = text[value.start_mark.index : value.end_mark.index]
        yield name, "" if is_block else " ".join(written.split()), comment or around


def _comment(lines: list[str], first: int, last: int, column: int) -> str:
    """Return the comment after a value that ends in this line and column, with the lines of comment below it; if there
    is none, the lines above the key, after an empty one."""
    parts = [match[1]] if (match := re.match(r":?\s*#\s?(.*)", lines[last][column:])) else []
    below = last + 1
    while parts and below < len(lines) and lines[below].lstrip().startswith("#"):
        parts.append(lines[below].lstrip().removeprefix("#").strip())
        below += 1
    if parts:
        return " ".join(parts)
    above = first
    while above > 0 and lines[above - 1].lstrip().startswith("#"):
        above -= 1
    is_own = above > 0 and not lines[above - 1].strip()
    return " ".join(line.lstrip().removeprefix("#").strip() for line in lines[above:first]) if is_own else ""
