"""The parts: each starts the servers that it needs, measures, and says what it found.

What measures is not here: `fairlead profile`, `fairlead heatmap`, `benchmarks.fleet` and `benchmarks.reality`.
"""

import argparse
import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from benchmarks import reality
from benchmarks.fleet import plots as fleet_plots
from benchmarks.fleet import report, routers, servers
from benchmarks.fleet.comparison import Comparison, compare, first_requests, tell
from benchmarks.fleet.routers import Surroundings
from benchmarks.gpu import cuda, plots
from benchmarks.gpu.sizes import Sizes
from router.heatmap.file import read_heatmap
from router.heatmap.show import plot_heatmap, print_heatmap
from router.lab.workloads.open_workload import open_workload
from workers.launch.devices import Cpu, Gpu
from workers.launch.disaggregation import Split
from workers.launch.plan import LaunchSpec

HEATMAP_SHARE = 0.6
"""Of a part's time, for the batches of a heatmap: what is not measured by then is left out of it."""
_FETCHED = re.compile(r"^vllm:external_prefix_cache_hits_total(?:\{[^\n]*\})? (\S+)$", re.MULTILINE)
ONE_PAIR = Split(prefill=1, decode=1)


class PartFailed(Exception):
    """A part ended without a result; the message says why."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a part finds."""

    device: Gpu | Cpu
    python: str
    model: Path
    servers: int
    sizes: Sizes
    out: Path
    """Where results go."""
    logs: Path
    seed: int
    at_most_s: float
    routers: str
    peers: Path

    @asynccontextmanager
    async def started(self, count: int, split: Split = cuda.TOGETHER) -> AsyncIterator[list[LaunchSpec]]:
        """A number of servers, each of which has answered once. Raises TooLarge, LaunchError, FleetError."""
        settings = cuda.server_settings(
            self.device, self.python, self.model, count, self.sizes.limits, split=split
        )
        tell(f"{count} servers of {self.model.name}, {settings.kv_mib} MiB of KV cache each")
        async with servers.started(settings, self.logs, tell) as specs:
            await first_requests([spec.url for spec in specs], self.model.name)
            yield specs


async def profile(setting: Setting) -> dict[str, Any]:
    """One server alone, all of them at once, and what the lab makes of either beside the truth."""
    limits = ["--max-num-seqs", str(setting.sizes.limits.max_num_seqs)]
    limits += ["--max-num-batched-tokens", str(cuda.batched_tokens(setting.device))]
    async with setting.started(setting.servers) as specs:
        urls = [spec.url for spec in specs]
        files = {"alone": setting.out / "alone.json", "all busy": setting.out / "busy.json"}
        if len(urls) == 1:
            del files["all busy"]
        for number, (name, file) in enumerate(files.items()):
            words = ["--seed", str(1000 * (setting.seed + 1) + 100 * number), "--out", str(file)]
            await fairlead(
                "profile", *urls[: 1 if name == "alone" else None], *setting.sizes.profile, *limits, *words
            )
        workload = setting.sizes.lab.format(rate=setting.sizes.lab_rate * len(urls))
        asked = argparse.Namespace(
            files=[str(file) for file in files.values()],
            workers=",".join(urls),
            workload=workload,
            seed=setting.seed,
            **dict.fromkeys(("model", "requests", "placement", "queue")),
            simulated=0,
        )
        columns = await reality.compare(asked)
    reality.print_table(columns)
    profiles = {name: json.loads(file.read_text()) for name, file in files.items()}
    plots.profile(setting.out / "profile.png", profiles, title(setting))
    return {"profiles": profiles, "workload": workload, "lab_and_reality": columns}


async def measured_map(setting: Setting) -> dict[str, Any]:
    """Two colocated servers against a prefill and a decode server: the map, as far as the time goes."""
    file = setting.out / "map.json"
    file.unlink(missing_ok=True)
    async with setting.started(4, ONE_PAIR) as specs:
        prefill, decode, *colocated = specs
        whole = await fairlead(
            *("heatmap", "measure", "--colocated", ",".join(spec.url for spec in colocated)),
            *(
                "--disaggregated",
                f"P={prefill.url},D={decode.url}",
                "--out",
                str(file),
                "--seed",
                str(setting.seed),
            ),
            *("--hardware", str(cuda.hardware(setting.device).get("gpu", "CPU")), *setting.sizes.heatmap),
            stop_after_s=HEATMAP_SHARE * setting.at_most_s,
        )
        fetched = await fetched_tokens(decode.url)
    if not file.exists():
        raise PartFailed("no batch of the heatmap was measured in its time: take a smaller --model")
    heatmap = read_heatmap(file)
    if not whole:
        tell("note: the time was over before the last batch")
        print_heatmap(heatmap)
    plot_heatmap(heatmap, setting.out / "heatmap.png")
    _tell_fetched(fetched)
    return {"map": json.loads(file.read_text()), "fetched_tokens": fetched}


async def fleet(setting: Setting) -> dict[str, Any]:
    """Two clients that chat beside one that floods, behind each router in turn."""
    load = replace(setting.sizes.fleet, seed=setting.seed)
    choices = [routers.parse(text) for text in setting.routers.split(",")]
    sizes = setting.sizes
    comparison = Comparison(choices, load, sizes.seconds, sizes.warm_up_s, no_flood=True)
    machine = report.machine() | cuda.hardware(setting.device)
    async with setting.started(setting.servers) as specs:
        around = Surroundings(
            tuple(spec.url for spec in specs),
            setting.model.name,
            sizes.limits.max_num_seqs,
            setting.peers.expanduser(),
            setting.logs,
        )
        runs, left_out, version = await compare(comparison, around)
    shown = {"machine": machine, "vllm": version, "servers": len(specs), "model": setting.model.name}
    shown |= {"seconds": comparison.seconds, "load": asdict(load), "commit": report.commit()}
    report.show(Console(width=200), shown, runs, left_out)
    if not runs:
        raise PartFailed(f"no router ran: {left_out}")
    fleet_plots.draw(setting.out, runs, title(setting))
    raw = {"records", "samples"}
    (setting.logs / "fleet-raw.json").write_text(report.as_json(shown, runs, left_out))
    short = [{name: value for name, value in asdict(run).items() if name not in raw} for run in runs]
    return {"left_out": left_out, "load": asdict(load), "seconds": comparison.seconds, "runs": short}


async def pairs(setting: Setting) -> dict[str, Any]:
    """The same requests through the gateway, in front of two colocated servers and of a prefill/decode pair."""
    found: dict[str, Any] = {}
    fetched = 0
    async with setting.started(4, ONE_PAIR) as specs:
        prefill, decode, *colocated = specs
        arrangements = {"colocated": colocated, "prefill/decode": [prefill, decode]}
        for number, (name, text) in enumerate(setting.sizes.pairs.items()):
            # Equal seeds are equal prompts: a server has seen those of one workload, not those of the next.
            seed = 1000 * setting.seed + number
            traffic = open_workload(text, seed=seed)
            columns = {}
            for arrangement, chosen in arrangements.items():
                before = await fetched_tokens(decode.url)
                columns[arrangement] = await reality.through_gateway(
                    traffic,
                    [spec.url for spec in chosen],
                    router=routers.parse(routers.FAIRLEAD),
                    max_num_seqs=setting.sizes.limits.max_num_seqs,
                    seed=seed,
                    roles={spec.url: spec.role for spec in chosen if spec.role is not None},
                )
                columns[arrangement]["fetched_tokens"] = await fetched_tokens(decode.url) - before
                fetched += columns[arrangement]["fetched_tokens"]
            found[name] = {"workload": text, "columns": columns}
            tell(f"{name}: {text}")
            reality.print_table(columns)
    _tell_fetched(fetched)
    plots.pairs(setting.out / "pairs.png", found, title(setting))
    return {"workloads": found, "fetched_tokens": fetched}


async def fetched_tokens(url: str) -> int:
    """Prompt tokens whose KV a server has fetched from another one, since it was started."""
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        page = (await http.get(f"{url}/metrics")).text
    return round(sum(float(number) for number in _FETCHED.findall(page)))


async def fairlead(*words: str, stop_after_s: float | None = None) -> bool:
    """Run one of our own commands, its output where ours goes. Raises PartFailed.

    After `stop_after_s` it is interrupted as by Ctrl-C, which is no failure: False says so.
    """
    script = str(Path(sys.executable).with_name("fairlead"))
    process = await asyncio.create_subprocess_exec(script, *words)
    stopped = False
    try:
        try:
            await asyncio.wait_for(process.wait(), stop_after_s)
        except TimeoutError:
            stopped = True
            process.send_signal(signal.SIGINT)
            await process.wait()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if process.returncode and not stopped:
        raise PartFailed(f"`fairlead {' '.join(words[:2])} ...` ended with status {process.returncode}")
    return not stopped


def title(setting: Setting) -> str:
    """Of a picture: what ran on what."""
    gpu = cuda.hardware(setting.device).get("gpu", "CPU")
    return f"{setting.model.name}, {gpu}, commit {report.commit()}"


def _tell_fetched(tokens: int) -> None:
    if not tokens:
        tell(
            "note: no KV was ever fetched: the decode server has computed every prompt anew, and this is no result"
        )


PARTS = {"profile": profile, "heatmap": measured_map, "fleet": fleet, "pairs": pairs}
