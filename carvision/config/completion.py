"""Complete command lines in bash: commands, groups, choices, keys and options. Imports no torch.

Hydra finds groups, choices and keys; its own function for bash knows `python file.py` alone.
"""

import re
import shlex

from carvision.config.schema import is_path

ASKED = re.compile(r"(?:-sc|--shell-completion)(?:=|$)")
# Those that compose an experiment, so that Hydra completes their words
COMPOSING = ("augment_sheet", "check", "pack", "sweep", "train")
INSTALL = f"""carvision_completion() {{
    local words=($COMP_LINE) ask=() command found
    local word="${{words[$COMP_CWORD]}}"
    if [ "${{words[1]}}" = -m ] && [[ "${{words[2]}}" =~ ^carvision\\.[a-z_]+$ ]]; then
        ask=("${{words[0]}}" -m "${{words[2]}}"); command="${{words[2]#carvision.}}"
    elif [ "${{words[0]##*/}}" = carvision ] && [ $COMP_CWORD = 1 ]; then
        found=$("${{words[0]}}" --shell-completion query=bash 2> /dev/null)
        compopt +o nospace 2> /dev/null
    elif [ "${{words[0]##*/}}" = carvision ]; then
        ask=("${{words[0]}}" "${{words[1]}}"); command="${{words[1]}}"
    fi
    if [[ -n "$command" && "$word" = -* ]]; then
        found=$("${{ask[@]}}" --help 2> /dev/null | grep -oE -e "--[a-z][a-z-]+" | sort -u)
    elif [ "$command" = keys ]; then
        found=$("${{ask[@]}}" 2> /dev/null | grep -oE "^[a-z][a-z0-9_.]+")
    elif [[ "$command" =~ ^({"|".join(COMPOSING)})$ ]]; then
        found=$(COMP_LINE=$COMP_LINE "${{ask[@]}}" --shell-completion query=bash 2> /dev/null)
    fi
    COMPREPLY=($(compgen -W "$found" -- "$word"))
}}
COMP_WORDBREAKS=${{COMP_WORDBREAKS//=}}
complete -o nospace -o default -F carvision_completion carvision python python3"""
UNINSTALL = "complete -r carvision python python3; unset -f carvision_completion"


def answer(question: str, first_words: list[str]) -> None:
    """Print the function for bash, what removes it, or the words that may follow `carvision`.

    question: what follows --shell-completion: install=bash, uninstall=bash or query=bash.
    """
    if question.endswith("uninstall=bash"):
        print(UNINSTALL)
    elif question.endswith("install=bash"):
        print(INSTALL)
    else:
        print(*first_words, sep="\n")


def parsable_line(line: str) -> str:
    """Return the line to complete as one that Hydra can parse, of `python file.py`: without paths, on which completions
    don't depend, except for the last word."""
    line = re.sub(r"^\s*\S+\s+(-m\s+)?\S+", "python file.py", line)
    try:
        words = shlex.split(line)
    except ValueError:  # a quote that is not closed yet
        words = line.split()
    last = "" if not words or line[-1].isspace() else words.pop()
    kept = [word for word in words if not is_path(word.lstrip("+").partition("=")[0]) and not re.search(r"\s", word)]
    return " ".join([*kept, last])
