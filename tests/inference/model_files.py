"""Changes to a model.json by hand, and how it is refused."""

import json

import pytest

import carvision
from carvision.errors import InputError


def rewrite(folder, **changes):
    file = folder / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change(folder, place: str, value) -> None:
    """Of model.json, by dots."""
    file = folder / "model.json"
    described = json.loads(file.read_text())
    *parents, last = place.split(".")
    inner = described
    for key in parents:
        inner = inner[key]
    inner[last] = value
    file.write_text(json.dumps(described))


def refusal(path) -> str:
    with pytest.raises(InputError) as error:
        carvision.load(path)
    message = str(error.value)
    assert "\n" not in message
    return message
