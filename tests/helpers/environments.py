"""Virtual environments with an unmodified anomalib, created in seconds and without a network.

An environment has links to all packages of the running one, except the plugin. What is then installed, uninstalled or
damaged in it does not affect the running one.
"""

import json
import os
import subprocess
import sysconfig
import venv
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
OWN = ("anovl_plugin", "_anovl_plugin", "_editable_impl_anovl_plugin")
# Imports of anomalib and the plugin, made once instead of once per scenario.
PRELOADED = (
    "torch, torchvision, torchmetrics, lightning.pytorch, kornia, timm, open_clip, pandas, sklearn, jsonargparse"
)
# Runs each scenario that it reads in its own fork, as many at once as there are processors, and writes their output and
# exit status to files.
FORKS = f"""
import json, os, runpy, sys, traceback, warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import {PRELOADED}
scenarios, folder = json.load(sys.stdin), sys.argv[1]
running = {{}}
def finish_one():
    child, status = os.wait()
    with open(running.pop(child) + ".status", "w") as file:
        file.write(str(os.waitstatus_to_exitcode(status)))
for name, code in scenarios.items():
    path = os.path.join(folder, name)
    if len(running) >= (os.cpu_count() or 1):
        finish_one()
    child = os.fork()
    if not child:
        for stream, number in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(path + "." + stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        try:
            exec(code, {{"__name__": "__main__"}})
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else bool(stop.code)
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    running[child] = path
while running:
    finish_one()
"""


class Outcome(NamedTuple):
    """Exit status and output of a process.

    Attributes:
        status: Exit status.
        stdout: Standard output.
        stderr: Standard error.
    """

    status: int
    stdout: str
    stderr: str

    @property
    def result(self) -> object:
        """The last line of the output, parsed as JSON; fails with the whole output if the process failed."""
        self.check()
        return json.loads(self.stdout.splitlines()[-1])

    def check(self) -> "Outcome":
        """Return itself; fail with the whole output if the process failed."""
        assert self.status == 0, f"{self.stdout}\n{self.stderr}"
        return self


class Environment:
    """A virtual environment with the packages of the running one, except the plugin.

    Args:
        folder: Empty folder to create it in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "environment"
        self.work = folder / "work"
        self.work.mkdir()
        venv.create(self.folder, symlinks=True, with_pip=find_spec("pip") is None)
        where = {"base": str(self.folder), "platbase": str(self.folder)}
        self.packages = Path(sysconfig.get_path("purelib", "venv", where))
        self.scripts = Path(sysconfig.get_path("scripts", "venv", where))
        self.python = self.scripts / "python"
        self._link_packages()
        self.anomalib = self.scripts / "anomalib"
        _, *lines = (Path(sysconfig.get_path("scripts")) / "anomalib").read_text().splitlines()
        self.anomalib.write_text("\n".join([f"#!{self.python}", *lines, ""]))

    def _link_packages(self) -> None:
        for path in Path(sysconfig.get_path("purelib")).iterdir():
            target = self.packages / path.name
            if not path.name.startswith((*OWN, "__pycache__")) and not target.exists():
                target.symlink_to(path)

    def run(self, *command: object, stdin: str | None = None, **variables: str) -> Outcome:
        """Run a command in the work folder, with only the given settings of Python, pip and the plugin."""
        settings = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "ANOVL", "PIP"))}
        settings |= {
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "COLUMNS": "200",
            **variables,
        }
        done = subprocess.run(
            [str(part) for part in command],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.work,
            env=settings,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def execute(self, code: str, *options: str, **variables: str) -> Outcome:
        """Run code in a new Python process."""
        return self.run(self.python, *options, "-c", code, **variables)

    def fork(self, scenarios: dict[str, str], **variables: str) -> dict[str, Outcome]:
        """Run pieces of code, each in a fork of one Python that has imported neither anomalib nor the plugin.

        The plugin's start-up hook has run in it, as in every Python of the environment.
        """
        self.run(self.python, "-c", FORKS, self.work, stdin=json.dumps(scenarios), **variables).check()
        return {
            name: Outcome(
                int((self.work / f"{name}.status").read_text()),
                (self.work / f"{name}.stdout").read_text(),
                (self.work / f"{name}.stderr").read_text(),
            )
            for name in scenarios
        }

    def command(self, *arguments: object) -> str:
        """Return code that runs an anomalib command, for :meth:`fork`."""
        argv = [str(part) for part in (self.anomalib, *arguments)]
        return f"import runpy, sys; sys.argv = {argv}; runpy.run_path(sys.argv[0], run_name='__main__')"

    def pip(self, *arguments: object) -> Outcome:
        """Run pip; nothing may be downloaded."""
        return self.run(self.python, "-m", "pip", *arguments).check()

    def install(self, *options: object) -> "Environment":
        """Install the plugin from its sources, and return the environment."""
        self.pip("install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", *options, ROOT)
        return self

    def entries(self) -> set[str]:
        """Return the names in site-packages, except caches."""
        return {path.name for path in self.packages.iterdir()} - {"__pycache__"}
