"""`python -m workers.simulator`: N simulated vLLM workers in one process, each on a port of its own.

Once all of them listen, one line of JSON goes to stdout: {"ready": ["http://127.0.0.1:8101", ...]}.
"""

import argparse
import asyncio
import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress
from dataclasses import replace

import orjson
import uvloop

from workers.simulator.connector import KvTransfer
from workers.simulator.faults import KINDS, Fault
from workers.simulator.kv_publisher import KvEventsConfig
from workers.simulator.profiles import PROFILES
from workers.simulator.reply import VOCABULARIES
from workers.simulator.server import SimulatedWorker, SimulatorConfig

_PR_SET_PDEATHSIG = 1
_PARENT_CHECK_S = 0.5
_DEFAULTS = SimulatorConfig()


def parser() -> argparse.ArgumentParser:
    """The command line; options are named as vLLM's where vLLM has them."""
    command = argparse.ArgumentParser(
        prog="python -m workers.simulator", description="Simulated vLLM workers in one process."
    )
    add = command.add_argument
    add("--workers", type=int, default=1, help="how many workers, on consecutive ports")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=0, help="port of the first worker; 0: free ports")
    add("--model", default=_DEFAULTS.model)
    add("--served-model-name", nargs="+", default=[], help="names of the model; the first is shown in answers")
    add("--lora", action="append", default=[], metavar="NAME", help="a LoRA adapter; may be repeated")
    add("--profile", choices=sorted(PROFILES), default=_DEFAULTS.profile)
    add("--speed", type=float, default=1.0, help="simulated seconds per second")
    add("--seed", type=int, default=0)
    add("--vocabulary", choices=VOCABULARIES, default="english", help="what answers are made of")
    add("--block-size", type=int, default=16, help="tokens per KV block")
    add("--kv-blocks", type=int, help="KV blocks per worker (default: by profile)")
    add("--max-num-seqs", type=int)
    add("--max-num-batched-tokens", type=int)
    add("--max-model-len", type=int)
    add("--scheduling-policy", choices=["fcfs", "priority"], default="fcfs")
    add("--no-enable-prefix-caching", action="store_true")
    add("--api-key")
    add("--max-num-queued-reqs", type=int)
    add("--shutdown-timeout", type=float, default=0.0, help="seconds that requests in flight may finish in")
    add("--kv-transfer-config", metavar="JSON", help="NixlConnector or NixlPushConnector, as for vLLM")
    add("--kv-events", action="store_true", help="publish KV events on free ports; see GET /kv_event_sources")
    add("--kv-events-config", metavar="JSON", help="publish KV events, as for vLLM; worker i is i ports further")
    add("--kv-events-wire", choices=["map", "array"], default="map", help="array: as vLLM up to 0.23")
    add("--fault", metavar="KIND[:KEY=VALUE,...]", help=f"set on every worker from the start: {', '.join(KINDS)}")
    add(
        "--die-with-parent",
        nargs="?",
        type=int,
        const=0,
        metavar="PID",
        help="end when the process that started this one ends; with PID, also if it has ended already",
    )
    return command


def read_config(options: argparse.Namespace) -> SimulatorConfig:
    """The configuration of the first worker. Raises ValueError that says what is wrong."""
    config = SimulatorConfig(
        model=options.model,
        served_names=tuple(options.served_model_name),
        loras=tuple(options.lora),
        profile=options.profile,
        speed=options.speed,
        seed=options.seed,
        vocabulary=options.vocabulary,
        host=options.host,
        port=options.port,
        block_size=options.block_size,
        kv_blocks=options.kv_blocks,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_model_len=options.max_model_len,
        scheduling=options.scheduling_policy,
        prefix_caching=not options.no_enable_prefix_caching,
        api_key=options.api_key,
        max_num_queued_reqs=options.max_num_queued_reqs,
        shutdown_timeout_s=options.shutdown_timeout,
        kv_transfer=KvTransfer.from_option(options.kv_transfer_config) if options.kv_transfer_config else None,
        kv_events=read_kv_events(options),
        fault=Fault.from_option(options.fault) if options.fault else None,
    )
    config.engine_config()
    if options.workers < 1:
        raise ValueError(f"--workers is {options.workers}, not a positive number")
    return config


def read_kv_events(options: argparse.Namespace) -> KvEventsConfig | None:
    """Where to publish KV events. Raises ValueError that says what is wrong."""
    if options.kv_events_config:
        return KvEventsConfig.from_option(options.kv_events_config, options.kv_events_wire)
    return KvEventsConfig(wire=options.kv_events_wire) if options.kv_events else None


async def serve(config: SimulatorConfig, count: int, parent: int | None) -> None:
    """Run `count` workers until SIGINT, SIGTERM, or the end of the process `parent`."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    workers: list[SimulatedWorker] = []
    try:
        for index in range(count):
            port = config.port + index if config.port else 0
            events = config.kv_events and config.kv_events.next_to(index)
            worker = SimulatedWorker(replace(config, port=port, kv_events=events))
            await worker.start()
            workers.append(worker)
        for worker in workers:
            worker.app.siblings = [other.app for other in workers]
        with suppress(BrokenPipeError):
            sys.stdout.buffer.write(orjson.dumps({"ready": [worker.url for worker in workers]}) + b"\n")
            sys.stdout.buffer.flush()
        while not stop.is_set() and (parent is None or os.getppid() == parent):
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), None if parent is None else _PARENT_CHECK_S)
    finally:
        await asyncio.gather(*(worker.stop() for worker in workers))


def follow_parent(given: int) -> int:
    """Ask for SIGTERM at the parent's end and return its id; `given` is what the caller says it is, or 0."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    return given or os.getppid()


def main() -> int:
    """Run the command; 0 after a signal, 1 where a port is taken, 2 for a wrong option."""
    command = parser()
    options = command.parse_args()
    try:
        config = read_config(options)
    except ValueError as error:
        command.error(str(error))
    parent = None if options.die_with_parent is None else follow_parent(options.die_with_parent)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        uvloop.run(serve(config, options.workers, parent))
    except OSError as error:
        sys.stderr.write(f"cannot listen on {config.host}:{config.port}: {error.strerror}\n")
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
