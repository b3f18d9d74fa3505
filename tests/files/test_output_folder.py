"""An output folder is complete or marked, and refilled only by the command that was killed in it."""

import os

import pytest

from carvision.errors import InputError
from carvision.files.output_folder import MARK, output_folder


def killed(folder, *names) -> None:
    """Leave the folder as a process does that is killed after it has written these files."""
    child = os.fork()
    if not child:
        with output_folder(folder, folder.parent, "embeddings"):
            for name in names:
                (folder / name).write_text("of the killed one")
            os._exit(9)
    assert os.waitpid(child, 0)[1] >> 8 == 9


def refused(folder, command="embeddings") -> None:
    with pytest.raises(InputError, match=r"--out: .* exists already"), output_folder(folder, folder, command):
        pass


def test_a_folder_is_complete_or_marked(tmp_path):
    with output_folder(None, tmp_path / "all", "embeddings", "test_") as folder:
        assert folder.parent == tmp_path / "all" and folder.name.startswith("test_") and (folder / MARK).exists()
        (folder / "embeddings.json").write_text("{}")
    assert [path.name for path in folder.iterdir()] == ["embeddings.json"]
    refused(folder)


def test_the_same_command_starts_over_after_a_kill_and_leaves_other_files_alone(tmp_path):
    folder, names = tmp_path / "out", ("embeddings.npy.partial", "index.csv")
    killed(folder, *names)
    refused(folder, "evaluate")
    assert {path.name for path in folder.iterdir()} >= {MARK, *names}
    (folder / "history.csv").write_text("mine")
    with output_folder(folder, tmp_path, "embeddings"):
        assert not {path.name for path in folder.iterdir()} & set(names)
    assert [path.name for path in folder.iterdir()] == ["history.csv"]
    refused(folder)
    assert [path.name for path in folder.iterdir()] == ["history.csv"]


@pytest.mark.parametrize("name", ["", "index.csv"])
def test_after_an_error_before_anything_was_written_the_folder_is_removed(name, tmp_path):
    with pytest.raises(KeyboardInterrupt), output_folder(tmp_path / "out", tmp_path, "embeddings") as folder:
        if name:
            (folder / name).write_text("")
        raise KeyboardInterrupt
    assert folder.exists() == bool(name)
    with output_folder(folder, tmp_path, "embeddings"):
        assert not (folder / "index.csv").exists()


def test_two_commands_do_not_write_into_one_folder(tmp_path):
    killed(tmp_path / "out")
    with output_folder(tmp_path / "out", tmp_path, "embeddings"):
        child = os.fork()
        if not child:
            try:
                with output_folder(tmp_path / "out", tmp_path, "embeddings"):
                    os._exit(1)
            except InputError as error:
                os._exit(0 if "another command is writing into" in str(error) else 2)
        assert os.waitpid(child, 0)[1] == 0
