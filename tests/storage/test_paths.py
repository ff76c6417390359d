import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from selfflow.errors import UserError
from selfflow.storage.paths import cache_folder, data_folder, url_of_copy
from tests.conftest import mentions


@pytest.fixture
def no_home(monkeypatch):
    """A user without a home folder and without an entry in the password database, as in a container."""

    def no_entry(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("SELFFLOW_DATA", raising=False)
    monkeypatch.delenv("SELFFLOW_CACHE", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)


@pytest.mark.usefixtures("no_home")
def test_without_a_home_folder_the_variables_are_named(tmp_path):
    with pytest.raises(UserError, match=mentions("SELFFLOW_DATA").pattern):
        data_folder(None)
    with pytest.raises(UserError, match=mentions("SELFFLOW_CACHE").pattern):
        cache_folder()
    assert data_folder(tmp_path) == tmp_path


@pytest.mark.usefixtures("no_home")
def test_without_a_home_folder_a_local_path_is_no_copy(tmp_path):
    assert url_of_copy(tmp_path / "run") is None


@pytest.mark.parametrize("home, writes_elsewhere", [("/nonexistent/home", True), (str(Path(__file__).parent), False)])
def test_caches_of_libraries_lie_elsewhere_where_home_cannot_be_written(home, writes_elsewhere):
    environment = {name: value for name, value in os.environ.items() if name != "XDG_CACHE_HOME"} | {"HOME": home}
    code = (
        "import selfflow, os, pathlib; f = os.environ.get('XDG_CACHE_HOME'); print(f, f and pathlib.Path(f).is_dir())"
    )
    line = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout
    folder, existed = line.split()
    assert existed == str(writes_elsewhere or None)
    assert not Path(folder).exists()  # removed with the process
