"""Why vLLM could not be launched. Every message is written for the person at the terminal.

LaunchError
├── NoGpu                this machine, or CUDA_VISIBLE_DEVICES, has no GPU to use
├── BadTensorParallel    the GPUs cannot be divided into groups of that size
├── BadPairs             nor into that many prefill and decode workers
├── BadArgument          an argument for vLLM that the launcher has to choose itself
├── VllmNotInstalled     the interpreter does not have vLLM, or there is no such interpreter
├── NixlNotInstalled     it has vLLM but not what hands KV from worker to worker
├── PortTaken            another process listens where a worker should
└── LaunchFailed         vLLM started and ended before it was healthy; shows the end of its log
"""

from pathlib import Path


class LaunchError(Exception):
    """The base of the tree: one clear sentence, and nothing is left running."""


class NoGpu(LaunchError):
    """There is no GPU, or not the one that was asked for."""


class BadTensorParallel(LaunchError):
    """The devices cannot be divided into groups of the size asked for."""


class BadPairs(LaunchError):
    """The devices cannot be divided into prefill and decode workers in that way."""


class BadArgument(LaunchError):
    """One of the arguments meant for vLLM would break what the launcher promises."""


class NixlNotInstalled(LaunchError):
    """The interpreter that should run vLLM has no NIXL, without which KV does not go from worker to worker."""

    def __init__(self, python: str) -> None:
        super().__init__(
            f"prefill and decode workers need NIXL, which {python} does not have. Install it there with "
            "`pip install nixl`, or choose another connector with `-- --kv-transfer-config JSON`."
        )


class VllmNotInstalled(LaunchError):
    """The interpreter that should run vLLM cannot import it."""

    def __init__(self, python: str, reason: str) -> None:
        super().__init__(
            f"{reason}: {python}. Install it there with `pip install 'vllm>=0.20.2'`, "
            "or name an interpreter that has it with `--vllm-python PATH`."
        )


class PortTaken(LaunchError):
    """The port of a worker is in use by another program."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"port {port} on {host} is taken; choose others with `--base-port`")
        self.port = port


class LaunchFailed(LaunchError):
    """A worker ended before it was healthy for the first time."""

    def __init__(self, worker: str, status: int, causes: list[str], tail: list[str], log: Path) -> None:
        lines = [f"{worker} ended with status {status} before it was ready."]
        lines += causes
        lines += [f"The end of its log ({log}):", *(f"    {line}" for line in tail)]
        super().__init__("\n".join(lines))
        self.worker = worker
        self.status = status
