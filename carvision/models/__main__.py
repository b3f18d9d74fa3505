"""carvision models [WORD...]: the networks that model.backbone can name. See --help."""

import argparse
import sys
from fnmatch import fnmatchcase
from functools import cache
from itertools import islice

from carvision.errors import InputError, drop_output, one_line_errors, suggest

HEADER = ("network", "million parameters", "px", "weights", "reports")
LINE = "{:<48} {:>18} {:>5}  {:<34} {}"
EXAMPLE = """examples:
  carvision models resnet --max-params 30 --pretrained
  carvision models "*mobilenet*" --tags
  carvision models --report r4
"""


def main() -> None:
    options = parse()
    with one_line_errors():
        try:
            names = matching_names(options.words, options.report, options.pretrained, options.tags)
            show(names, options.max_params, options.limit)
        except BrokenPipeError:  # piped into head
            drop_output()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="carvision models",
        description="List the networks that model.backbone can name: timm's, and those that the\nreports built.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="WORD", help="names that hold every word; * and ? are wildcards")
    parser.add_argument("--max-params", type=float, metavar="M", help="at most so many million parameters")
    parser.add_argument("--pretrained", action="store_true", help="only networks with pretrained weights")
    parser.add_argument("--report", choices=["r0", "r1", "r2", "r3", "r4"], help="only networks of this report")
    parser.add_argument("--tags", action="store_true", help="a line for each of a network's sets of weights")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many lines (50); 0: all")
    options = parser.parse_args()
    if options.limit < 0:
        parser.error(f"--limit: {options.limit} is not a whole number from 0")
    return options


def matching_names(words: list[str], report: str | None, pretrained: bool, tags: bool) -> list[str]:
    """Return the names that match all words, sorted as timm sorts them.

    With tags, or where a word has a dot, they are names of weights, such as resnet50.a1_in1k. pretrained: only networks
    with weights. Raises InputError if none matches.
    """
    import timm

    from carvision.models.backbones import cfg_of
    from carvision.models.report_networks import REPORTS

    plain = timm.list_models()
    names = list(REPORTS[report]) if report else plain
    if not report and (tags or any("." in word for word in words)):
        tagged = timm.list_models(pretrained=True)
        names = sorted([*tagged, *set(plain).difference(name.partition(".")[0] for name in tagged)])
    patterns = [word.lower() if set(word) & set("*?") else f"*{word.lower()}*" for word in words]
    found = [name for name in names if all(fnmatchcase(name.lower(), pattern) for pattern in patterns)]
    if pretrained:
        found = [name for name in found if cfg_of(name).has_weights]
    if not found:
        if report or pretrained:
            flags = [*(["--report", report] if report else []), *["--pretrained"] * pretrained]
            raise InputError(f"no network is left of {' '.join([*words, *flags])}; drop one of these")
        raise InputError(f"no network is named like {' '.join(words)}{suggest(words[0].strip('*?'), plain)}")
    return found


def show(names: list[str], max_params: float | None, limit: int) -> None:
    """Print a line for each network, as soon as its parameters are counted."""
    rows = (row for row in map(row_of, names) if max_params is None or float(row[1]) <= max_params)
    num_shown = 0
    for row in islice(rows, limit or None):
        num_shown or print(LINE.format(*HEADER))
        print(LINE.format(*row).rstrip(), flush=True)
        num_shown += 1
    if not num_shown:
        raise InputError(
            f"--max-params: all {len(names)} networks of these names have more than {max_params:g} million"
        )
    if any(True for _ in rows):
        print(f"the first {num_shown}; more words narrow the list, --limit 0 shows all of it", file=sys.stderr)


def row_of(name: str) -> tuple[str, ...]:
    """Return the cells of HEADER: name, parameters in millions, size in pixels, weights, reports."""
    import timm

    from carvision.models.backbones import cfg_of
    from carvision.models.report_networks import REPORTS

    plain, _, tag = name.partition(".")
    cfg = cfg_of(name)
    num_tags = len(timm.list_models(f"{plain}.*", pretrained=True))
    others = f" (+{num_tags - 1})" if num_tags > 1 else ""
    weights = "none" if not cfg.has_weights else "yes" if tag else f"{cfg.tag}{others}"
    known = [
        report for report, used in REPORTS.items() if name in (used if tag else [n.partition(".")[0] for n in used])
    ]
    return name, f"{num_parameters(plain) / 1e6:.2f}", str(cfg.input_size[-1]), weights, " ".join(known).upper()


@cache
def num_parameters(name: str) -> int:
    """Return the number of parameters without the classifier; on the meta device, which takes a tenth of a second."""
    import timm
    import torch

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm.create_model(name, num_classes=0).parameters())


if __name__ == "__main__":
    main()
