"""The real stages on a tiny cohort, each in a process of its own that can be killed, told to fail,
or run in another country.

A process that has imported what the stages import forks one for each command, so that a stage takes
a fraction of a second and not three. `python -m tests.support.stages` is that process.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import re
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
COMMANDS = {"hnm": "hnm.cli", "impatient": "tests.support.impatient"}
"""First word of what is run in place of a stage -> its module."""
ORDER = (
    "cohort",
    "tiles",
    "encoder",
    "embed@0",
    "head@0",
    "mine@1",
    "finetune@1",
    "embed@1",
    "head@1",
    "evaluate",
)
"""The stages of two rounds, in an order that DVC could take."""
IMPORTED = (
    "dvc.cli.parser",
    "dvc.repo.reproduce",
    "dvc.repo.status",
    "encodings.utf_8_sig",
    "hnm.cli",
    "hnm.tracking.runs",
    "hnm.doctor",
    "hnm.learning.encoder",
    "hnm.loop.finetune",
    "hnm.loop.head",
    "hnm.prediction.files",
    "pipelines.cohort",
    "pipelines.evaluate",
    "pipelines.tiles",
    "hypothesis.strategies",
    "imagecodecs",
    "orjson",
    "pandera.strategies",
    "plotly.io",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "scipy.stats",
    "skimage.measure",
    "sklearn.metrics",
    "torch._dynamo",
    "torch.optim",
)
"""What a stage imports sooner or later."""
SMALL: dict[str, dict[str, Any]] = {
    "cohort": {"manifest": "in/slides.csv"},
    "tissue": {"min_area_um2": 1000.0},
    "tiles": {"mpp": 2.0, "tile_px": 32},
    "encoder": {"name": "test_resnet", "weights": "random"},
    "head": {"epochs": 2, "attention_features": 8},
    "mining": {"policy": "hard", "threshold": 0.0, "negative_fraction": 0.2},
    "finetune": {"epochs": 1, "warmup_epochs": 0, "batch_tiles": 16, "projection_features": 4},
    "evaluate": {"resamples": 100},
    "compute": {"threads": 1},
}


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    """Below 0: the signal that ended it."""
    out: str
    err: str


class Launcher:
    """Starts stages and commands from one process that has imported all they need."""

    def __init__(self, **settings: str) -> None:
        """`settings` are variables that Python reads where it starts, as PYTHONHASHSEED is."""
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
        self._asking = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.stages"],
            cwd=ROOT,
            env=environment | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(
        self,
        module: str,
        arguments: list[str],
        *,
        cwd: Path,
        env: dict[str, str],
        log: str,
        umask: str = "",
        user: str = "",
    ) -> int:
        """The id of the process that runs `python -m module arguments`; it leads a group of its
        own. Its output goes to `log`.<id>.out and `log`.<id>.err.
        """
        how = {"log": log, "umask": umask, "user": user}
        return int(self._ask(module=module, arguments=arguments, cwd=str(cwd), env=env, **how))

    def wait(self, pid: int) -> int:
        """The exit code of a process, once it has ended; others can be started meanwhile."""
        ended = os.pidfd_open(pid)
        try:
            select.select([ended], [], [])
        finally:
            os.close(ended)
        return int(self._ask(wait=pid))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._asking:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())


CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as line:
    line.connect({socket!r})
    arguments = [*{arguments!r}, *sys.argv[1:]]
    line.sendall(json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode() + b"\\n")
    code, out, err = json.loads(line.makefile().read())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""


PROGRAMS: dict[str, list[str]] = {
    "stages/python": [],
    "dvc/dvc": ["-m", "dvc"],
    "hnm/hnm": ["-m", "hnm.cli"],
}


@contextmanager
def stand_in(launcher: Launcher, folder: Path) -> Iterator[Path]:
    """A folder with folders to put first into PATH. The launcher runs what they start:
    `stages/python -m module arguments`, with the code of this project, `dvc/dvc arguments` and
    `hnm/hnm arguments`.
    """
    place = str(folder / "s")
    for program, arguments in PROGRAMS.items():
        client = folder / program
        client.parent.mkdir(parents=True)
        client.write_text(CLIENT.format(python=sys.executable, socket=place, arguments=arguments))
        client.chmod(0o755)

    def serve(connection: socket.socket) -> None:
        with connection, connection.makefile() as lines:
            (_, module, *arguments), cwd, environment = json.loads(lines.readline())
            pid = launcher.start(
                module,
                arguments,
                cwd=Path(cwd),
                env=environment,
                log=str(folder / "log"),
            )
            code = launcher.wait(pid)
            texts = [
                (folder / f"log.{pid}.{name}").read_text(errors="replace")
                for name in ("out", "err")
            ]
            connection.sendall(json.dumps([code, *texts]).encode())

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection = listening.accept()[0]
                threading.Thread(target=serve, args=[connection], daemon=True).start()

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(place)
        listening.listen()
        threading.Thread(target=accept, daemon=True).start()
        yield folder
        listening.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class Project:
    """A folder with slides, a manifest and params.yaml, in which stages run."""

    folder: Path
    launcher: Launcher

    def start(
        self, stage: str, *, umask: str = "", user: str = "", log: str = "", **environment: str
    ) -> int:
        """Starts a stage by DVC's name (`head@1`), or a command of `hnm`; the id of its process.

        `umask` is in octal digits, `user` a number; `log` is where its output goes, elsewhere than
        in the project.
        """
        program, *options = shlex.split(stage)
        words = [COMMANDS[program], *options] if program in COMMANDS else command_of(stage)
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DVC", "HNM", "MLFLOW"))
        }
        settings = {} if program in COMMANDS else {"DVC_STAGE": f"{self.folder}/dvc.yaml:{stage}"}
        settings |= {
            "DVC_ROOT": str(self.folder),
            "HNM_TRACKING": "off",
            "HNM_WORKERS": "2",
            **environment,
        }
        return self.launcher.start(
            words[0],
            words[1:],
            cwd=self.folder,
            env=inherited | settings,
            log=log or str(self.folder / ".log"),
            umask=umask,
            user=user,
        )

    def wait(self, pid: int, *, log: str = "") -> Done:
        code = self.launcher.wait(pid)
        out, err = (Path(f"{log or self.folder / '.log'}.{pid}.{name}") for name in ("out", "err"))
        done = Done(code, out.read_text(errors="replace"), err.read_text(errors="replace"))
        out.unlink()
        err.unlink()
        return done

    def run(self, stage: str, *, log: str = "", **environment: str) -> Done:
        return self.wait(self.start(stage, log=log, **environment), log=log)

    def succeed(self, *stages: str, **environment: str) -> None:
        for stage in stages:
            done = self.run(stage, **environment)
            assert done.code == 0, f"{stage}: {done.err}"

    def set(self, **sections: dict[str, Any]) -> None:
        """Changes params.yaml."""
        yaml = YAML()
        params = yaml.load(self.folder / "params.yaml")
        for name, changes in sections.items():
            params[name].update(changes)
        yaml.dump(params, self.folder / "params.yaml")

    def bytes_of(self, *places: str) -> dict[str, bytes]:
        """The content of every output, or of those under `places`, by path."""
        under = [self.folder / place for place in places or ("data", "results")]
        files = [
            file
            for place in under
            for file in (place.rglob("*") if place.is_dir() else [place])
            if file.is_file()
        ]
        return {
            file.relative_to(self.folder).as_posix(): file.read_bytes() for file in sorted(files)
        }

    def clear(self, stage: str) -> None:
        """Removes a stage's outputs, as DVC does before it runs one."""
        for out in outs_of(stage):
            path = self.folder / out
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def empty(self, stage: str) -> None:
        """Goes back to before a stage's first run: its outputs and the store are gone."""
        self.clear(stage)
        shutil.rmtree(self.folder / ".hnm" / "store", ignore_errors=True)

    def copy(self, target: Path) -> "Project":
        shutil.copytree(self.folder, target, symlinks=True)
        return Project(target, self.launcher)


def make_project(folder: Path, cohort: Path, launcher: Launcher) -> Project:
    """A project of two rounds with the demo cohort of the folder `cohort`, in which nothing has
    run.
    """
    folder.mkdir(parents=True)
    shutil.copytree(cohort, folder / "in")
    for name in ("vetoes", "extra", "weights"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "dvc.yaml", folder)
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    later = {"1": {"previous": "0"}}
    params["later_rounds"], params["rounds"] = later, {"0": {}, **later}
    yaml.dump(params, folder / "params.yaml")
    project = Project(folder, launcher)
    project.set(**SMALL)
    return project


def command_of(stage: str) -> list[str]:
    """The module of a stage by DVC's name, and its arguments, as dvc.yaml has them."""
    return shlex.split(_filled(stage)["cmd"])[2:]


def outs_of(stage: str) -> list[str]:
    """Paths of the outputs of a stage by DVC's name."""
    raw = _filled(stage)
    return [
        entry if isinstance(entry, str) else next(iter(entry))
        for kind in ("outs", "metrics")
        for entry in raw.get(kind, [])
    ]


def _filled(stage: str) -> Any:
    name, _, key = stage.partition("@")
    raw = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"][name]
    text = json.dumps(raw.get("do", raw)).replace("${key}", key)
    return json.loads(re.sub(r"\$\{item\.previous\}", str(int(key or 0) - 1), text))


def _serve() -> None:
    """Answers requests, one a line, until there are no more."""
    for name in IMPORTED:
        importlib.import_module(name)
    sys.modules["hnm.learning.encoder"].import_timm()
    gc.collect()
    gc.freeze()
    ended: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            while request["wait"] not in ended:
                pid, status = os.wait()
                ended[pid] = os.waitstatus_to_exitcode(status)
            answer = ended.pop(request["wait"])
        else:
            answer = os.fork()
            if answer == 0:
                _end(_become(request))
        print(answer, flush=True)


def _become(request: dict[str, Any]) -> int:
    """What a forked process does: it becomes `python -m module arguments`."""
    os.setsid()
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    os.chdir(request["cwd"])
    for number, name in ((0, None), (1, "out"), (2, "err")):
        handle = os.open(
            f"{request['log']}.{os.getpid()}.{name}" if name else os.devnull,
            os.O_RDWR | os.O_CREAT | os.O_TRUNC,
            0o666,
        )
        os.dup2(handle, number)
        os.close(handle)
    if request["umask"]:
        os.umask(int(request["umask"], 8))
    if request["user"]:
        os.setgroups([])
        os.setgid(int(request["user"]))
        os.setuid(int(request["user"]))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [request["module"], *request["arguments"]]
    module = request["module"] + (".__main__" if request["module"] in ("dvc", "hnm.cli") else "")
    sys.modules.pop(module, None)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):  # as an interpreter ends that nobody has forked
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        return 1
    return 0


def _end(code: int) -> None:
    """Ends as an interpreter does, with the handlers of Python and of the C libraries, but does not
    take a large heap apart.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).exit(code)


if __name__ == "__main__":
    _serve()
