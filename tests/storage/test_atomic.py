"""Atomic writes: the previous file or the new one, and nothing else in the folder."""

import pytest

from selfflow.storage.atomic import atomic_write


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_appears_at_the_end_of_the_block(tmp_path, durable):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with atomic_write(path, durable=durable) as partial:
        partial.write_text("new")
        assert path.read_text() == "old" and partial.parent == tmp_path and ".partial-" in partial.name
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_an_error_keeps_the_previous_file_and_removes_the_temporary_one(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_the_error_of_the_writer(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "missing" / "file.txt") as partial:
        partial.write_text("new")
