"""How much each part asks for: on a GPU so much that it is busy, on a CPU just enough to see it work."""

from dataclasses import dataclass

from benchmarks.fleet.load import LoadSettings
from benchmarks.gpu.cuda import Limits


@dataclass(frozen=True, slots=True)
class Sizes:
    """Numbers of every part for one kind of device. Workloads are as for `fairlead simulate`."""

    servers: int
    """By default, where a part does not say how many it takes."""
    limits: Limits
    profile: tuple[str, ...]
    """Options of `fairlead profile`."""
    lab: str
    """The workload that the lab and the servers are compared by; `{rate}` is per server."""
    lab_rate: float
    heatmap: tuple[str, ...]
    """Options of `fairlead heatmap measure`."""
    fleet: LoadSettings
    seconds: float
    """Of the fleet's load, per router."""
    warm_up_s: float
    """Of the same, before what is measured."""
    pairs: dict[str, str]
    """Workloads by name."""


SIZES = {
    # With Llama-3.1-8B on an H200: some 40,000 tokens of prompts per second and 10 ms per step, shared by all.
    "cuda": Sizes(
        servers=3,
        limits=Limits(max_num_seqs=32, max_model_len=8192),
        profile=("--prompt-lengths", "128,512,2048,6144", "--batches", "1,4,16,32", "--repeats", "1"),
        lab="poisson:requests=200,rate={rate},input_tokens=2000,output_tokens=100,spread=0.4,"
        "prefixes=16,prefix_tokens=1024",
        lab_rate=2.0,
        heatmap=(
            *("--prompt-lengths", "256,1024,4096", "--ratios", "0.03,0.125,0.5"),
            *("--rates", "2,6", "--requests", "12"),
        ),
        fleet=LoadSettings(
            sessions=12,
            system_words=2000,
            chat_output_tokens=100,
            flood_open=160,
            flood_words=(2000, 4000),
            flood_output_tokens=128,
        ),
        seconds=40.0,
        warm_up_s=8.0,
        pairs={
            "long prompts": "poisson:requests=120,rate=4,input_tokens=4000,output_tokens=32,spread=0.3,shared=0",
            "long answers": "poisson:requests=120,rate=4,input_tokens=256,output_tokens=512,spread=0.3,shared=0",
        },
    ),
    # With a model of 135 million weights on two cores: some 1,300 tokens of prompts per second and 16 ms per step.
    "cpu": Sizes(
        servers=2,
        limits=Limits(max_num_seqs=8, max_model_len=2048, kv_mib=256),
        profile=("--prompt-lengths", "32,128,512,1024", "--batches", "1,2,4,8", "--repeats", "1"),
        lab="poisson:requests=120,rate={rate},input_tokens=300,output_tokens=40,spread=0.5,"
        "prefixes=8,prefix_tokens=128",
        lab_rate=0.7,
        heatmap=(
            *("--prompt-lengths", "64,256,768", "--ratios", "0.03125,0.25,1"),
            *("--rates", "0.25", "--requests", "3"),
        ),
        fleet=LoadSettings(),
        seconds=30.0,
        warm_up_s=8.0,
        pairs={
            "long prompts": "poisson:requests=30,rate=1,input_tokens=600,output_tokens=8,spread=0.3,shared=0",
            "long answers": "poisson:requests=30,rate=1,input_tokens=64,output_tokens=100,spread=0.3,shared=0",
        },
    ),
}
