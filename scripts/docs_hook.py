"""Add the pages of the docs site that are made from the code: keys, commands, and the repository's own documents.

mkdocs.yml names this file as a hook of mkdocs.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
sys.path.insert(0, str(ROOT))

from carvision.config.keys import Key, describe_keys  # noqa: E402

GROUPS = {  # of the page, in its order
    "data": "Which photos, and how they are read and divided.",
    "model": "The network.",
    "augment": "What happens to training photos.",
    "loss": "What the heads minimise.",
    "metric_loss": "What shapes an embedding.",
    "optimizer": "How weights are updated.",
    "schedule": "The learning rate over time.",
    "trainer": "Hardware and length.",
    "callbacks": "Choice of the epoch, early stopping, averaging.",
    "logger": "Logs for TensorBoard.",
    "sweep": "Searches.",
}


def escaped(text: str) -> str:
    """Return the text as Markdown for a table's cell."""
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_{}\[\]|])", r"\\\1", text)


def code(text: str) -> str:
    """Return the text as code for a table's cell; "" stays empty."""
    return f"`{text}`".replace("|", "\\|") if text else ""


def table(keys: list[Key], prefix: str = "") -> str:
    """Return the keys as a table. Each can be linked to: #<prefix><its name>."""
    rows = ["| key | default | meaning and allowed values |", "|---|---|---|"]
    for key in keys:
        if key.comment.startswith("set by") or (not key.comment and key.allowed.startswith("a mapping")):
            continue  # a choice's own name; what holds further keys
        notes = [escaped(key.comment.strip().rstrip("."))] if key.comment else []
        notes += [f"Only with {code(key.only_with)}"] if key.only_with else []
        notes += [f"Allowed: {escaped(key.allowed)}"]
        others: dict[str, list[str]] = {}  # {default: choices}
        for choice, value in key.others.items():
            others.setdefault(value, []).append(choice.partition("=")[2])
        notes += [f"{code(value)} with {', '.join(map(code, choices))}" for value, choices in others.items()]
        default = "required" if key.default == "???" else code(key.default)
        name = prefix + key.name.replace("*", "any")
        rows.append(f'| <span id="{name}">{code(key.name)}</span> | {default} | {". ".join(notes)} |')
    return '<div class="keys" markdown>\n\n' + "\n".join(rows) + "\n\n</div>\n"


def choice(title: str, file: Path) -> str:
    """Return the section of a file of conf/: the comment that begins it, then its values."""
    text = file.read_text(encoding="utf-8").removeprefix("# @package _global_\n")
    header, body = re.fullmatch(r"((?:#[^\n]*\n)*)(.*)", text, re.DOTALL).groups()
    parts = [f"### {title}\n", prose([line[1:].removeprefix(" ") for line in header.splitlines()])]
    body = re.sub(r"^defaults:\n(?:[ #].*\n)+\n?", "", body, flags=re.MULTILINE).strip()
    return "\n".join([*parts, f"```yaml\n{body}\n```\n"] if body else parts)


def prose(lines: list[str]) -> str:
    """Return a comment as Markdown: paragraphs, and lines that are further in as code."""
    text, inner = [], []
    for line in [*lines, ""]:
        if line.startswith("  "):
            inner.append(line[2:])
            continue
        if inner:
            text += ["", "```text", *inner, "```", ""]
            inner = []
        text.append(escaped(line))
    return "\n".join(text).strip() + "\n"


def keys_page() -> str:
    """Return the page of all keys and choices of conf/."""
    keys = describe_keys()
    parts = [
        "# Keys of the configuration\n",
        "Made from `conf/`. Type a key with its new value behind a command: `carvision train optimizer.lr=0.01`. "
        "The name of a group chooses one of its files: `optimizer=sgd`. `carvision keys KEY` prints the same in a "
        "terminal.\n",
        "## Every training\n",
        table([key for key in keys if key.name.partition(".")[0] not in GROUPS and key.file in ("train.yaml", "")]),
    ]
    for group, about in GROUPS.items():
        parts += [f"## {group}\n", f"{about}\n", table([key for key in keys if key.name.startswith(f"{group}.")])]
        files = sorted((CONF / group).glob("*.yaml"))
        if len(files) > 1:
            parts += [choice(f"{group}={file.stem}", file) for file in files]
    parts += ["## experiment\n", "Whole settings, each a file or a row of a table: `experiment=<choice>`.\n"]
    parts += [choice(f"experiment={file.stem}", file) for file in sorted((CONF / "experiment").glob("*.yaml"))]
    tables = sorted((CONF / "experiment" / "tables").glob("*.yaml"))
    parts += [choice(f"Experiments of report {file.stem.upper()}", file) for file in tables]
    for command in ("check", "pack", "augment_sheet"):
        own = [key for key in keys if key.file == f"{command}.yaml"]
        parts += [f"## Only of carvision {command}\n", table(own, f"{command}.")]
    return "\n".join(parts)


def commands_page() -> str:
    """Return the page of all commands, with what their --help prints."""
    files = [file for file in (ROOT / "carvision").glob("*.py") if '"__main__"' in file.read_text(encoding="utf-8")]
    parts = ["# Commands\n", "What `carvision --help` and `carvision COMMAND --help` print.\n"]
    for command in ["", *sorted({file.stem for file in files if file.stem != "__main__"} | {"models"})]:
        words = [*command.split(), "--help"]
        done = subprocess.run(
            [sys.executable, "-m", "carvision", *words], cwd=ROOT, check=True, capture_output=True,
            encoding="utf-8", env={**os.environ, "COLUMNS": "100", "PYTHONUTF8": "1"},
        )  # fmt: skip
        parts.append(f"## carvision {command}\n\n```text\n{done.stdout.strip()}\n```\n")
    return "\n".join(parts)


def document(name: str) -> str:
    """Return a document of the repository's top as a page, with its links relative to docs/."""
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")


def on_files(files, config):
    """Add the pages to those of docs/: a hook of mkdocs."""
    from mkdocs.structure.files import File

    pages = {
        "keys.md": keys_page(),
        "commands.md": commands_page(),
        "contributing.md": document("CONTRIBUTING.md"),
        "changelog.md": document("CHANGELOG.md"),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files
