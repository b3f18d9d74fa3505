"""Convert photo paths to text and back: tables, packs and predictions are UTF-8, whatever bytes file names contain."""

import functools
import os
import posixpath
import re
import unicodedata

ESCAPE = re.compile(r"\\x(5c|[89a-f][0-9a-f])")
ESCAPED_BYTES = re.compile(rb"\\x(5c|[89a-f][0-9a-f])")


def text_of_path(path: str) -> str:
    """Write the path as text that any file and terminal can hold: bytes that are no UTF-8 become \\xe4.

    path: as Python returns it, undecodable bytes being surrogates. A file name that really holds "\\xe4" is written as
    "\\x5cxe4", so that `path_of_text` finds the file again in any case.
    """
    if path.isascii() and "\\x" not in path:
        return path
    return os.fsencode(ESCAPE.sub(r"\\x5cx\1", path)).decode("utf-8", "backslashreplace")


def path_of_text(text: str) -> str:
    """Return the path that opens the file; undoes `text_of_path`."""
    if os.name == "nt" or (text.isascii() and "\\x" not in text):
        return text
    content = text.encode("utf-8", "surrogateescape")
    return os.fsdecode(ESCAPED_BYTES.sub(lambda found: bytes([int(found[1], 16)]), content))


def file_of(root: str | os.PathLike, text: str) -> str:
    """Return the path that opens a photo of a table. text: its path there, relative to `root` or absolute."""
    return os.path.join(root, path_of_text(text))  # noqa: PTH118  strings are faster, of a million photos


def nfc(text: str) -> str:
    """Normalise to Unicode NFC, in which names are compared, as macOS and Linux write ü in different ways."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


class PhotoPaths:
    """Find photos by the paths that people write in tables and lists: either slash, "./a", "a//b", "a/../b", "~",
    absolute or relative to `root`, in either form of Unicode. root: None if the photos share no folder.
    """

    def __init__(self, root: str | os.PathLike | None):
        self.root = root
        roots = () if root is None else (os.path.abspath(root), os.path.realpath(root))  # noqa: PTH100
        self.roots = [text_of_path(folder).replace(os.sep, "/").rstrip("/") + "/" for folder in roots]
        self._real = functools.lru_cache(maxsize=4096)(_real_folder)
        self._names = functools.lru_cache(maxsize=8)(_names_by_nfc)  # of recently used folders, never of all

    def find(self, cell: str) -> str:
        """Return the photo's path as tables have it (`text_of_path`), relative to the root where it is below that.

        The disk is only checked for ambiguous cells; the first meaning that exists wins: "\\" is a slash unless the
        file has it in its name, and "\\xe4" is a byte if there is such a file.
        """
        if cell.isascii() and "\\" not in cell and cell[:1] != "~" and cell == cell.strip():
            return self.normal(cell)
        spellings = self.spellings(cell)
        for text in spellings:
            if os.path.exists(file_of(self.root or "", text)):  # noqa: PTH110
                return text
        found = (self._by_nfc(text) for text in spellings if not text.isascii())
        return next((text for text in found if text is not None), spellings[-1])

    def spellings(self, cell: str) -> list[str]:
        """List the possible meanings of a cell, each as `find` returns it, the likeliest first; the last as people
        read it."""
        bare = cell.strip()
        texts = [cell, bare, bare.replace("\\", "/")]
        if bare[:1] == "~":
            texts.append(text_of_path(os.path.expanduser(texts[-1])))  # noqa: PTH111
        texts = [text if is_utf8(text) else text_of_path(text) for text in texts]
        return list(dict.fromkeys(map(self.normal, texts)))

    def normal(self, text: str) -> str:
        """Resolve "./", "//" and ".." without checking the disk; the result is relative if it is below the root."""
        path = posixpath.normpath(text)
        if path.startswith("//"):
            path = path[1:]
        if path.startswith("../") and self.roots:
            whole = posixpath.normpath(self.roots[0] + path)
            return self._below_root(whole) or path
        return (self._below_root(path) or path) if os.path.isabs(path) else path  # noqa: PTH117

    def whole(self, text: str) -> str:
        """Return the absolute path of the real folder, links resolved, for comparing photos."""
        absolute = os.path.isabs(text) or not self.roots  # noqa: PTH117
        folder, _, name = (text if absolute else posixpath.normpath(self.roots[0] + text)).rpartition("/")
        return f"{self._real(folder)}/{name}"

    def _below_root(self, path: str) -> str | None:
        return next((path[len(root) :] for root in self.roots if path.startswith(root)), None)

    def _by_nfc(self, text: str) -> str | None:
        """Find a photo whose folders and name are the same after Unicode normalisation."""
        found = "/" if text.startswith("/") else ""
        for part in text.strip("/").split("/"):
            name = part if part == ".." else self._names(file_of(self.root or ".", found)).get(nfc(part))
            if name is None:
                return None
            found = posixpath.join(found, name)
        return found


def _real_folder(text: str) -> str:
    return text_of_path(os.path.realpath(path_of_text(text))).replace(os.sep, "/")


def _names_by_nfc(folder: str) -> dict[str, str]:
    try:
        return {nfc(text): text for text in sorted(map(text_of_path, os.listdir(folder)), reverse=True)}  # noqa: PTH208
    except OSError:
        return {}


def is_utf8(text: str) -> bool:
    """Check that the text has no surrogates, as which Python reads bytes that are not UTF-8."""
    return text.isascii() or not any("\ud800" <= one <= "\udfff" for one in text)
