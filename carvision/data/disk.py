"""What the readers share: the root folder, a walk over photos, lists in text files, Matlab files."""

import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np

from carvision.errors import InputError

log = logging.getLogger(__name__)

PHOTO_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")  # in any case


def existing_root(root: Path | str | None, where: str) -> Path:
    """`root` as a Path, or an InputError. where: how to get the data and lay it out."""
    if root is None:
        raise InputError(f"data.root: null does not exist; give the folder of the data. {where}")
    folder = Path(root)
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise InputError(f"data.root: {root} {what}. {where}")
    return folder


def sub_folders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted; hidden ones are left out."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def find_photos(root: Path, below: str = "") -> list[str]:
    """Paths of all photos in root/below and deeper, relative to `root` with forward slashes, sorted.

    Photos are known by their extension. Hidden files and folders are ignored, linked folders are followed;
    other files are counted in one warning. Only folders are read, so that 100,000 photos take a second.
    """
    photos: list[str] = []
    others: list[str] = []
    start = os.path.join(root, below) if below else os.fspath(root)  # noqa: PTH118  string paths are faster here
    for folder, folders, files in os.walk(start, onerror=_unreadable, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if inside == "." else inside + "/"
        for name in files:
            if name.lower().endswith(PHOTO_EXTENSIONS):
                if not name.startswith("."):
                    photos.append(prefix + name)
            elif not name.startswith("."):
                others.append(prefix + name)
    if others:
        kinds = Counter(Path(name).suffix.lower() or "no extension" for name in others)
        log.warning(
            "%s: %s files are no photos by their extension and are left out (%s; first: %s)",
            start, f"{len(others):,}", ", ".join(f"{kind}: {n:,}" for kind, n in kinds.most_common(5)),
            min(others),
        )  # fmt: skip
    return sorted(photos)


def _unreadable(error: OSError) -> None:
    raise InputError(f"data.root: the folder {error.filename} cannot be read: {error.strerror}") from error


def read_text(path: Path, where: str = "") -> str:
    """The text of a UTF-8 file without its byte-order mark, any line ends as "\\n"."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist. {where}".rstrip()) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text: {_one_line(error)}") from error


def read_mat(path: Path, *keys: str) -> list[np.ndarray]:
    """The named variables of a Matlab file, as scipy gives them: 2-D, strings and structs as object cells."""
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    import scipy.io  # only now: it takes as long to import as pandas, and few data sets have such files

    try:
        content = scipy.io.loadmat(path, appendmat=False)
    except Exception as error:  # scipy raises anything from TypeError to zlib.error on a damaged file
        raise InputError(f"{path} cannot be read as a Matlab file ({_one_line(error)}); get it again") from error
    missing = [key for key in keys if key not in content]
    if missing:
        found = ", ".join(key for key in content if not key.startswith("__"))
        raise InputError(f"{path} has no variable {missing[0]!r}, only: {found or 'none'}; get it again")
    return [content[key] for key in keys]


def cell_texts(cells: np.ndarray) -> list[str]:
    """The strings of a Matlab cell array, stripped; "" for an empty cell."""
    return [str(cell.ravel()[0]).strip() if cell.size else "" for cell in map(np.asarray, cells.ravel())]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
