"""The command line as a real process, 80 columns wide."""

import os
import subprocess
import sys


def contrapose(*arguments: object, cwd=None, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", **environment}
    command = [sys.executable, "-m", "contrapose", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)
