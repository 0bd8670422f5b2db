"""Services of a compose file as processes of this machine: the file's own commands, environment and mounted files.

What Docker would do is done by hand: a folder per service stands for its file system, service names become
loopback addresses, ports inside containers become free ports of this machine, and `depends_on` decides about the
order. Images are told apart by what they run: ours is this environment, Prometheus is the program on the PATH.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compose_file import DEPLOY, mounts

LOOPBACK = "127.0.0.1"
START_WITHIN_S = 60.0
INTERVAL = re.compile(r"^(\s*(?:scrape|evaluation|refresh)_interval:).*$", re.MULTILINE)
"""The one thing in mounted files that is changed besides addresses: a test does not wait a quarter of a minute."""


@dataclass(eq=False)
class Local:
    """One service."""

    name: str
    service: dict[str, Any]
    root: Path
    """Its file system: what is mounted, and nothing else."""
    ports: dict[int, int] = field(default_factory=dict)
    """Ports inside the container, and where they are here."""
    mounted: list[str] = field(default_factory=list)
    """Where in its file system something is."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def names(self) -> list[str]:
        networks = self.service.get("networks")
        aliases = networks.get("fleet", {}).get("aliases", []) if isinstance(networks, dict) else []
        return [self.name, *aliases]

    def url(self, port: int) -> str:
        return f"http://{LOOPBACK}:{self.ports[port]}"

    def log(self) -> str:
        return self.root.with_suffix(".log").read_text(errors="replace")


class Project:
    """The services that are to run, each ready to be started."""

    def __init__(self, document: dict[str, Any], services: dict[str, Any], folder: Path) -> None:
        self._folder = folder
        self.services = {name: Local(name, service, folder / name) for name, service in services.items()}
        ports = {"prometheus": 9090}
        for local in self.services.values():
            local.root.mkdir()
            local.ports = {ports.get(local.name, 8000): free_port()}
            if local.name.startswith("router"):
                local.ports[9464] = free_port()
            for mount in mounts(document, local.service, DEPLOY):
                self._mount(local, mount.source, mount.target)

    def up(self) -> None:
        self._resolve_names()
        for local in self.services.values():
            self._start_after_its_dependencies(local)
        for local in self.services.values():
            if "healthcheck" in local.service:
                self._wait_for(local, "service_healthy")

    def down(self) -> None:
        processes = [local.process for local in self.services.values() if local.process is not None]
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start_after_its_dependencies(self, local: Local) -> None:
        if local.process is not None:
            return
        dependencies = {
            self.services[name]: dependency["condition"]
            for name, dependency in local.service.get("depends_on", {}).items()
            if name in self.services
        }
        for other in dependencies:
            self._start_after_its_dependencies(other)
        for other, condition in dependencies.items():
            self._wait_for(other, condition)
        self._start(local)

    def _start(self, local: Local) -> None:
        argv = [self._text(local, word) for word in self._command(local)]
        environment = local.service.get("environment", {})
        given = {name: self._text(local, str(value)) for name, value in environment.items()}
        if local.name.startswith("router"):
            given["FAIRLEAD_LISTEN__PORT"] = str(local.ports[8000])
            given["FAIRLEAD_STATUS__PORT"] = str(local.ports[9464])
        if argv[0].endswith("prometheus"):
            argv.append(f"--web.listen-address={LOOPBACK}:{local.ports[9090]}")
        with local.root.with_suffix(".log").open("wb") as log:
            local.process = subprocess.Popen(
                argv, cwd=local.root, env={"PATH": os.environ["PATH"], **given}, stdout=log, stderr=log
            )

    def _wait_for(self, local: Local, condition: str) -> None:
        if condition == "service_completed_successfully":
            assert local.process.wait(START_WITHIN_S) == 0, local.log()
        if condition == "service_healthy":
            until(lambda: self._is_healthy(local), lambda: f"{local.name} is not healthy:\n{local.log()}")

    def _is_healthy(self, local: Local) -> bool:
        """Run the health check of the file once."""
        assert local.process.poll() is None, f"{local.name} has ended:\n{local.log()}"
        test = local.service["healthcheck"]["test"]
        assert test[0] == "CMD"
        argv = [self._text(local, word) for word in test[1:]]
        return subprocess.run([found(argv[0]), *argv[1:]], capture_output=True, check=False).returncode == 0

    def _command(self, local: Local) -> list[str]:
        service = local.service
        default = "fairlead" if service["image"].startswith("fairlead:") else "prometheus"
        entrypoint = service.get("entrypoint", [default])
        return [found(entrypoint[0]), *entrypoint[1:], *service.get("command", ())]

    def _mount(self, local: Local, source: Path | str, target: str) -> None:
        local.mounted.append(target)
        place = local.root / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, str):
            volume = self._folder / "volumes" / source
            volume.mkdir(parents=True, exist_ok=True)
            place.symlink_to(volume)
        elif source.is_dir():
            shutil.copytree(source, place)
        else:
            place.write_text(source.read_text())

    def _resolve_names(self) -> None:
        """In every mounted file, as in commands and environment."""
        for local in self.services.values():
            for file in local.root.rglob("*.y*ml"):
                file.write_text(INTERVAL.sub(r"\1 1s", self._addresses(local, file.read_text())))

    def _text(self, local: Local, text: str) -> str:
        """A word of a command or a value of the environment, as it is true on this machine."""
        if text.isdigit() and int(text) in local.ports:
            return str(local.ports[int(text)])
        return self._paths(local, self._addresses(local, text).replace("0.0.0.0", LOOPBACK))

    def _addresses(self, local: Local, text: str) -> str:
        for other in self.services.values():
            own = ["localhost", LOOPBACK] if other is local else []
            for name in [*other.names, *own]:
                for inside, here in other.ports.items():
                    text = re.sub(rf"(?<![\w.-]){re.escape(name)}:{inside}\b", f"{LOOPBACK}:{here}", text)
        return text

    def _paths(self, local: Local, text: str) -> str:
        places = "|".join(map(re.escape, sorted(local.mounted, key=len, reverse=True)))
        if not places:
            return text
        return re.sub(rf"(?<![\w./-])({places})(?![\w-])", lambda place: f"{local.root}{place[1]}", text)


@contextmanager
def running(document: dict[str, Any], services: dict[str, Any], folder: Path) -> Iterator[Project]:
    """All services, started in the order of their dependencies and healthy; ended on the way out."""
    project = Project(document, services, folder)
    try:
        project.up()
        yield project
    finally:
        project.down()


def until(fact: Callable[[], Any], what: Callable[[], str], within_s: float = START_WITHIN_S) -> None:
    deadline = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


def found(program: str) -> str:
    """A program of a container, on this machine."""
    if program == "python":
        return sys.executable
    if program == "fairlead":
        return str(Path(sys.executable).with_name("fairlead"))
    path = shutil.which(program)
    assert path is not None, f"{program} is not installed"
    return path


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as holder:
        return int(holder.getsockname()[1])
