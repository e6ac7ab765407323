"""Run commands as a user does, and read anomalib's command lines without creating anything."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

from anomalib.cli.cli import AnomalibCLI

ROOT = Path(__file__).parents[2]
# tests/integration/test_guide.py runs this page as a whole.
GUIDE = ROOT / "docs" / "first_prediction.md"
OFFLINE = {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
# The Python that runs commands answers one after the other.
_ONE_AT_A_TIME = Lock()

# Imports what all commands import, which takes longer than most of them, and runs each in a fork, which leaves the loop
# and ends as a Python does that was started for the command alone.
STARTER = """
import json, os, runpy, sys
# OpenVINO reports that it is imported, from a thread and a process that would still run when this forks.
sys.modules["openvino_telemetry"] = None
import anomalib.cli.cli, anomalib.data, anomalib.engine, anomalib.models
del sys.modules["openvino_telemetry"]
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
os.chdir(request["folder"])
os.environ.clear()
os.environ.update(request["environment"])
streams = [os.devnull, request["stdout"], request["stderr"]]
for number, path in enumerate(streams):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
(program, *words) = request["words"]
if program.endswith("python"):
    program, *words = words
sys.argv = [program, *words]
if program == "-m":
    del sys.argv[0]
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
elif program == "-c":
    del sys.argv[1]
    exec(compile(words[0], "<string>", "exec"), {"__name__": "__main__"})
else:
    runpy.run_path(program, run_name="__main__")
"""


def run(words: list[str], folder: Path, *, warm: bool = True) -> subprocess.CompletedProcess:
    """Run a command of this environment in a folder, offline and with a cache of its own.

    Args:
        words: The command: ``anomalib`` or ``python`` with arguments, or any other program.
        folder: Where to run it.
        warm: Whether a Python that has imported anomalib already may run it in a fork. Default: yes.
    """
    environment = {**os.environ, **OFFLINE, "XDG_CACHE_HOME": str(folder / "cache")}
    if words[0] not in {"anomalib", "python"}:
        warm = False
    else:
        words = [str(Path(sys.executable).parent / words[0]), *words[1:]]
    if not warm:
        return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    with TemporaryDirectory() as name:
        streams = {stream: f"{name}/{stream}" for stream in ("stdout", "stderr")}
        request = {"words": words, "folder": str(folder), "environment": environment, **streams}
        with _ONE_AT_A_TIME:
            starter = _starter()
            print(json.dumps(request), file=starter.stdin, flush=True)
            status = int(starter.stdout.readline())
        return subprocess.CompletedProcess(words, status, *(Path(path).read_text() for path in streams.values()))


@cache
def _starter() -> subprocess.Popen:
    """Start the Python that runs commands; it ends with this one, which closes its input."""
    return subprocess.Popen(
        [sys.executable, "-c", STARTER],
        cwd=ROOT.anchor,
        env=os.environ | OFFLINE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


class ReadingCLI(AnomalibCLI):
    """Reads a command line and creates neither model nor data."""

    def before_instantiate_classes(self):
        """Keep the configuration unchanged."""

    def instantiate_classes(self):
        """Create nothing."""
