"""Break the lines of messages between words, where a terminal would break them in words."""

import re
import shutil
from typing import TextIO


def fold(text: str, file: TextIO) -> str:
    """Return the text for `file`: on a terminal, lines that are too long continue below, indented by two more spaces.

    They break at their widest gaps, so that words with one space between them stay together where they can. A word that
    is longer than a line is left to the terminal, so that a path can be copied. Any other file gets the text unchanged.
    """
    if not file.isatty():
        return text
    width = shutil.get_terminal_size().columns
    indents = [" " * (len(line) - len(line.lstrip(" ")) + 2) for line in text.split("\n")]
    lines = zip(text.split("\n"), indents, strict=True)
    return "\n".join("\n".join(_lines(line, width, indent)) for line, indent in lines)


def _lines(text: str, width: int, indent: str) -> list[str]:
    gaps: list[str] = re.findall(r"(?<=\S) +(?=[^\s%])", text)  # a number stays with its %
    if num_cells(text) <= width or not gaps:
        return [text]
    gap = max(gaps, key=len)
    lines = [""]
    for piece in re.split(rf"(?<=\S){gap}(?=[^\s%])", text):
        if lines[-1] and num_cells(lines[-1] + gap + piece) > width:
            lines.append(indent + piece)
        else:
            lines[-1] += gap * bool(lines[-1]) + piece
    return [short for line in lines for short in _lines(line, width, indent)]


def num_cells(text: str) -> int:
    """Return how many columns of a terminal the text takes; a Chinese or Japanese character takes two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # late import: only other alphabets need it

    return cell_len(text)
