"""Files of ids: what is written is what is read, and nothing damaged is taken for an id."""

import hashlib

import pytest

from selfflow.errors import UserError
from selfflow.latents.ids import check_excluded, format_id, hash_id, hash_ids, read_ids
from tests.conftest import mentions

PLAIN = ["a.mp4@1.500", "a b", 'a"b', "a\\xff", "ü/é.mp4", "ü/é.mp4", "#x", "a,b", "日本", "a\u200db"]
QUOTED = [
    "",
    " ",
    " a",
    "a ",
    "\u00a0a",
    '"',
    '"a"',
    "a\nb",
    "a\r",
    "a\x0b\x0cb",
    "a\x85b",
    "a\u2028b",
    "\ufeffa",
    "\ta",
    "\0",
]


def test_every_id_has_one_line_that_reads_back_to_it(tmp_path):
    path = tmp_path / "ids.txt"
    lines = {format_id(id) for id in PLAIN + QUOTED}
    assert [format_id(id) for id in PLAIN] == PLAIN and len(lines) == len(set(PLAIN + QUOTED))
    assert format_id("a\nb") == '"a\\nb"'
    for end in ("\n", "\r\n"):
        for mark in (b"", b"\xef\xbb\xbf"):
            path.write_bytes(mark + end.join(sorted(lines)).encode())
            assert read_ids(path) == set(PLAIN + QUOTED)


def test_other_separators_and_blanks_belong_to_the_id(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_bytes("a\x0bb\nc\x0cd\ne\x85f\ng\u2028h\n i \n\n  \nj\rk\n".encode())
    assert read_ids(path) == {"a\x0bb", "c\x0cd", "e\x85f", "g\u2028h", " i ", "j\rk"}


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "no ids"),
        (b" \n\n", "no ids"),
        (b"\xef\xbb\xbf", "no ids"),
        ("a\n".encode("utf-16"), "UTF-16"),
        ("a\n".encode("utf-16-le"), "line 1"),
        (b"a\n\xe9\n", "line 2 UTF-8"),
        (b'a\nb\n"c\n', "line 3 JSON"),
        (b'"a" b\n', "line 1 JSON"),
        (b'"\\ud800"\n', "line 1 JSON"),
    ],
)
def test_damaged_files_are_refused_by_line(tmp_path, content, words):
    path = tmp_path / "ids.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=mentions(path, words)):
        read_ids(path)


def test_a_folder_is_no_file_of_ids(tmp_path):
    with pytest.raises(UserError, match=mentions(tmp_path)):
        read_ids(tmp_path)


def test_hashes_of_ordinary_ids_are_those_of_their_lines():
    assert hash_ids(["b", "a"], 64) == hashlib.sha256(b"a\nb").hexdigest()
    assert hash_ids(["a\nb"]) != hash_ids(["a", "b"])


def test_excluded_ids_are_in_the_data_or_were_deleted():
    deletions = [{"count": 1, "hashes": [hash_id("b")]}]
    assert check_excluded("ids.txt", {"a", "b"}, {"a", "x"}, deletions) == {"b"}
    with pytest.raises(UserError, match=mentions("ids.txt 1 3 ids", "c")):
        check_excluded("ids.txt", {"a", "b", "c"}, {"a"}, deletions)
