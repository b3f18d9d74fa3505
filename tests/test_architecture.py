"""The rooms of the house and the arrows between them, as docs/architecture.md draws them."""

import ast
import functools
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "carvision"
# From the ground up: a room imports only rooms named before it, which the guide draws below it; commands import any.
ROOMS = (
    "system", "errors", "files", "config", "demo", "data", "augment", "losses", "models", "metrics", "inference",
    "reports", "explanation", "training", "evaluation", "embedding", "run_report", "search", "exports", "serving",
    "diagnosis",
)  # fmt: skip
COMMANDS = {
    "augment_sheet", "check", "compare", "doctor", "embed", "evaluate", "explain", "export", "keys", "pack", "predict",
    "report", "retrieve", "serve", "sweep", "train", "verify",
}  # fmt: skip
MAX_MODULES, MAX_LINES, MIN_LINES = 9, 450, 60
# Why a module of fewer lines stands alone
SHORT = {
    "augment.draws": "all steps of the augmentation use it",
    "embedding.options": "imports no torch, so that --help and a wrong option need none",
    "explanation.overlay": "one subject",
    "models.decoding": "one subject",
    "run_report.label_errors": "one rule, from one paper",
    "serving.limits": "one subject",
    "serving.monitor": "one subject",
    "system.terminal": "one subject",
}
# What one module, or one room, has to itself
ONE_HOME = {
    "hydra": ("carvision.config",), "fcntl": ("carvision.files.locks",), "rich.progress": ("carvision.files.progress",),
    "jinja2": ("carvision.reports.page", "carvision.exports.hub"),
    "matplotlib": ("carvision.reports", "carvision.search.plots"),
    "pytorch_lightning": ("carvision.training", "carvision.data.loading.datamodule", "carvision.search.trial"),
}  # fmt: skip


@functools.cache
def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Dotted names that a module imports, at its top or inside a function, but not for the type checker alone."""
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in modules() else node.module for name in inner}
    return frozenset(names)


def arrows(module: str) -> set[str]:
    return {name for name in imports(module) if name in modules()} - {module, "carvision"}  # the version of the package


def room_of(module: str) -> str:
    """The room of a module: the folder below the package; "" for the package itself, its own name for a command."""
    return [*module.split("."), ""][1]


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_room_imports_only_from_rooms_below_it(module):
    room = room_of(module)
    if room in COMMANDS or room in ("", "__main__"):
        return
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    assert {name for name in arrows(module) if room_of(name) not in allowed} == set()


def test_no_modules_import_each_other_in_a_circle():
    graphlib.TopologicalSorter({module: arrows(module) for module in modules()}).prepare()  # CycleError names them


def test_the_root_holds_the_commands_alone_and_rooms_are_small_enough_to_get_to_know():
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__", "errors"} == COMMANDS
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {"errors"} == set(ROOMS)
    for folder in {path.parent for path in modules().values()} - {PACKAGE}:
        inside = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(inside) <= MAX_MODULES, (folder.name, inside)


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_is_neither_a_fragment_nor_two_subjects(module):
    num = len(modules()[module].read_text(encoding="utf-8").splitlines())
    assert num <= MAX_LINES
    is_command = room_of(module) in COMMANDS or module.endswith("__main__")
    if modules()[module].name != "__init__.py" and not is_command:
        assert (num < MIN_LINES) == (module.removeprefix("carvision.") in SHORT)


@pytest.mark.parametrize(("library", "homes"), ONE_HOME.items())
def test_what_has_one_home_is_imported_there_alone(library, homes):
    users = {module for module in modules() if any(f"{name}.".startswith(f"{library}.") for name in imports(module))}
    assert {module for module in users if not module.startswith(homes)} == set()


def test_the_guide_draws_the_rooms_in_this_order_and_names_every_command():
    picture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
    assert tuple(reversed(re.findall(r"^(\w+)(?:/|\.py) ", picture, re.MULTILINE))) == ROOMS
    assert set(re.findall(r"\w+", picture.partition("|")[0])) >= COMMANDS
