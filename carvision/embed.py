"""carvision embed RUN [overrides]: photos as vectors, on disk. See --help."""

import argparse

from carvision.embedding.options import create_parser, parse
from carvision.errors import one_line_errors

HELP = """Write the embeddings of a data set: a vector for each photo, close to those of
photos that look alike.

  carvision embed runs/mine                                  all photos of the run's data
  carvision embed runs/mine data=folder data.root=others     other photos
  carvision embed --backbone resnet50 data=folder data.root=photos      a backbone of timm, without a run
  carvision embed --backbone mobilenetv2_035 --weights own.safetensors 'model.backbone_kwargs={pad_type:same}'

The folder then holds embeddings.npy (numpy.load(..., mmap_mode="r") maps it),
index.csv with a line for each of its rows, and embeddings.json. carvision
retrieve takes it instead of a run. data=... and data.<key>=<value> are as in
training (carvision train --help). If the command is killed, the same one with
the same --out starts over there.
"""


def embed(arguments: list[str] | None = None) -> None:
    """Write embeddings. arguments: default: the command line's."""
    options = options_of(arguments)
    with one_line_errors():
        # Imported here, as --help and a wrong option need no torch
        from carvision.embedding.embed import run

        folder = run(options)
    print(f"embed: {folder}")


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = create_parser("embed", HELP)
    add = parser.add_argument
    add("--split", choices=["train", "val", "test", "all"], default="all", help="default: all")
    add("--dtype", choices=["float32", "float16"], default="float32", help="in the file (default: float32)")
    return parse(parser, arguments)


if __name__ == "__main__":
    embed()
