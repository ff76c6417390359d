import errno
import fcntl
import threading

import pytest

from selfflow.latents.shard import clear_partials
from selfflow.run.folder import is_training, run_lock
from selfflow.storage.lock import locked, try_lock


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def no_locks(request, monkeypatch):
    """A file system without locks: flock fails as Linux makes it fail."""

    def flock(file, operation):
        raise OSError(request.param, "no locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


def test_one_process_holds_a_lock(tmp_path):
    path = tmp_path / "lock"
    with path.open("w") as first, path.open() as second:
        assert try_lock(first)
        assert not try_lock(second)
        assert not try_lock(second, unsupported=True)
    with path.open() as third:
        assert try_lock(third)


def test_readers_share_a_lock(tmp_path):
    path = tmp_path / "lock"
    with path.open("w") as first, path.open() as second, path.open() as third:
        assert try_lock(first, shared=True)
        assert try_lock(second, shared=True)
        assert not try_lock(third)


def test_a_second_process_waits(tmp_path):
    entered = threading.Event()

    def enter():
        with locked(tmp_path / "lock"):
            entered.set()

    with locked(tmp_path / "lock"):
        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(0.2)
    assert entered.wait(10)
    thread.join()


@pytest.mark.usefixtures("no_locks")
def test_without_locks_one_line_for_each_folder_says_so(tmp_path, capsys):
    for _ in range(2):
        with locked(tmp_path / "lock"):
            pass
        with run_lock(tmp_path / "run"):
            assert not is_training(tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert f"{tmp_path} " in lines[0] and f"{tmp_path / 'run'} " in lines[1]


@pytest.mark.usefixtures("no_locks")
def test_without_locks_temporary_files_of_others_stay(tmp_path):
    partial = tmp_path / "train.partial-1"
    partial.touch()
    clear_partials(tmp_path)
    assert partial.exists()


def test_other_errors_of_a_lock_are_raised(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.EBADF, "bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", flock)
    with (tmp_path / "lock").open("w") as file, pytest.raises(OSError) as error:
        try_lock(file)
    assert error.value.errno == errno.EBADF
