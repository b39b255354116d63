"""Folders into which nothing can be written: said before the images are opened, and by name."""

import os
import shutil
import subprocess
import sys

import pytest

from contrapose.files import check_writable

DROP = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"]  # root ignores modes
SCRIPT = """
import sys
from pathlib import Path
from contrapose import api
from contrapose.files import check_writable, held
from contrapose.studies import shortcuts, study, tuning

def entered(folder):
    with held(folder):
        pass

closed = Path(sys.argv[1])
for call in (
    lambda: api.train("simclr", "nowhere", out=closed / "run"),
    lambda: study.prepared("nowhere", out=closed / "study"),
    lambda: tuning.prepared("nowhere", out=closed / "tune"),
    lambda: shortcuts.examine("nowhere", out=closed / "shortcuts"),
    lambda: entered(closed),
    lambda: check_writable(closed / "file"),
):
    try:
        call()
    except OSError as error:
        print(type(error).__name__, error)
"""


def test_what_cannot_be_written_is_said_before_images_are_opened(tmp_path):
    drop = DROP if os.geteuid() == 0 else []
    if drop and shutil.which("setpriv") is None:
        pytest.skip("root may write anywhere, and setpriv is not here")
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "file").write_text("")
    (closed / "file").chmod(0o400)
    closed.chmod(0o500)
    command = [*drop, sys.executable, "-c", SCRIPT, str(closed)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    names = ("run", "study", "tune", "shortcuts", "", "file")
    for line, name in zip(lines, names, strict=True):
        assert line.startswith(f"OSError {closed / name} could not be written ("), line
        assert "; change its permissions or give another place" in line
    assert sorted(path.name for path in closed.iterdir()) == ["file"]


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/run could not be written \(.*file is a file\)"):
        check_writable(tmp_path / "file" / "run")
    check_writable(tmp_path / "file")
    check_writable(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()
