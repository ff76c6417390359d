"""Words that the code, its messages and its documents do without: the field has others (see README)."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# image, video and audio are the modalities; metadata, manifest and message are nouns; the rest has plainer words.
BANNED = re.compile(r"\b(films?|stills|pictures?|told|brought|begun|yardsticks?|held against|by lot)\b", re.IGNORECASE)
_FILES = [
    ROOT / "README.md",
    *(
        path
        for folder in ("selfflow", "data", "notebooks", "experiments")
        for pattern in ("*.py", "*.md")
        for path in sorted((ROOT / folder).rglob(pattern))
    ),
]


def banned_words(text: str) -> list[str]:
    """Banned words of a text, those inside identifiers included."""
    return BANNED.findall(text.replace("\\n", " ").replace("_", " "))


def test_no_file_uses_a_banned_word():
    found = {str(path.relative_to(ROOT)): banned_words(path.read_text()) for path in _FILES}
    assert {path: words for path, words in found.items() if words} == {}


# In tests a sound is the physical one, of contacts in Collisions and of Pong; nothing is named after the modality.
_TEST_NAMES = re.compile(r"^(films?|stills|pictures?|sounds?)$", re.IGNORECASE)


def names(source: str) -> set[str]:
    """Names that a program defines: functions, arguments and variables."""
    kinds = {ast.FunctionDef: "name", ast.ClassDef: "name", ast.arg: "arg", ast.Name: "id", ast.Attribute: "attr"}
    return {getattr(node, kinds[type(node)]) for node in ast.walk(ast.parse(source)) if type(node) in kinds}


def modality_names(source: str) -> set[str]:
    """Names of a program that consist of a banned word for a modality."""
    return {name for name in names(source) if _TEST_NAMES.match(name)}


def test_tests_name_modalities_as_the_package_does():
    by_file = {path.name: modality_names(path.read_text()) for path in sorted((ROOT / "tests").rglob("*.py"))}
    assert {name: words for name, words in by_file.items() if words} == {}
    assert modality_names("def f(films): SOUND = films") == {"films", "SOUND"}


@pytest.mark.parametrize(
    "text", ["two Films", r'print("\nPictures")', "def _told(x)", "silent_film = 1", "scores held against others"]
)
def test_the_check_itself_can_fail(text):
    assert banned_words(text)
