"""Several vLLM servers on one GPU: profile, heatmap, the fleet beside its peers, colocated against prefill/decode.

    python -m benchmarks.gpu profile --vllm-python PATH [--out DIR]
    python -m benchmarks.gpu fleet --vllm-python PATH --device cpu      the same without a GPU, at small sizes

Each part ends within 10 minutes. README.md here says what each prints.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.fleet import report
from benchmarks.fleet.comparison import PEERS, ROUTERS, tell
from benchmarks.fleet.servers import FleetError
from benchmarks.gpu import cuda
from benchmarks.gpu.parts import PARTS, PartFailed, Setting
from benchmarks.gpu.shapes import SHAPES, write_model
from benchmarks.gpu.sizes import SIZES
from router.lab.profiling.stream import MeasurementError
from workers.launch.errors import LaunchError, NoGpu

MODELS = Path("~/.cache/fairlead/gpu-models")
NO_GPU = 3
"""The exit status where there is no GPU: nothing has failed."""
MINUTES = 9.5


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n", 1)[0])
    add = command.add_argument
    add("part", choices=PARTS)
    add("--vllm-python", required=True, help="interpreter of the environment that has vLLM (and, for pairs, NIXL)")
    add("--device", choices=SIZES, default="cuda")
    add("--model", help=f"one of {', '.join(SHAPES)}, or a folder (default: the largest of ours that fits)")
    add("--models", type=Path, default=MODELS, help="where our models are written (%(default)s)")
    add("--servers", type=int, help="that share the device (heatmap and pairs always take 4)")
    add("--seconds", type=float, help="of load per router, for `fleet`")
    add("--routers", default=ROUTERS["flood"], help="for `fleet`, with commas between")
    add("--peers-python-env", type=Path, default=PEERS, help="environment with the peers' commands (%(default)s)")
    add("--out", type=Path, help="folder for results (default: benchmarks/gpu/results/DEVICE)")
    add("--logs", type=Path, help="folder for logs and raw records (default: a new one among temporary files)")
    add("--seed", type=int, default=0)
    add("--minutes", type=float, default=MINUTES, help="after which a part is given up (%(default)s)")
    return command


def setting_of(options: argparse.Namespace) -> Setting:
    """What the command line asks for, with the device found and the model written. Raises NoGpu, TooLarge."""
    sizes = SIZES[options.device]
    if options.seconds:
        sizes = replace(sizes, seconds=options.seconds)
    device = cuda.find_device(options.device)
    servers = 4 if options.part in {"heatmap", "pairs"} else options.servers or sizes.servers
    models = options.models.expanduser()
    if options.model is None:
        model = cuda.default_model(device, models, servers, sizes.limits)
    elif options.model in SHAPES:
        model = write_model(models / options.model, SHAPES[options.model])
    else:
        model = Path(options.model).expanduser().resolve()
    name = str(cuda.hardware(device).get("gpu", "cpu")).lower().replace(" ", "-")
    out = options.out or Path(__file__).parent / "results" / name
    out.mkdir(parents=True, exist_ok=True)
    logs = options.logs or Path(tempfile.mkdtemp(prefix="fairlead-gpu-"))
    logs.mkdir(parents=True, exist_ok=True)
    tell(f"logs of servers and routers: {logs}")
    return Setting(
        device=device,
        python=options.vllm_python,
        model=model,
        servers=servers,
        sizes=sizes,
        out=out,
        logs=logs,
        seed=options.seed,
        at_most_s=60 * options.minutes,
        routers=options.routers,
        peers=options.peers_python_env,
    )


async def run(part: str, setting: Setting) -> dict[str, Any]:
    """One part, with what it was taken on. Raises what a part raises, and TimeoutError."""
    about = {
        "part": part,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": report.machine() | cuda.hardware(setting.device),
        "versions": await cuda.versions(setting.python),
        "commit": report.commit(),
        "seed": setting.seed,
        "model": setting.model.name,
        "servers": setting.servers,
    }
    began = time.monotonic()
    async with asyncio.timeout(setting.at_most_s):
        found = await PARTS[part](setting)
    return {"setting": about | {"took_s": round(time.monotonic() - began)}, part: found}


def main() -> None:
    """Run one part and write its results."""
    command = parser()
    options = command.parse_args()
    try:
        setting = setting_of(options)
        document = asyncio.run(run(options.part, setting))
    except NoGpu as error:
        print(f"benchmarks.gpu: skipped: {error}", file=sys.stderr)
        print(
            "It needs one NVIDIA GPU of the H100 or H200 class and its driver; see README.md here.",
            file=sys.stderr,
        )
        sys.exit(NO_GPU)
    except TimeoutError:
        sys.exit(f"benchmarks.gpu: {options.part} was given up after {options.minutes:g} minutes")
    except (cuda.TooLarge, LaunchError, FleetError, PartFailed, MeasurementError, ValueError) as error:
        sys.exit(f"benchmarks.gpu: {error}")
    file = setting.out / f"{options.part}.json"
    file.write_text(json.dumps(document, indent=1))
    print(f"wrote {file} after {document['setting']['took_s']} s")


if __name__ == "__main__":
    main()
