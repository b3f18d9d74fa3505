"""Text as it is shown in Markdown: names that anybody may have chosen."""

import re

# Of CommonMark and GitHub's tables, strikethrough, formulas and entities; "://" and "www." make links of their own.
# "_" means nothing between letters.
SPECIAL = re.compile(r"[\\`*\[\]<|#~$&]|(?<![^\W_])_|_(?![^\W_])|(?<=:)//|(?<=\bwww)\.", re.IGNORECASE)
FIRST = re.compile(r">|[-+=](?=[-+=\s]|$)|\d+(?=[.)](?:\s|$))")  # begins a quotation or list, underlines a heading


def escape_markdown(text: object) -> str:
    """One line that is shown as it is wherever it stands: nothing in it is Markdown, HTML, or ends a table's cell."""
    line = " ".join(str(text).replace("\0", "\ufffd").split())
    line = SPECIAL.sub(lambda match: f"\\{match[0]}", line)
    start = FIRST.match(line)
    if start is None:
        return line
    return f"\\{line}" if start[0] in ">-+=" else f"{start[0]}\\{line[start.end() :]}"


def code_block(text: str, language: str = "") -> str:
    """Fenced so that nothing in the text ends it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
