"""The command line as a real process, 80 columns wide."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# A process that has imported everything once and then forks for each command, since to import
# torch takes seconds. The child is the end of the script, so that it ends as any process does.
FORKS = """
import json, os, sys
import torch._dynamo
import contrapose.cli, contrapose.commands.console, contrapose.commands.jobs
import contrapose.downstream, contrapose.encoders.resnet, contrapose.explain, contrapose.report
import contrapose.studies.shortcuts, contrapose.studies.study, contrapose.studies.tuning
asked, told = (os.fdopen(int(fd), mode) for fd, mode in zip(sys.argv[1:], "rw"))
for line in asked:
    if (pid := os.fork()) == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=told, flush=True)
else:
    os._exit(0)
os.close(asked.fileno()), os.close(told.fileno())
wanted = json.loads(line)
for fd, path, flags in (0, os.devnull, 0), (1, wanted["out"], 1), (2, wanted["err"], 1):
    os.dup2(os.open(path, flags), fd)
os.chdir(wanted["cwd"])
os.environ.clear()
os.environ.update(wanted["env"])
sys.argv = ["contrapose", *wanted["arguments"]]
contrapose.cli.main()
"""
AT_START = ("OMP_", "MKL_", "PYTHON", "COLUMNS", "NO_COLOR")  # read when modules are imported
LOOK = {"COLUMNS": "80", "NO_COLOR": "1"}


def contrapose(
    *arguments: object, cwd: Any = None, fresh: bool = False, **environment: str
) -> subprocess.CompletedProcess:
    """`contrapose ARGUMENTS` to its end. fresh: from an interpreter that imported nothing yet."""
    own = {**os.environ, **LOOK, **environment}
    words = list(map(str, arguments))
    if fresh or any(name.startswith(AT_START) for name in environment):
        command = [sys.executable, "-m", "contrapose", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=own)
    server, ask, told = forks(os.getpid())
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder) / name for name in ("out", "err"))
        out.touch(), err.touch()
        wanted = {"out": str(out), "err": str(err), "cwd": str(cwd or Path.cwd()), "env": own}
        print(json.dumps({**wanted, "arguments": words}), file=ask, flush=True)
        answer = told.readline()
        assert answer, f"the process that forks has ended with {server.wait()}"
        return subprocess.CompletedProcess(words, int(answer), out.read_text(), err.read_text())


@functools.cache
def forks(_: int) -> tuple[subprocess.Popen, Any, Any]:
    """(the process that forks, where it is asked, where it answers), once a process of pytest."""
    (asked, ask), (told, tell) = os.pipe(), os.pipe()
    command = [sys.executable, "-c", FORKS, str(asked), str(tell)]
    server = subprocess.Popen(command, pass_fds=(asked, tell), env={**os.environ, **LOOK})
    os.close(asked), os.close(tell)
    return server, os.fdopen(ask, "w"), os.fdopen(told)
