"""Runs commands one after another in one process, as its environment would have them: `terminal_runner.py CASES OUT`.

CASES is a JSON file of lists of arguments; OUT becomes one of [exit code, what was raised]. Standard output and error
are the process's own; a line of ASCII stands before each command's output.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    cases = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    from forward_influence.cli import app

    found = []
    for number, arguments in enumerate(cases):
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.write(stream.fileno(), b"\n#### %d\n" % number)
        try:
            app.main(arguments)
            found.append([0, ""])
        except SystemExit as stopped:
            found.append([int(stopped.code or 0), ""])
        except BaseException as error:
            found.append([-1, f"{type(error).__name__}: {error}"])
        Path(sys.argv[2]).write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main()
