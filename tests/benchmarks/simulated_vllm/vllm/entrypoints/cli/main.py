"""Stands in for vLLM's command: a simulated worker, started with those of vLLM's flags that it knows."""

import argparse
import os
import sys

KNOWN = ("--host", "--port", "--served-model-name", "--max-num-seqs", "--max-model-len", "--block-size")
KNOWN += ("--max-num-batched-tokens", "--kv-transfer-config")

parser = argparse.ArgumentParser()
parser.add_argument("command")
parser.add_argument("model")
for flag in KNOWN:
    parser.add_argument(flag)
options = vars(parser.parse_known_args()[0])
given = [(flag, options[flag[2:].replace("-", "_")]) for flag in KNOWN]
words = [word for flag, value in given if value is not None for word in (flag, value)]
command = [sys.executable, "-m", "workers.simulator", "--model", options["model"], *words]
os.execv(sys.executable, command)
