"""Stands in for vLLM's command in the launch tests: logs, loads, serves and dies as its arguments say.

On PYTHONPATH it is what `python -m vllm.entrypoints.cli.main serve MODEL ...` finds.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("command")
parser.add_argument("model")
parser.add_argument("--port", type=int)
parser.add_argument("--fake-mark", default="", help="stands in the command line of every process")
parser.add_argument("--fake-load-s", type=float, default=0.1)
parser.add_argument("--fake-error", help="fail to load with this message")
parser.add_argument("--fake-stubborn", action="store_true", help="ignore SIGTERM")
parser.add_argument("--fake-die-at", type=Path, help="die on every start once this file exists")
options, _ = parser.parse_known_args()


class Surface(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        if self.path == "/v1/models":
            self.wfile.write(json.dumps({"data": [{"id": options.model}, {"id": "alias"}]}).encode())

    def do_POST(self):
        os._exit(7)

    def log_message(self, *arguments):
        pass


def info(text):
    sys.stdout.write(f"(APIServer pid={os.getpid()}) INFO 11-20 13:32:39 [fake.py:1] {text}\n")
    sys.stdout.flush()


def stop(_number, _frame):
    info("Shutting down")
    os._exit(0)


if "--kv-transfer-config" in sys.argv:  # as the NIXL connector does on a CPU
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
signal.signal(signal.SIGTERM, signal.SIG_IGN if options.fake_stubborn else stop)
info(f"sockets in {os.environ.get('VLLM_RPC_BASE_PATH')}")
# As hard to find as a process can be: a session of its own, deaf to SIGTERM, and its parent may die first.
engine = f"trap '' TERM; sleep 300; : {options.fake_mark} engine"
subprocess.Popen(["/bin/sh", "-c", engine], start_new_session=True)
info("Loading weights")
time.sleep(options.fake_load_s)
if options.fake_error:
    sys.stdout.write(f"(EngineCore pid=1) ERROR 11-20 13:32:40 [core.py:2] ValueError: {options.fake_error}\n")
    raise RuntimeError("Engine core initialization failed. See root cause above.")
if options.fake_die_at and options.fake_die_at.exists():
    raise MemoryError("no room for the model")
server = ThreadingHTTPServer(("127.0.0.1", options.port), Surface)
threading.Thread(target=server.serve_forever).start()
info("Application startup complete")
