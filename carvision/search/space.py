"""Parse the search space, written in the grammar of Hydra's overrides: `optimizer.lr=tag(log,interval(1e-5,1e-1))`.

choice(a,b), and a,b         one of these values
range(0,0.6,step=0.1)        0 to 0.5: the stop is excluded, as in Hydra's multirun
interval(1e-5,1e-1)          any number between; tag(log,interval(...)): log-uniform; int(interval(1,9))
tag('layers>=2',choice(64,128))   only if that holds for the drawn values; several tags must all hold

The key may be any of the training configuration, or a new name (`layers`) for use in conditions and in keys that follow
from it. Those keys are given as OmegaConf interpolations of the drawn values:
follows {model.trunk.hidden: "${repeat:${units},${layers}}", model.heads.make.dropout: "${model.trunk.dropout}"}.
"""

import json
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from carvision.config.compose import as_input_errors
from carvision.config.overrides import Searched, parse_search, with_quoted_paths, write_value
from carvision.config.schema import ALLOWED
from carvision.errors import InputError, one_line, suggest

COMPARE = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
CONDITION = re.compile(r"\s*([^\s<>=!]+)\s*(>=|<=|==|!=|>|<)\s*(\S.*?)\s*")
DIGITS = 12  # rounds a step's multiple: 0.30000000000000004 to 0.3
FOLLOWING = "keys that follow"
Value = str | int | float


def _whole(value: float) -> int:
    if value != int(value):
        raise ValueError(f"{value} is not a whole number")
    return int(value)


# For keys that follow from drawn values, such as ${times:2,${units}}
RESOLVERS = {
    "times": lambda a, b: a * b,
    "repeat": lambda value, count: [value] * count,  # the same units in each of `count` layers
    "pick": lambda value, found: found.get(value),  # of {adam: ..., sgd: ...}; a key that follows as null is not given
    "halving": lambda value, count: [_whole(value / 2**i) for i in range(count)],  # 256, 128, 64
}
for _name, _function in RESOLVERS.items():
    OmegaConf.register_new_resolver(_name, _function, replace=True)


@dataclass(frozen=True)
class Condition:
    """Condition on the drawn value of another dimension."""

    key: str
    sign: str
    value: Value

    def holds(self, drawn: Mapping[str, Value]) -> bool:
        """Return whether the condition holds; false if the other dimension was not drawn."""
        return self.key in drawn and COMPARE[self.sign](drawn[self.key], self.value)

    def __str__(self) -> str:
        return f"{self.key}{self.sign}{self.value}"


@dataclass(frozen=True)
class Dimension:
    """One searched key.

    choices: of a choice, each as written in an override. Otherwise low and high (both inclusive), step or None, and
    log; integers if low and high are.
    """

    key: str
    conditions: tuple[Condition, ...] = ()
    choices: tuple[Value, ...] = ()
    low: float | int = 0
    high: float | int = 0
    step: float | int | None = None
    log: bool = False

    def is_drawn(self, drawn: Mapping[str, Value]) -> bool:
        """Return whether all conditions hold for the values drawn so far."""
        return all(condition.holds(drawn) for condition in self.conditions)

    def suggest(self, trial) -> Value:
        """Return the value that the trial (optuna.Trial) suggests."""
        if self.choices:
            return trial.suggest_categorical(self.key, list(self.choices))
        if isinstance(self.low, int):
            return trial.suggest_int(self.key, self.low, self.high, step=self.step or 1, log=self.log)
        value = trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)
        return round(value, DIGITS) if self.step else value

    def values(self) -> list[Value] | None:
        """Return all values in order; None for an interval of floats or a logarithmic one."""
        if self.choices:
            return list(self.choices)
        if self.log or (self.step is None and not isinstance(self.low, int)):
            return None
        step = self.step or 1
        count = round((self.high - self.low) / step) + 1
        return [round(self.low + i * step, DIGITS) for i in range(count)]

    def __str__(self) -> str:
        if self.choices:
            text = f"choice({','.join(map(str, self.choices))})"
        else:
            text = f"{self.low} to {self.high}" + (f" by {self.step}" if self.step else "")
        when = f" if {' and '.join(map(str, self.conditions))}" if self.conditions else ""
        return f"{text}{', log' if self.log else ''}{when}"


@dataclass(frozen=True)
class Space:
    """The search space.

    dimensions: each after those that its conditions name. follows: {key: OmegaConf interpolation of drawn values}.
    names: dimensions that are no keys of the configuration.
    """

    dimensions: tuple[Dimension, ...]
    follows: Mapping[str, str] = field(default_factory=dict)
    names: frozenset[str] = frozenset()

    @property
    def keys(self) -> list[str]:
        """Return the keys that differ between trials, without + and ~: those searched, and those that follow."""
        return [key.lstrip("+~") for key in (*(dimension.key for dimension in self.dimensions), *self.follows)]

    def draw(self, trial) -> dict[str, Value]:
        """Return {key: value} of the dimensions whose conditions hold. trial: optuna.Trial."""
        drawn: dict[str, Value] = {}
        for dimension in self.dimensions:
            if dimension.is_drawn(drawn):
                drawn[dimension.key] = dimension.suggest(trial)
        return drawn

    def overrides(self, drawn: Mapping[str, Value]) -> list[str]:
        """Return the overrides of a trial with these drawn values. Raises InputError."""
        searched = [f"{key}={value}" for key, value in drawn.items() if key not in self.names]
        if not self.follows:
            return searched
        # Values not drawn are null: a key may follow from values that only some trials have. They are renamed, as
        # OmegaConf would read optimizer.lr as a path
        known, text = {}, json.dumps(dict(self.follows), ensure_ascii=False)
        for index, dimension in enumerate(self.dimensions):
            known[f"drawn_{index}"] = drawn.get(dimension.key)
            text = text.replace(f"${{{dimension.key}}}", f"${{drawn_{index}}}")
        try:
            config = OmegaConf.create({**known, FOLLOWING: json.loads(text)})
            values = cast(dict, OmegaConf.to_container(config[FOLLOWING], resolve=True))
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            raise InputError(f"sweep.follows: {one_line(error)}") from None
        return [*searched, *(f"{key}={write_value(value)}" for key, value in values.items() if value is not None)]

    def grid(self) -> list[dict[str, Value]]:
        """Return every combination once. Raise InputError for a dimension with infinitely many values."""
        drawn: list[dict[str, Value]] = [{}]
        for dimension in self.dimensions:
            values = dimension.values()
            if values is None:
                raise InputError(
                    f"{dimension.key}: {dimension} has infinitely many values; for a grid use choice or range"
                )
            parts = [{dimension.key: value} for value in values]
            drawn = [cell | part for cell in drawn for part in (parts if dimension.is_drawn(cell) else [{}])]
        return drawn

    def description(self) -> dict[str, str]:
        """Return the part of the space that must not change while a study continues, as plain text."""
        return {dimension.key: str(dimension) for dimension in self.dimensions} | dict(self.follows)


def split_overrides(overrides: list[str]) -> tuple[list[str], list[str]]:
    """Return the overrides that set a value, and those that search one, with quoted paths. The last override of a key
    wins. Raises InputError."""
    found: dict[str, tuple[str, bool]] = {}
    for word in with_quoted_paths(overrides, sweeps=True):
        key, values = _parse(word)
        found.pop(key, None)  # so that it comes last
        found[key] = word, values is not None
    given = [word for word, is_searched in found.values() if not is_searched]
    return given, [word for word, is_searched in found.values() if is_searched]


def read_space(overrides: list[str], follows: Mapping[str, str], is_known: Callable[[str], bool]) -> Space:
    """Return the space of these searching overrides. is_known: whether a key exists in the configuration. Raises
    InputError."""
    parsed = {word: _parse(word) for word in overrides}
    found = {key: _dimension(key, values, word) for word, (key, values) in parsed.items() if values}
    if not found:
        raise InputError("nothing is searched; give a space such as optimizer.lr=tag(log,interval(1e-4,1e-1))")
    used = set(re.findall(r"\$\{([^${}:,]+)\}", " ".join(map(str, follows.values()))))
    used |= {condition.key for dimension in found.values() for condition in dimension.conditions}
    ordered = _in_order(found)
    names = frozenset(key for key in found if not is_known(key))
    for key in sorted(names - used):
        raise InputError(
            f"{key}: there is no such key, and nothing follows from it{suggest(key, ALLOWED)} (all keys: carvision "
            "train --cfg job)"
        )
    return Space(ordered, follows, names)


def _parse(word: str) -> tuple[str, Searched | None]:
    with as_input_errors():
        return parse_search(word)


def _dimension(key: str, searched: Searched, word: str) -> Dimension:
    """Return the dimension of this key. word: the override, for messages."""
    if searched.kind not in ("choice", "range", "interval"):
        raise InputError(f"{word}: takes choice, range or interval, not {searched.kind}")
    conditions, log = [], False
    for tag in searched.tags:
        if match := CONDITION.fullmatch(tag):
            # Hydra writes a drawn value like this
            value = {"true": "True", "false": "False"}.get(match[3].lower(), match[3])
            conditions.append(Condition(match[1], match[2], _as_number(value)))
        elif tag == "log":
            log = True
        else:
            raise InputError(f"{word}: the tag {tag!r} is neither log nor a condition such as 'layers>=2'")
    if searched.kind == "interval":
        low, high = searched.start, searched.end
        if not low < high or (log and low <= 0):
            raise InputError(f"{word}: takes two numbers, the smaller first{', above 0' if log else ''}")
        return Dimension(key, tuple(conditions), low=low, high=high, log=log)
    if log:
        raise InputError(f"{word}: log is for intervals, not for a {searched.kind}")
    values = [_as_number(text) for text in searched.values]
    if searched.kind == "choice":
        twice = next((value for index, value in enumerate(values) if value in values[:index]), None)
        if twice is not None:
            raise InputError(f"{word}: {twice} comes twice; give each choice once")
        return Dimension(key, tuple(conditions), choices=tuple(values))
    numbers = [value for value in values if not isinstance(value, str)]
    if not numbers:
        raise InputError(f"{word}: this range is empty, as its stop is excluded")
    if len(numbers) == 1:
        return Dimension(key, tuple(conditions), choices=tuple(numbers))
    return Dimension(key, tuple(conditions), low=min(numbers), high=max(numbers), step=abs(searched.step))


def _require_comparable(dimension: Dimension, condition: Condition, other: Dimension) -> None:
    if condition.sign in ("==", "!="):
        if other.choices and condition.value not in other.choices:
            raise InputError(
                f"{dimension.key}: the condition {str(condition)!r} compares with none of the drawn values: {other}"
            )
    elif any(isinstance(value, str) for value in (condition.value, *other.choices)):
        raise InputError(f"{dimension.key}: the condition {str(condition)!r} needs numbers on both sides")


def _as_number(text: str) -> Value:
    """Return the text as an int or float if it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _in_order(found: dict[str, Dimension]) -> tuple[Dimension, ...]:
    """Return the dimensions, each after those that its conditions name. Raise InputError for unknown names and
    cycles."""
    for dimension in found.values():
        for condition in dimension.conditions:
            if condition.key not in found:
                raise InputError(
                    f"{dimension.key}: the condition {str(condition)!r} names {condition.key}, which is not searched"
                    f"{suggest(condition.key, found)}"
                )
            _require_comparable(dimension, condition, found[condition.key])
    ordered: dict[str, Dimension] = {}
    while left := [dimension for key, dimension in found.items() if key not in ordered]:
        ready = [one for one in left if all(condition.key in ordered for condition in one.conditions)]
        if not ready:
            cycle = " and ".join(sorted(dimension.key for dimension in left))
            raise InputError(f"the conditions of {cycle} depend on each other")
        ordered[ready[0].key] = ready[0]
    return tuple(ordered.values())
