"""A candidate that needs nothing but Python, and does what its options say."""

import os
import subprocess
import sys
import time
from pathlib import Path

SLEEP_S = 0.05


def load(job):
    print("noise on standard output at load")
    subprocess.run([sys.executable, "-c", "print('noise of a child of the child')"], check=True)
    if job["options"].get("fails_at") == "load":
        raise ValueError("this model cannot be loaded")
    return Fake(job["options"], job["labels"])


class Fake:
    def __init__(self, options, labels):
        self.options, self.labels, self.calls = options, labels, 0
        self.facts = {
            "precision": "fp32",
            "libraries": {"prefix": sys.prefix, "path": os.pathsep.join(sys.path)},
            "surprise": 1,
        }

    def answer(self, requests, watch, *, in_order, batch_size):
        print("noise on standard output")
        self.calls += 1
        failing = self.options.get("fails_at") == self.calls
        if failing:
            FAILURES[self.options["by"]]()
        with watch("compute"):
            if "log" in self.options:
                start_s = time.perf_counter()
                time.sleep(SLEEP_S)
                with Path(self.options["log"]).open("a") as log:
                    log.write(f"{time.perf_counter() - start_s}\n")
        value = float("nan") if self.options.get("by") == "nan" else 1.0
        return [self._answer(request, value) for request in requests]

    def _answer(self, request, value):
        label = self.labels[len(request["text"]) % len(self.labels)]
        scores = {name: value if name == label else 0.0 for name in self.labels}
        answer = {"label": label, "score": value, "scores": scores}
        return {key: answer[key] for key in self.options.get("keys", answer)}


def run_out_of_memory():
    raise MemoryError


def run_out_of_gpu_memory():
    raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def abort():
    print("a library says why it gives up", file=sys.stderr, flush=True)
    os._exit(7)


FAILURES = {
    "memory": run_out_of_memory,
    "gpu memory": run_out_of_gpu_memory,
    "abort": abort,
    "killed": lambda: os.kill(os.getpid(), 9),
    "hang": lambda: time.sleep(600),
    "exit": lambda: sys.exit(3),
}
