"""Runs as processes of this machine."""

import os
import signal
import subprocess
import sys
from typing import Dict, List, Optional

from .. import runs
from ..files import make_folder


def arguments_of(run: runs.Run, device: str, num_gpus: int, accumulate: int, data: Optional[str]) -> List[str]:
    """Of ``python -m bmask``."""
    arguments = ["work", *run.variant.split(), "--profile", run.profile, "--seed", str(run.seed)]
    arguments += ["--device", device, "--num-gpus", str(num_gpus), "--accumulate", str(accumulate)]
    return arguments + (["--data", data] if data else [])


def environment_of(run: runs.Run) -> Dict[str, str]:
    return {
        "OMP_NUM_THREADS": str(run.cfg.STUDY.THREADS),
        # glibc would give back the memory of each large tensor, and ask for it anew: a tenth of a training's time.
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**32),
        "PYTHONPATH": os.pathsep.join([str(runs.REPOSITORY), os.environ.get("PYTHONPATH", "")]),
    }


class Local:
    """Starts runs as processes of this machine, which end with this one."""

    pause = 0.2  # seconds between two looks at the workers

    def __init__(self, options: runs.Options):
        self.options, self.processes = options, options.num_gpus

    def start(self, run: runs.Run) -> "_Process":
        make_folder(run.folder)
        o = self.options
        command = [sys.executable, "-m", "bmask", *arguments_of(run, o.device, o.num_gpus, o.accumulate, o.data)]
        environment = {**os.environ, **environment_of(run), "BMASK_PARENT": str(os.getpid())}
        if o.device == "cpu":
            # detectron2's launcher would take NCCL if it saw a GPU.
            environment["CUDA_VISIBLE_DEVICES"] = ""
        with open(run.folder / "log.txt", "a") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        return _Process(process)

    def stop(self, workers: List["_Process"]) -> None:
        for worker in workers:
            os.killpg(worker.process.pid, signal.SIGTERM)  # its children on other GPUs as well
        for worker in workers:
            worker.process.wait()


class _Process:
    def __init__(self, process: subprocess.Popen):
        self.process = process

    def poll(self) -> Optional[int]:
        return self.process.poll()

    def phase(self, progress: Dict) -> str:
        text = progress.get("phase", "starting")
        if self.process.pid != progress.get("pid", self.process.pid) and runs.alive(progress["pid"]):
            text += f" by process {progress['pid']} on {progress['host']}"
        return text
