"""Read what several data sets have in common: the root folder, the photos below it, text files, Matlab files."""

import logging
import os
from pathlib import Path

import numpy as np

from carvision.data.paths import text_of_path
from carvision.data.readers.walk import LeftOut, is_folder, walk
from carvision.errors import InputError, one_line

log = logging.getLogger(__name__)

UTF16 = (b"\xff\xfe", b"\xfe\xff")  # how UTF-16 text begins, as PowerShell's ">" writes it


def existing_root(root: Path | str | None, hint: str) -> Path:
    """Return data.root as a Path; raise InputError if it is no folder. hint: how to get the data and lay it out."""
    if root is None or not Path(root).is_dir():
        problem = "is no folder" if root and Path(root).exists() else "does not exist"
        raise InputError(f"data.root: {root or 'null'} {problem}. {hint}")
    return Path(root)


def sub_folders(folder: Path) -> list[str]:
    """Return the names of the folders in `folder`, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if is_folder(e) and not e.name.startswith("."))


def find_photos(root: Path, *only: str, left_out: LeftOut | None = None) -> list[str]:
    """Return the paths of all photos in `root` and deeper, sorted: text as of `text_of_path`, relative to `root`, with
    forward slashes.

    only: names of the sub-folders to read, by default all. What `walk` leaves out is reported in one warning, and added
    to `left_out`. No file is opened, so 100,000 photos take a second.
    """
    left_out = LeftOut() if left_out is None else left_out
    start = len(os.path.join(root, ""))  # noqa: PTH118  strings are faster here
    photos = [path[start:].replace(os.sep, "/") for path in walk(os.fspath(root), left_out, only)]
    if line := left_out.line():
        log.warning("%s: %s", root, line)
    return sorted(map(text_of_path, photos))


def read_text(path: Path, hint: str = "") -> str:
    """Return the text of a UTF-8 file without its byte-order mark.

    Raises InputError for a file that is absent, which ends with `hint`, or not UTF-8.
    """
    try:
        content = path.read_bytes()
        if content.startswith(UTF16):
            raise InputError(f"{path} is UTF-16 text; save it as UTF-8")
        return content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist. {hint}".rstrip()) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text: {one_line(error)}") from error


def read_mat(path: Path, *keys: str) -> list[np.ndarray]:
    """Return the named variables of a Matlab file, as scipy gives them: 2-D, strings and structs as object cells."""
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    import scipy.io  # late: it takes as long to import as pandas, and few data sets have such files

    try:
        content = scipy.io.loadmat(path, appendmat=False)
    except Exception as error:  # scipy raises anything from TypeError to zlib.error on a damaged file
        raise InputError(f"{path} cannot be read as a Matlab file ({one_line(error)}); get it again") from error
    missing = [key for key in keys if key not in content]
    if missing:
        found = ", ".join(key for key in content if not key.startswith("__"))
        raise InputError(f"{path} has no variable {missing[0]!r}, only: {found or 'none'}; get it again")
    return [content[key] for key in keys]


def cell_texts(cells: np.ndarray) -> list[str]:
    """Return the strings of a Matlab cell array, stripped; "" for an empty cell."""
    return [str(cell.ravel()[0]).strip() if cell.size else "" for cell in map(np.asarray, cells.ravel())]
