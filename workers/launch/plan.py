"""How is each vLLM started? From a model and devices to the exact commands, and the checks before they run.

`plan` decides and touches nothing; `check_vllm` and `check_ports` look at the machine once before anything is
started. Running the commands is the supervisor's part.

What a user passes on to vLLM wins over what stands here: no flag is given twice. Environment variables that the
user has set win in the same way.
"""

import asyncio
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workers.launch import disaggregation
from workers.launch.devices import Cpu, Gpu
from workers.launch.disaggregation import Split
from workers.launch.errors import (
    BadArgument,
    BadTensorParallel,
    NixlNotInstalled,
    PortTaken,
    VllmNotInstalled,
)

HOST = "127.0.0.1"
"""Workers listen on loopback only: what clients may see is the gateway's part."""

GIB = 1 << 30
CPU_KV_BYTES_MAX = GIB
"""vLLM clears its cache at the start; on a busy machine a GiB takes several seconds."""
CPU_KV_SHARE = 0.25
"""Of the memory that is free now, for the KV caches of all CPU workers together. vLLM's own default would give
the first worker nearly all of it."""

_NO_NIXL = 4

ALIASES = {
    "-tp": "--tensor-parallel-size",
    "-q": "--quantization",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
}
OWN_FLAGS = {
    "--host": "workers listen on loopback, the gateway listens for clients (`--host` before the `--`)",
    "--port": "each worker gets its own port, counted up from `--base-port`",
    "--uds": "workers are reached over TCP",
    "--model": "the model is the argument of the command itself",
    "--api-key": "workers listen on loopback; keys for clients belong into the gateway's configuration",
    "--ssl-keyfile": "workers listen on loopback; TLS for clients belongs to the gateway",
    "--ssl-certfile": "workers listen on loopback; TLS for clients belongs to the gateway",
}


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """One vLLM process: everything that is needed to start it, and to start it again."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    """Added to the launcher's own environment, over it."""
    url: str
    log: Path
    scratch: Path
    """vLLM puts its sockets here; the guard makes it and removes it."""
    port: int = field(repr=False)
    role: str | None = None
    """`prefill` or `decode`; None: both."""
    side_port: int | None = field(default=None, repr=False)
    """Where other workers ask for KV."""
    on_cpu: bool = False


def plan(
    model: str,
    devices: Sequence[Gpu] | Sequence[Cpu],
    *,
    tensor_parallel: int = 1,
    split: Split = Split(),  # noqa: B008  # frozen
    ports: Sequence[int],
    extra_args: Sequence[str] = (),
    vllm_python: str,
    log_dir: Path,
    scratch_prefix: str,
    user_environment: Mapping[str, str] | None = None,
) -> list[LaunchSpec]:
    """One command per group of `tensor_parallel` devices, in the order of `devices` and `ports`.

    A `split` takes as many devices as it says, prefill first, and a second port for each worker, after all others.
    `extra_args` go to every worker. `scratch_prefix` begins the path of each worker's scratch directory, unique
    to this fleet and short: the path of a Unix socket has 107 characters at most, of which vLLM needs 37.
    Raises BadTensorParallel, BadPairs and BadArgument.
    """
    given = flags_in(extra_args)
    for flag, reason in OWN_FLAGS.items():
        if flag in given:
            raise BadArgument(f"{flag} cannot be passed to vLLM here: {reason}")
    if given & {"--tensor-parallel-size"}:
        raise BadArgument("--tensor-parallel-size decides how many workers there are; use `--tensor-parallel`")
    groups = _split_groups(devices, tensor_parallel, split)
    needed = len(groups) * (2 if split.devices else 1)
    if len(ports) < needed:
        raise ValueError(f"{len(groups)} workers need {needed} ports, not {len(ports)}")
    specs = []
    for index, ((number, role, group), port) in enumerate(zip(groups, ports, strict=False)):
        name = f"{role or 'worker'}-{number}"
        scratch = Path(f"{scratch_prefix}{name}")
        side_port = ports[len(groups) + index] if role else None
        own = [*_common_flags(port), *_device_flags(group, tensor_parallel), *disaggregation.flags(role)]
        environment = _device_environment(group, is_local=Path(model).is_dir())
        environment = {key: (user_environment or {}).get(key, value) for key, value in environment.items()}
        specs.append(
            LaunchSpec(
                name=name,
                argv=(
                    vllm_python,
                    *("-m", "vllm.entrypoints.cli.main", "serve", model),
                    *(word for flag in own if flag[0] not in given for word in flag),
                    *extra_args,
                ),
                environment=environment
                | _fixed_environment(group, scratch)
                | disaggregation.environment(side_port),
                url=f"http://{HOST}:{port}",
                log=log_dir / f"{name}.log",
                scratch=scratch,
                port=port,
                role=role,
                side_port=side_port,
                on_cpu=isinstance(group[0], Cpu),
            )
        )
    return specs


def flags_in(arguments: Sequence[str]) -> set[str]:
    """The flags that a user has given, each in its long form with dashes; `--no-x` counts as `--x`."""
    found = set()
    for word in arguments:
        flag = word.partition("=")[0]
        flag = ALIASES.get(flag, flag)
        if flag.startswith("--"):
            flag = flag.replace("_", "-")
            found.add("--" + flag.removeprefix("--no-") if flag.startswith("--no-") else flag)
    return found


def _split_groups(
    devices: Sequence[Gpu] | Sequence[Cpu], size: int, split: Split
) -> list[tuple[int, str | None, list[Gpu | Cpu]]]:
    """The devices of each worker, with its role and its number among those of that role."""
    split.check(len(devices))
    if not split.devices:
        return [(number, None, group) for number, group in enumerate(_groups(devices, size))]
    parts = {"prefill": devices[: split.prefill], "decode": devices[split.prefill : split.devices]}
    return [
        (number, role, group) for role, part in parts.items() for number, group in enumerate(_groups(part, size))
    ]


def _groups(devices: Sequence[Gpu] | Sequence[Cpu], size: int) -> list[list[Gpu | Cpu]]:
    if size < 1:
        raise BadTensorParallel(f"--tensor-parallel {size}: a worker needs at least one GPU")
    if size > 1 and any(isinstance(device, Cpu) for device in devices):
        raise BadTensorParallel("--tensor-parallel divides a model over GPUs; with `--device cpu` use 1")
    if not devices or len(devices) % size:
        raise BadTensorParallel(
            f"--tensor-parallel {size} does not divide {len(devices)} GPUs; choose some with `--gpus`"
        )
    return [list(devices[start : start + size]) for start in range(0, len(devices), size)]


def _common_flags(port: int) -> Iterator[tuple[str, ...]]:
    yield "--host", HOST
    yield "--port", str(port)
    # Cached tokens in the usage, and our request id in vLLM's own logs and answers.
    yield ("--enable-prompt-tokens-details",)
    yield ("--enable-request-id-headers",)


def _device_flags(group: Sequence[Gpu | Cpu], tensor_parallel: int) -> Iterator[tuple[str, ...]]:
    if tensor_parallel > 1:
        yield "--tensor-parallel-size", str(tensor_parallel)
    if isinstance(group[0], Cpu):
        kv_bytes = min(CPU_KV_BYTES_MAX, int(group[0].memory_bytes * CPU_KV_SHARE))
        # On AMX, vLLM 0.32.0's attention in bfloat16 answers nonsense, and an engine whose first step is a single
        # token (the decode worker of a pair) dies of an illegal instruction.
        yield "--dtype", "float32" if group[0].amx else "bfloat16"
        # Compiling takes a minute at each start and gains a fifth in speed.
        yield ("--enforce-eager",)
        yield "--kv-cache-memory-bytes", str(kv_bytes)
        # As long as that cache allows; without it a model with a long context refuses to start.
        yield "--max-model-len", "auto"


def _device_environment(group: Sequence[Gpu | Cpu], *, is_local: bool) -> dict[str, str]:
    if isinstance(group[0], Gpu):
        return {}
    environment = {
        # Two processes instead of three: a third less time to start, half the memory.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # Several workers share the cores; threads that wait for each other decode many times slower.
        "OMP_NUM_THREADS": "1",
        # Otherwise the first request with logprobs waits for a compiler.
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return environment | ({"HF_HUB_OFFLINE": "1"} if is_local else {})


def _fixed_environment(group: Sequence[Gpu | Cpu], scratch: Path) -> dict[str, str]:
    """What the user's environment does not override: these values belong to this one worker."""
    sockets = {"VLLM_RPC_BASE_PATH": str(scratch)}
    ids = [device.id for device in group if isinstance(device, Gpu)]
    if not ids:
        # On a CPU it leaves a file behind in the temporary directory at each start.
        return sockets | {"TMPDIR": str(scratch)}
    # NVML numbers GPUs in the order of the PCI bus; CUDA does so only when it is asked to.
    return sockets | {"CUDA_VISIBLE_DEVICES": ",".join(ids), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


async def check_vllm(python: str, *, nixl: bool = False) -> None:
    """Raises VllmNotInstalled unless that interpreter has vLLM, NixlNotInstalled if `nixl` is wanted and missing.

    Looks for it without importing it: importing takes seconds, and what is broken inside shows in the log.
    """
    wanted = ["vllm", "nixl"] if nixl else ["vllm"]
    probe = (
        "import importlib.util, sys\n"
        f"for status, name in enumerate({wanted}, 3):\n"
        "    if not importlib.util.find_spec(name): sys.exit(status)"
    )
    try:
        process = await asyncio.create_subprocess_exec(
            python,
            *("-c", probe),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        raise VllmNotInstalled(python, f"this interpreter does not run ({error.strerror})") from error
    status = await process.wait()
    if status == _NO_NIXL:
        raise NixlNotInstalled(python)
    if status:
        reason = "vLLM is not installed in this interpreter" if status == 3 else "this is no Python interpreter"
        raise VllmNotInstalled(python, reason)


def check_ports(specs: Sequence[LaunchSpec]) -> None:
    """Raises PortTaken for the first port that cannot be bound now.

    Needed before the start: a stranger on the port could answer the health check in a worker's place.
    """
    for port in [port for spec in specs for port in (spec.port, spec.side_port) if port is not None]:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                raise PortTaken(HOST, port) from error
