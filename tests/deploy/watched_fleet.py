"""A gateway and simulated workers as processes of their own, under load, watched by a real Prometheus.

Prometheus reads the project's own configuration and rules; only addresses and intervals differ, and `offset 1h`
is taken out of the rules, as nothing here is an hour old.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import yaml

ROOT = Path(__file__).parents[2]
RECORDED = Path(__file__).parent / "recorded"
MODEL = "demo-model"
LOAD_S = 18.0
_GROWING = re.compile(r"^(\S+(?:_total|_bucket|_count|_sum)(?:\{.*\})?) (\S+)$", re.MULTILINE)
_STREAMS = {"heavy": 14, "light": 10}
"""Requests that each client has open all the time: more than the fleet runs at once, so both wait."""


@dataclass(frozen=True, slots=True)
class Watched:
    """Where Prometheus answers, and what it has seen."""

    url: str
    worker: str
    """The worker that went away for a while."""
    stayed: str
    """One that did not."""
    began: float
    ended: float
    http: httpx.Client
    known: dict = field(default_factory=dict)

    def series(self, expr):
        """The series of a query over the time of the load, each with its labels and finite values."""
        if expr not in self.known:
            self.known[expr] = self._series(expr)
        return self.known[expr]

    def _series(self, expr):
        window = {"start": self.began, "end": self.ended, "step": 1}
        found = self._get("query_range", query=expr, **window)["result"]
        return [
            (one["metric"], values)
            for one in found
            if (values := [v for _, v in one["values"] if v not in ("NaN", "+Inf", "-Inf")])
        ]

    def label_values(self, metric, label):
        return self._get(f"label/{label}/values", **{"match[]": metric})

    def rules(self):
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def targets(self):
        return self._get("targets", state="active")["activeTargets"]

    def _get(self, path, **params):
        answer = self.http.get(f"{self.url}/api/v1/{path}", params=params).json()
        assert answer["status"] == "success", f"{params}: {answer}"
        return answer["data"]


@contextmanager
def watched_fleet(folder):
    """Everything started, loaded for `LOAD_S`, and ready to be asked."""
    with ExitStack() as stack:
        workers = stack.enter_context(_simulators())
        config = folder / "fairlead.yaml"
        port = free_port()
        config.write_text(yaml.safe_dump(_gateway_config(port, workers)))
        serve = "from router.commands.cli import main; main()"
        gateway = stack.enter_context(
            _process(sys.executable, "-c", serve, "serve", "--config", str(config), log=folder / "gateway.log")
        )
        wait_for(f"http://127.0.0.1:{port}/ready", gateway, folder / "gateway.log")
        exporters = {name: stack.enter_context(_recorded(name)) for name in ("dcgm", "nixl")}
        own = free_port()
        targets = {
            "fairlead": [f"127.0.0.1:{port}"],
            "vllm": [*(url.removeprefix("http://") for url in workers), exporters["nixl"]],
            "dcgm": [exporters["dcgm"]],
            "prometheus": [f"127.0.0.1:{own}"],
        }
        prometheus = stack.enter_context(_prometheus(folder, targets, own))
        wait_for(f"http://127.0.0.1:{own}/-/ready", prometheus, folder / "prometheus.log")
        began = time.time()
        load = threading.Thread(target=lambda: asyncio.run(_load(f"http://127.0.0.1:{port}", LOAD_S)))
        load.start()
        _disturb(workers[-1], gateway, config)
        load.join()
        http = stack.enter_context(httpx.Client(timeout=20, trust_env=False))
        yield Watched(f"http://127.0.0.1:{own}", workers[-1], workers[0], began, time.time(), http)


def _disturb(worker, gateway, config):
    """A worker that goes away for a while, and a configuration that is refused and then accepted."""
    time.sleep(LOAD_S / 4)
    httpx.post(f"{worker}/simulator/fault", json={"kind": "error_500", "probes": True, "for_s": LOAD_S / 3})
    good = config.read_text()
    config.write_text("no_such_section: 1\n")
    gateway.send_signal(signal.SIGHUP)
    time.sleep(LOAD_S / 6)
    config.write_text(good)
    gateway.send_signal(signal.SIGHUP)


def _gateway_config(port, workers):
    return {
        "listen": {"host": "127.0.0.1", "port": port},
        "workers": [{"url": url, "max_num_seqs": 2} for url in workers],
        "health": {"probe_every_s": 0.3, "probe_timeout_s": 1, "scrape_every_s": 0.5, "stale_after_s": 5},
        "tokenization": {"tokenizer": "worker"},
    }


@contextmanager
def _simulators():
    options = (
        "--workers",
        "3",
        "--port",
        "0",
        "--model",
        MODEL,
        "--speed",
        "2",
        "--kv-events",
        "--die-with-parent",
    )
    with _process(sys.executable, "-m", "workers.simulator", *options, stdout=subprocess.PIPE) as process:
        yield json.loads(process.stdout.readline())["ready"]


def _environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@contextmanager
def _process(*command, log=None, stdout=None):
    with ExitStack() as stack:
        stderr = stack.enter_context(log.open("wb")) if log else subprocess.DEVNULL
        out = stdout or subprocess.DEVNULL
        process = stack.enter_context(
            subprocess.Popen(command, stdout=out, stderr=stderr, cwd=ROOT, env=_environment())
        )
        try:
            yield process
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


@contextmanager
def _prometheus(folder, targets, port):
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for job in config["scrape_configs"]:
        for kind in ("static_configs", "file_sd_configs"):
            if job.pop(kind, None):
                job["static_configs"] = [{"targets": targets[job["job_name"]]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copytree(ROOT / "deploy/prometheus/rules", folder / "rules")
    alerts = folder / "rules/alerts.yml"
    alerts.write_text(alerts.read_text().replace(" offset 1h", ""))
    options = (f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data")
    listen = f"--web.listen-address=127.0.0.1:{port}"
    with _process("prometheus", *options, listen, log=folder / "prometheus.log") as process:
        yield process


@contextmanager
def _recorded(name):
    """An exporter that says what one was heard to say; its counters go on counting."""
    page = (RECORDED / f"{name}.txt").read_text()
    began = time.monotonic()

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self):
            times = 1 + time.monotonic() - began
            body = _GROWING.sub(lambda line: f"{line[1]} {float(line[2]) * times!r}", page).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def _load(url, for_s):
    """Both clients keep their requests open: most are streamed, some leave early, prompts share a beginning."""
    end = time.monotonic() + for_s
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        workers = [_ask(http, who, number, end) for who, many in _STREAMS.items() for number in range(many)]
        await asyncio.gather(*workers)


async def _ask(http, client, number, end):
    turn = 0
    while time.monotonic() < end:
        turn += 1
        prompt = f"You answer for {client}. " * 60 + f"Question {number}.{turn}"
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 24 + number, "stream": number % 4 != 3}
        with suppress(httpx.HTTPError):
            async with http.stream("POST", "/v1/completions", json={**body, "user": client}) as answer:
                async for _ in answer.aiter_bytes():
                    if number == 2 and turn % 3 == 0:
                        break


def wait_for(url, process, log):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(httpx.HTTPError):
            if httpx.get(url, timeout=2).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"{url} was not ready:\n{log.read_text(errors='replace')}")


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]
