"""Change a model.json by hand, and see how it is refused."""

import json

import pytest

import carvision
from carvision.errors import InputError


def rewrite(folder, **changes):
    file = folder / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change(folder, key: str, value) -> None:
    """Set the value of a dotted key of model.json."""
    file = folder / "model.json"
    described = json.loads(file.read_text())
    *parents, last = key.split(".")
    inner = described
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    file.write_text(json.dumps(described))


def refusal(path) -> str:
    with pytest.raises(InputError) as error:
        carvision.load(path)
    message = str(error.value)
    assert "\n" not in message
    return message
