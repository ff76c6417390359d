"""Training sessions of a run, with commands, code and packages, from `provenance.json`."""

import ast
import shlex
from pathlib import Path
from typing import Any

from selfflow.errors import UserError
from selfflow.run.run import Run


def sessions(run: Run) -> list[dict[str, Any]]:
    """Returns the training sessions of a run, oldest first. A resumed run has several sessions.

    Raises:
      UserError: if `provenance.json` is missing or damaged.
    """
    entries = run.provenance().get("sessions", [])
    path = f"{run.path}/provenance.json"
    if not isinstance(entries, list) or not all(isinstance(session, dict) for session in entries):
        raise UserError(f"{path} is damaged: sessions is not a list of tables: restore it from a copy")
    for name, kind in {"packages": dict, "command": list, "devices": list}.items():
        for session in entries:
            if not isinstance(session.get(name) or kind(), kind):
                raise UserError(f"{path} is damaged: {name} of a session: restore it from a copy")
    return entries


def command_of(run: Run) -> str:
    """Returns the command of the run's first session; empty if it is not recorded."""
    for session in sessions(run):
        if session.get("command"):
            program, *arguments = map(str, session["command"])
            # `python -m selfflow` is equivalent to the installed command.
            name = "selfflow" if program.endswith("__main__.py") else Path(program).name
            return shlex.join([name, *arguments])
    return ""


def docstring_of(run: Run) -> tuple[str, str]:
    """Returns the docstring of a run's experiment file, and the path; both empty if the file no longer exists."""
    for session in sessions(run):
        for word in session.get("command") or []:
            path = Path(str(word))
            if path.suffix == ".py" and path.name != "__main__.py" and path.is_file():
                try:
                    return ast.get_docstring(
                        ast.parse(path.read_text(encoding="utf-8"))
                    ) or "", f"{path} (current version)"
                except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
                    return "", ""  # the file has been replaced
    return "", ""
