"""Escape arbitrary text, such as class names, for Markdown."""

import re

# CommonMark and GitHub's tables, strikethrough, formulas and entities; "://" and "www." become links automatically.
# "_" means nothing between letters.
SPECIAL = re.compile(r"[\\`*\[\]<|#~$&]|(?<![^\W_])_|_(?![^\W_])|(?<=:)//|(?<=\bwww)\.", re.IGNORECASE)
FIRST = re.compile(r">|[-+=](?=[-+=\s]|$)|\d+(?=[.)](?:\s|$))")  # begins a quotation or list, underlines a heading


def escape_markdown(text: object) -> str:
    """Return one line that Markdown shows literally wherever it stands: no markup, no HTML, no end of a table cell."""
    line = " ".join(str(text).replace("\0", "\ufffd").split())
    line = SPECIAL.sub(lambda match: f"\\{match[0]}", line)
    start = FIRST.match(line)
    if start is None:
        return line
    return f"\\{line}" if start[0] in ">-+=" else f"{start[0]}\\{line[start.end() :]}"


def code_block(text: str, language: str = "") -> str:
    """Return a fenced code block whose fence does not occur in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
