"""TAB completes groups, choices and keys of `python -m carvision.train ...` in bash.

    eval "$(python -m carvision.train --shell-completion install=bash)"

Hydra finds the answers; its own function for bash knows `python file.py` alone, not `python -m`.
"""

import os
import re
import shlex

from carvision.allowed import is_path

INSTALL = """carvision_completion() {
    local words=($COMP_LINE)
    if [ "${words[1]}" = -m ] && [[ "${words[2]}" =~ ^carvision\\.(%s)$ ]]; then
        local found=$(COMP_LINE=$COMP_LINE "${words[0]}" -m "${words[2]}" --shell-completion query=bash 2> /dev/null)
        COMPREPLY=($(compgen -W "$found" -- "${words[$COMP_CWORD]}"))
    fi
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F carvision_completion python python3"""
ASKED = re.compile(r"(?:-sc|--shell-completion)(?:=|$)")


def complete(words: list[str], commands: list[str]) -> bool:
    """Whether the words of a command line ask for what this prints itself. commands: those that speak Hydra.

    A question is left to Hydra, with the line that is to be completed as it understands it.
    """
    if not any(ASKED.match(word) for word in words):
        return False
    if words[-1].endswith("uninstall=bash"):
        print("complete -r python python3; unset -f carvision_completion")
        return True
    if words[-1].endswith("install=bash"):
        print(INSTALL % "|".join(commands))
        return True
    line = re.sub(r"^\s*\S+\s+-m\s+\S+", "python file.py", os.environ.get("COMP_LINE", ""))
    os.environ["COMP_LINE"] = _without_paths(line)
    return False


def _without_paths(line: str) -> str:
    """The line without those of its words before the last that decide nothing: paths, which Hydra may not parse."""
    try:
        words = shlex.split(line)
    except ValueError:  # a quote that is not closed yet
        words = line.split()
    last = "" if not words or line[-1].isspace() else words.pop()
    kept = [word for word in words if not is_path(word.lstrip("+").partition("=")[0]) and not re.search(r"\s", word)]
    return " ".join([*kept, last])
