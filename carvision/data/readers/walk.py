"""Find the photos in a folder and below it."""
# Strings, as building Paths of a million files would take longer than the disk:
# ruff: noqa: PTH110, PTH114, PTH118, PTH122

import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from carvision.data.images import HEIC_INSTALL
from carvision.data.paths import text_of_path
from carvision.errors import InputError

HEIC_EXTENSIONS = (".heic", ".heif", ".hif", ".heics", ".heifs")  # as iPhones write them; the extra "heic" reads them
# The extensions of images.FORMATS, in any case. Not .pfm: its floating-point values have no known range.
PHOTO_EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx",
    *((".avif", ".avifs") if find_spec("PIL.AvifImagePlugin") else ()),
    *(HEIC_EXTENSIONS if find_spec("pillow_heif") else ()),
)  # fmt: skip


@dataclass
class LeftOut:
    """The files and links that a walk skipped.

    others: other files, by extension. heic: photos without decoder. links: {link to a folder: where that folder is read
    instead}; dangling: links that lead nowhere, except those named like photos, which are reported as missing when
    read. first: an example path for "others" and "heic".
    """

    others: Counter[str] = field(default_factory=Counter)
    heic: int = 0
    links: dict[str, str] = field(default_factory=dict)
    dangling: list[str] = field(default_factory=list)
    first: dict[str, str] = field(default_factory=dict)

    def line(self) -> str:
        """Report all of it in one line, "" where nothing was left out."""
        parts = []
        if self.heic:
            parts.append(f"{self.heic:,} HEIC photos (first: {self.first['heic']}), which need {HEIC_INSTALL}")
        if self.others:
            kinds = ", ".join(f"{kind}: {num:,}" for kind, num in self.others.most_common(5))
            text = f"{self.others.total():,} files are no photos by their extension"
            parts.append(f"{text} ({kinds}; first: {self.first['others']})")
        if self.links:
            link, elsewhere = next(iter(self.links.items()))
            text = f"{len(self.links):,} links lead to folders that are read elsewhere"
            parts.append(f"{text} (first: {text_of_path(link)}, which is {text_of_path(elsewhere)})")
        if self.dangling:
            parts.append(f"{len(self.dangling):,} links lead nowhere (first: {text_of_path(self.dangling[0])})")
        return "left out: " + "; ".join(parts) if parts else ""

    def add_file(self, path: str, is_link: bool) -> None:
        """Count a file that is not read."""
        extension = os.path.splitext(path)[1].lower()
        if is_link and not os.path.exists(path):
            self.dangling.append(path)
        elif extension in HEIC_EXTENSIONS:
            self.heic += 1
            self.first.setdefault("heic", text_of_path(path))
        else:
            self.others[extension or "no extension"] += 1
            self.first.setdefault("others", text_of_path(path))


def walk(folder: str, left_out: LeftOut, only: Collection[str] = ()) -> Iterator[str]:
    """Yield the photos in the folder and below, recognised by extension; files and folders mixed, by name.

    Hidden files and folders are ignored. Links are followed, and each real folder is read once: under its own name if
    it lies in `folder`, else under the first link to it; never a folder that contains `folder`. left_out: collects what
    is skipped. only: the sub-folders to read; empty: everything. Memory holds the names in one folder and its parents,
    and of linked folders. Raises InputError for a folder that can't be read.
    """
    top = os.path.realpath(folder)
    inside = {os.path.join(top, name): os.path.join(folder, name) for name in only}
    homes = {real: path for real, path in inside.items() if not os.path.islink(path)} if inside else {top: folder}
    through_links: dict[str, str] = {}  # real path -> the path it is read under, of folders outside of the homes
    pending = [(folder, False, iter(_entries(folder, top, only)))]
    while pending:
        above, below_link, entries = pending[-1]
        name, real, is_link = next(entries, (None, None, False))
        if name is None:
            pending.pop()
            continue
        path = os.path.join(above, name)
        by_link = is_link or below_link
        if real is None:
            if is_photo(name):
                yield path
            else:
                left_out.add_file(path, is_link)
        elif by_link and (elsewhere := _read_elsewhere(real, homes, through_links)):
            left_out.links[path] = elsewhere
        else:
            if by_link:
                through_links[real] = path
            pending.append((path, by_link, iter(_entries(path, real))))


def _entries(folder: str, real: str, only: Collection[str] = ()) -> list[tuple[str, str | None, bool]]:
    """List what is in the folder, by name: (name, real path of a folder or None, is a link)."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or (only and entry.name not in only):
                    continue
                is_link, target = entry.is_symlink(), None
                if is_folder(entry):
                    target = os.path.realpath(entry.path) if is_link else os.path.join(real, entry.name)
                found.append((entry.name, target, is_link))
    except OSError as error:
        text = f"{text_of_path(folder)}: the folder can't be read ({error.strerror}); correct its permissions"
        raise InputError(text) from None
    return sorted(found, key=lambda entry: entry[0])


def is_photo(name: str) -> bool:
    """Check for a photo's extension."""
    return name.lower().endswith(PHOTO_EXTENSIONS) and not name.startswith(".")


def is_folder(entry: os.DirEntry) -> bool:
    """Check for a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into an inaccessible folder
        return False


def _read_elsewhere(real: str, homes: dict[str, str], through_links: dict[str, str]) -> str | None:
    """Return the path under which the folder is read anyway; None if it is not."""
    for home, shown in homes.items():
        inside = os.path.relpath(real, home) if _holds(home, real) else None
        if inside is not None and not any(part.startswith(".") and part != "." for part in Path(inside).parts):
            return os.path.normpath(os.path.join(shown, inside))
        if inside is None and _holds(real, home):
            return f"a folder above {shown}"
    return through_links.get(real)


def _holds(folder: str, path: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
