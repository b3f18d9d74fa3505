"""A photo's path as text, and back: tables, packs and predictions are UTF-8, whatever bytes a file name has."""

import os
import re

ESCAPE = re.compile(r"\\x(5c|[89a-f][0-9a-f])")
ESCAPED_BYTES = re.compile(rb"\\x(5c|[89a-f][0-9a-f])")


def text_of_path(path: str) -> str:
    """The path as text that any file and terminal can hold: bytes that are no UTF-8 are written as \\xe4.

    path: as Python gives it, undecodable bytes being surrogates. A file name that really holds "\\xe4" is written as
    "\\x5cxe4", so that `path_of_text` finds the file again in any case.
    """
    if path.isascii() and "\\x" not in path:
        return path
    return os.fsencode(ESCAPE.sub(r"\\x5cx\1", path)).decode("utf-8", "backslashreplace")


def path_of_text(text: str) -> str:
    """The path that opens the file; undoes `text_of_path`."""
    if os.name == "nt" or (text.isascii() and "\\x" not in text):
        return text
    content = text.encode("utf-8", "surrogateescape")
    return os.fsdecode(ESCAPED_BYTES.sub(lambda found: bytes([int(found[1], 16)]), content))


def file_of(root: str | os.PathLike, text: str) -> str:
    """The file of a photo of a table: text is relative to `root`, or absolute."""
    return os.path.join(root, path_of_text(text))  # noqa: PTH118  strings are faster, of a million photos
