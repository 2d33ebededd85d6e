"""The code interpreter's service as a process on this machine, with the distributions that the template pins, and a client that speaks as the SDKs do."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

import published

CHECKOUT = Path(__file__).parents[3]
IMAGES = CHECKOUT / "src" / "torpor" / "images"
PINS = IMAGES / "code-interpreter.lock"
NOT_NEEDED = {"scikit-learn", "scipy", "joblib", "threadpoolctl", "openpyxl", "et-xmlfile", "narwhals", "cloudpickle", "requests", "urllib3", "idna", "certifi"}
"""Large, and nothing of the service's."""
E2B = "e2b-code-interpreter==2.11.5"
_READY_SECONDS = 240


def _requirements() -> str:
    blocks = re.split(r"\n(?=[a-zA-Z])", PINS.read_text())
    return "\n".join(block for block in blocks if block.partition("==")[0] not in NOT_NEEDED)


def _made_once(folder: Path, *commands: list[str]) -> None:
    with published.alone(folder):
        if (folder / "complete").exists():
            return
        for command in commands:
            subprocess.run(command, check=True, timeout=600, stdout=subprocess.DEVNULL)
        (folder / "complete").touch()


def interpreter_python() -> Path:
    """A virtual environment with the pins, kept from run to run."""
    wanted = _requirements()
    folder = CHECKOUT / ".work" / "interpreter" / hashlib.sha256(f"{sys.version}{wanted}".encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "requirements").write_text(wanted)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    _made_once(folder, [sys.executable, "-m", "venv", str(folder)], [*pip, "-r", str(folder / "requirements")])
    return folder / "bin" / "python"


def sdk_models() -> tuple[types.ModuleType, types.ModuleType]:
    """(models, charts) of the published package. Of what it stands on only the names of three errors are needed here."""
    folder = CHECKOUT / ".work" / "sdk" / E2B
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder), E2B]
    _made_once(folder, pip)
    ground = types.ModuleType("e2b")
    for name in ("NotFoundException", "TimeoutException", "SandboxException"):
        setattr(ground, name, type(name, (Exception,), {}))
    package = types.ModuleType("e2b_models")
    package.__path__ = [str(folder / "e2b_code_interpreter")]
    before = sys.modules.get("e2b")
    sys.modules |= {"e2b": ground, "e2b_models": package}
    try:
        return importlib.import_module("e2b_models.models"), importlib.import_module("e2b_models.charts")
    finally:
        sys.modules.pop("e2b") if before is None else sys.modules.__setitem__("e2b", before)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Service:
    """A running service. `generation` is the file it watches."""

    process: subprocess.Popen[bytes]
    port: int
    jupyter_port: int
    generation: Path
    client: httpx.Client

    @property
    def jupyter(self) -> str:
        return f"http://127.0.0.1:{self.jupyter_port}"

    def lines(self, code: str, **fields: Any) -> list[dict[str, Any]]:
        """What /execute says."""
        with self.client.stream("POST", "/execute", json={"code": code, **fields}) as response:
            response.read()
            assert response.status_code == 200, response.text
            return [json.loads(line) for line in response.text.splitlines()]

    def run(self, code: str, **fields: Any) -> Run:
        return Run(self.lines(code, **fields))

    def context(self, **fields: Any) -> str:
        response = self.client.post("/contexts", json=fields)
        assert response.status_code == 200, response.text
        return str(response.json()["id"])


class Run:
    """A cell's lines, sorted."""

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        self.lines = lines
        self.out = "".join(line["text"] for line in lines if line["type"] == "stdout")
        self.err = "".join(line["text"] for line in lines if line["type"] == "stderr")
        self.results = [line for line in lines if line["type"] == "result"]
        self.error = next((line for line in lines if line["type"] == "error"), None)
        self.count = next((line["execution_count"] for line in lines if line["type"] == "number_of_executions"), None)

    @property
    def text(self) -> str | None:
        return next((line.get("text") for line in self.results if line["is_main_result"]), None)


@contextlib.contextmanager
def running(directory: Path, env: Mapping[str, str] | None = None) -> Iterator[Service]:
    """The service, ready; at the end it and everything it started are gone."""
    python = interpreter_python()
    (directory / "torpor_code").symlink_to(IMAGES / "interpreter")
    generation = directory / "generation"
    generation.write_text("1\n")
    home = directory / "home"
    home.mkdir()
    port, jupyter_port = free_port(), free_port()
    program = f"import sys; sys.path.insert(0, {str(directory)!r}); from torpor_code.server import main; main()"
    options = ["--address", "127.0.0.1", "--e2b-port", str(port), "--jupyter-port", str(jupyter_port), "--cwd", str(home), "--generation", str(generation)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment |= {"HOME": str(home), "MPLCONFIGDIR": str(directory / "mpl"), "PYTHONDONTWRITEBYTECODE": "1", **(env or {})}
    process = subprocess.Popen([str(python), "-c", program, *options], stdout=subprocess.PIPE, env=environment)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"  # the test's own time limit ends a wait without end
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=_READY_SECONDS) as client:
            yield Service(process, port, jupyter_port, generation, client)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(30) in (0, 1)
        finally:
            process.kill()
            process.stdout.close()
