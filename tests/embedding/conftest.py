"""A copy of the demo run, which these commands write into, and the embeddings of its photos."""

import shutil

import pytest

from carvision.embed import embed


@pytest.fixture(scope="package")
def run(demo_run, tmp_path_factory):
    return shutil.copytree(demo_run, tmp_path_factory.mktemp("embedding") / "run")


@pytest.fixture(scope="package")
def vectors(run):
    """The folder that carvision.embed writes of all photos of the run."""
    embed([str(run), "--out", str(run.parent / "vectors")])
    return run.parent / "vectors"
