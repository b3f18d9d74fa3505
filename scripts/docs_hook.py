"""Add the pages of the docs site that are made from the code: keys, commands, and the repository's own documents.

mkdocs.yml names this file as a hook of mkdocs.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
GROUPS = {  # of the page, in its order
    "data": "Which photos, and how they are read and divided",
    "model": "The network",
    "augment": "What happens to training photos",
    "loss": "What the heads minimise",
    "metric_loss": "What shapes an embedding",
    "optimizer": "How weights are updated",
    "schedule": "The learning rate over time",
    "trainer": "Hardware and length",
    "callbacks": "Choice of the epoch, early stopping, averaging",
    "logger": "Logs for TensorBoard",
    "sweep": "Searches",
}
OTHER_COMMANDS = ("check", "pack", "augment_sheet")  # that have keys of their own
NOT_KEYS = ("defaults", "hydra")  # blocks for Hydra alone
LINE = re.compile(r"(?P<indent> *)(?P<key>[\w.]+):(?: +(?P<value>[^#].*?))??(?:\s+#\s?(?P<about>.*))?")
COMMENT = re.compile(r"(?P<indent> *)# ?(?P<about>.*)")


class Key(NamedTuple):
    """A key of a YAML file. value: as written, empty for a mapping; about: its comment."""

    name: str
    value: str
    about: str


def read_conf(text: str) -> tuple[list[str], list[Key]]:
    """Return the lines of the comment that begins a YAML file, and its keys with the comments around them.

    A comment behind a key belongs to it, with the lines below that are further in than the key; one on lines of its own
    belongs to the next key.
    """
    lines = text.splitlines()
    num_header = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    header = [line.removeprefix("#").removeprefix(" ") for line in lines[:num_header] if "@package" not in line]
    if num_header < len(lines) and not lines[num_header].strip():
        num_header += 1
    keys: list[Key] = []
    path: list[tuple[int, str]] = []  # (indent, key) of the mappings around a line
    before: list[str] = []
    skipped = False
    for line in lines[num_header:]:
        if not line.strip():
            before.clear()
        elif comment := COMMENT.fullmatch(line):
            if keys and not skipped and len(comment["indent"]) > path[-1][0]:
                keys[-1] = keys[-1]._replace(about=f"{keys[-1].about} {comment['about']}".strip())
            elif not skipped or not comment["indent"]:
                before.append(comment["about"])
        elif found := LINE.fullmatch(line):
            indent = len(found["indent"])
            if not indent:
                skipped = found["key"] in NOT_KEYS
            if skipped:
                before.clear()
                continue
            path = [*[part for part in path if part[0] < indent], (indent, found["key"])]
            about = " ".join([*before, found["about"] or ""]).strip()
            keys.append(Key(".".join(key for _, key in path), found["value"] or "", about))
            before.clear()
        elif not skipped:
            raise ValueError(f"not a key, its value and a comment: {line}")
    return header, keys


def keys_of(file: Path, prefix: str) -> tuple[list[str], list[Key]]:
    """Return read_conf of a file, with whole names. prefix: of keys in a file that has no `@package _global_`."""
    text = file.read_text(encoding="utf-8")
    header, keys = read_conf(text)
    if "# @package _global_" in text or not prefix:
        return header, keys
    return header, [key._replace(name=f"{prefix}.{key.name}") for key in keys]


def escaped(text: str) -> str:
    """Return the text as Markdown for a table's cell."""
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_{}\[\]|])", r"\\\1", text)


def prose(lines: list[str]) -> str:
    """Return a comment as Markdown: paragraphs, and lines that are further in as code."""
    text, code = [], []
    for line in [*lines, ""]:
        if line.startswith("  "):
            code.append(line[2:])
            continue
        if code:
            text += ["", "```text", *code, "```", ""]
            code = []
        text.append(escaped(line))
    return "\n".join(text).strip() + "\n"


def table(keys: list[Key]) -> str:
    """Return the keys as a table. Each can be linked to by its name."""
    rows = ["| key | value | meaning |", "|---|---|---|"]
    for name, value, about in keys:
        if not value and not about:  # a mapping, whose keys have rows of their own
            continue
        shown = f"`{value}`".replace("|", "\\|") if value else ""
        rows.append(f'| <span id="{name}">`{name}`</span> | {shown} | {escaped(about)} |')
    return '<div class="keys" markdown>\n\n' + "\n".join(rows) + "\n\n</div>\n"


def keys_page() -> str:
    """Return the page of all keys of conf/, with the comments beside them."""
    header, keys = keys_of(CONF / "train.yaml", "")
    parts = [
        "# Keys of the configuration\n",
        "Made from the comments in `conf/`. Type a key with its new value behind a command: "
        "`carvision train optimizer.lr=0.01`. A group's name chooses one of its files: `optimizer=sgd`. "
        "`carvision keys KEY` prints the same in a terminal.\n",
        "## Every training\n\n" + table(keys),
    ]
    for group, title in GROUPS.items():
        parts.append(f"## {group}\n\n{title}: `{group}=<choice>`.\n")
        for shared in sorted((CONF / group / "shared").glob("*.yaml")):
            prefix = f"{group}.{shared.stem}" if shared.stem == "steps" else group
            header, keys = keys_of(shared, prefix)
            parts.append(f"{prose(header)}\n{table(keys)}")
        for file in sorted((CONF / group).glob("*.yaml")):
            header, keys = keys_of(file, group)
            parts.append(f"### {group}={file.stem}\n\n{prose(header)}\n{table(keys) if keys else ''}")
        for file in sorted((CONF / group / "head").glob("*.yaml")):
            header, keys = keys_of(file, f"{group}.heads.<label>")
            parts.append(f"### {group}/head={file.stem}\n\n{prose(header)}\n{table(keys)}".replace('id="', 'id="of-'))
    parts.append("## experiment\n\nWhole settings, each a file or a row of a table: `experiment=<choice>`.\n")
    for file in sorted((CONF / "experiment").glob("*.yaml")):
        parts.append(f"### experiment={file.stem}\n\n{prose(keys_of(file, '')[0])}")
    for file in sorted((CONF / "experiment" / "tables").glob("*.yaml")):
        rows = re.findall(r"^(\w+):", file.read_text(encoding="utf-8"), re.MULTILINE)
        names = ", ".join(f"`{row}`" for row in rows)
        parts.append(f"### Experiments of report {file.stem.upper()}\n\n{names}\n\n{prose(keys_of(file, '')[0])}")
    for command in OTHER_COMMANDS:
        header, keys = keys_of(CONF / f"{command}.yaml", "")
        parts.append(f"## Only for `carvision {command}`\n\n" + table(keys).replace('id="', f'id="{command}.'))
    return "\n".join(parts)


def commands_page() -> str:
    """Return the page of all commands, with what their --help prints."""
    files = [file for file in (ROOT / "carvision").glob("*.py") if '"__main__"' in file.read_text(encoding="utf-8")]
    parts = ["# Commands\n", "What `carvision COMMAND --help` prints.\n"]
    for command in sorted({file.stem for file in files if file.stem != "__main__"} | {"models"}):
        done = subprocess.run(
            [sys.executable, "-m", f"carvision.{command}", "--help"], cwd=ROOT, check=True, capture_output=True,
            encoding="utf-8", env={**os.environ, "COLUMNS": "110", "PYTHONUTF8": "1"},
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
