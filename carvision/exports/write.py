"""Write a run in several formats: each that can be written is, whatever becomes of the others. Imports no torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from carvision.errors import InputError, one_line
from carvision.files.atomic import refuse_link_out

NAMES = {  # default, in RUN/export
    "onnx": "model.onnx", "torch-export": "model.pt2", "timm": "timm", "hub": "hub", "space": "space",
}  # fmt: skip


def write(run: Path, outs: dict[str, Path | None], head: str | None) -> list[str]:
    """Write each format to its path (None: the default), and print what it is and where.

    head: see export_timm. Returns a line for each format that could not be written.
    """
    folder = run if run.is_dir() else run.parent
    if None in outs.values():
        refuse_link_out(folder / "export")
    paths = {name: out or folder / "export" / NAMES[name] for name, out in outs.items()}
    problems: dict[str, str] = {}
    for name, path in paths.items():
        with _collected(name, problems):
            _check_path(name, path)
    if len(problems) < len(paths):
        from carvision.inference import model_file

        model = model_file.load(run)
        for name in (name for name in paths if name not in problems):
            with _collected(name, problems):
                print(_export(name, model, folder, paths[name], head))
                print(f"export: {paths[name]}")
    return [problems[name] for name in paths if name in problems]


@contextmanager
def _collected(name: str, problems: dict[str, str]) -> Iterator[None]:
    """Put the error of a format into `problems`, as one line."""
    try:
        yield
    except InputError as error:
        text = str(error)
        problems[name] = text if text.startswith("--") else f"--format {name}: {text}"
    except Exception as error:  # torch, onnx, timm and the hub's client raise many types
        if os.environ.get("CARVISION_DEBUG"):
            raise
        problems[name] = f"--format {name}: it failed ({type(error).__name__}: {one_line(error, 300)})"


def _check_path(name: str, path: Path) -> None:
    """Raise InputError for a path that the format can't be written to."""
    from carvision.exports.shared import require_absent

    suffix = Path(NAMES[name]).suffix
    if path.suffix != suffix and suffix:  # torch.export.load takes no other name
        raise InputError(f"--out: {path} is the name of a file for --format {name}; it must end in {suffix}")
    require_absent(path)


def _export(name: str, model, folder: Path, path: Path, head: str | None) -> str:
    """Write a format; return its summary line. Imports only what it needs: the hub's client takes a second."""
    match name:
        case "onnx":
            from carvision.exports.graphs import export_onnx

            return export_onnx(model, path)
        case "torch-export":
            from carvision.exports.graphs import export_torch

            return export_torch(model, path)
        case "timm":
            from carvision.exports.timm import export_timm

            return export_timm(model, path, head)
        case "space":
            from carvision.exports.space import export_space

            return export_space(model, folder, path)
    from carvision.exports.hub import export_hub

    return export_hub(model, folder, path, head)
