"""A run: variant x profile x seed. Its identity, its state on disk, and how runs are carried out.

A run keeps its state (checkpoint, progress, log, fingerprint of the data, record) in
``runs/<profile>/<name>/`` and publishes its record to the folder of results. Every run is a process of its own, which
holds the lock of its folder for as long as it works on it.

Results are shipped, in ``results/<profile>/`` of the repository, or local, in ``results/local/<profile>/`` of the
output folder, which git ignores. What a reader makes is local. The maintainers' switch (``make ... PUBLISH=1``) writes,
and reads, the shipped results alone.
"""

import json
import os
import platform
import re
import resource
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from filelock import FileLock, Timeout

from . import config, datasets, evaluate, ranks, submission
from .config import OUTPUT, REPOSITORY
from .errors import InputError
from .files import make_folder, write_bytes
from .train import NonFiniteLoss, train

FAILED = 3  # exit status of a run whose loss was not finite
SHIPPED = REPOSITORY / "results"
PUBLISH = bool(os.environ.get("BMASK_PUBLISH"))


def shipped(profile: str = "") -> Path:
    """The folder of the results of a profile, or of all, that the repository carries."""
    return SHIPPED / profile


def local(profile: str = "") -> Path:
    """The folder of the results of a profile, or of all, that are made here."""
    return OUTPUT / "results" / "local" / profile


def results(profile: str = "") -> Path:
    """The folder that results of a profile, or of all, are written to."""
    return shipped(profile) if PUBLISH else local(profile)


def profiles(folder: Path) -> List[str]:
    """The profiles that have tables or figures in a folder such as ``results/`` or ``results/local/``."""
    return sorted(path.parent.name for path in folder.glob("*/made.json"))


@contextmanager
def as_shipped(folder: Optional[Path] = None):
    """Within it results are read from, and written to, the shipped ones alone, as if they were in ``folder``."""
    global SHIPPED, PUBLISH
    before = SHIPPED, PUBLISH
    SHIPPED, PUBLISH = folder or SHIPPED, True
    try:
        yield
    finally:
        SHIPPED, PUBLISH = before


@dataclass(frozen=True)
class Run:
    variant: str
    profile: str
    seed: int

    @cached_property
    def cfg(self):
        return config.resolve(self.variant, self.profile, self.seed)

    @cached_property
    def name(self) -> str:
        return f"{self.variant}-seed{self.seed}-{config.identity(self.cfg)}"

    @property
    def trained_as(self) -> "Run":
        """The run whose weights this one has: its own, unless the variant differs at inference alone."""
        variant = self.cfg.STUDY.TRAINED_AS
        return Run(variant, self.profile, self.seed) if variant else self

    @property
    def folder(self) -> Path:
        return OUTPUT / "runs" / self.profile / self.name

    @property
    def own_record(self) -> Path:
        """There once the run has been carried out here."""
        return self.folder / "record.json"

    @property
    def published(self) -> Path:
        """Where its record is written for tables and figures."""
        return results(self.profile) / "runs" / f"{self.name}.json"

    @property
    def results(self) -> Path:
        """The folder of results that has its record: the local one where it does, or else the shipped one."""
        return results(self.profile) if self.published.exists() else shipped(self.profile)

    @property
    def record_path(self) -> Path:
        """Where its record is read, if there is one."""
        return self.results / "runs" / f"{self.name}.json"

    def record(self, folder: Optional[Path] = None) -> Optional[Dict]:
        """Its record, by default at :attr:`record_path`, or that in a folder of results; None without one.

        A record of a failed run has ``failed``, a sentence, and no metrics.
        """
        path = folder / "runs" / f"{self.name}.json" if folder else self.record_path
        return json.loads(path.read_text()) if path.exists() else None


@dataclass(frozen=True)
class Options:
    """How runs are carried out; nothing here changes what they compute.

    device: "auto", "cpu" or "cuda". num_gpus: processes of one run (with Slurm: on each of its nodes). jobs: runs at a
    time, 0 for as many as fit. data: folder of the data set. reuse: take shipped records of runs that were not made
    here. launcher: "local", processes on this machine, or "slurm", jobs of a cluster. slurm: what jobs are submitted
    with, KEY=VALUE as in sbatch's ``--KEY=VALUE``. accumulate: parts that each process takes its images in.
    """

    device: str = "auto"
    num_gpus: int = 1
    jobs: int = 0
    data: Optional[str] = None
    reuse: bool = False
    launcher: str = "local"
    slurm: Tuple[str, ...] = ()
    accumulate: int = 1

    @property
    def here(self) -> "Options":
        """For what this process itself computes: the node that waits for Slurm may lack the GPUs of the others."""
        if self.launcher == "local":
            return self
        device = "auto" if self.device == "cuda" else self.device
        return Options(device, jobs=self.jobs, data=self.data, reuse=self.reuse)


def unmade(runs: List[Run], options: Options) -> List[Run]:
    """Those of the runs that have to be carried out."""
    return [run for run in runs if not _made(run, options.reuse)]


def check_device(options: Options) -> str:
    """The device, "cpu" or "cuda". Raises InputError for a device or GPUs that this machine lacks.

    Of a cluster's GPUs this machine knows nothing: with Slurm the jobs find out.
    """
    gpus = torch.cuda.device_count()
    if options.launcher not in ("local", "slurm"):
        raise InputError(f"LAUNCHER is {options.launcher!r}: choose local or slurm")
    if options.device not in ("auto", "cpu", "cuda"):
        raise InputError(f"DEVICE is {options.device!r}: choose auto, cpu or cuda")
    if options.device == "cuda" and not gpus and options.launcher == "local":
        raise InputError("DEVICE is cuda, but PyTorch finds no GPU on this machine: use DEVICE=cpu")
    if options.num_gpus < 1 or options.accumulate < 1 or options.jobs < 0:
        raise InputError(
            "NUM_GPUS and ACCUMULATE have to be 1 or more, and JOBS 1 or more (or 0 for as many as fit)"
        )
    device = "cuda" if gpus and options.device != "cpu" else "cpu"
    if options.num_gpus > max(gpus, 1) and options.device != "cpu" and options.launcher == "local":
        raise InputError(
            f"NUM_GPUS is {options.num_gpus}, but this machine has {gpus}: lower it, or use DEVICE=cpu for "
            f"{options.num_gpus} processes on the CPU"
        )
    return device


def publish(run: Run) -> None:
    """Copy the record of a run that was made here to where the tables read it, unless it is there already."""
    write_bytes(run.published, run.own_record.read_bytes())


def _made(run: Run, reuse: bool) -> Optional[Dict]:
    """The record of a run that need not be carried out again."""
    if run.own_record.exists():
        return json.loads(run.own_record.read_text())
    record = run.record() if reuse else None
    return record if record and "failed" not in record else None


def checked_data(runs: List[Run], options: Options, processes: int) -> datasets.Data:
    """The data of the last of runs of one profile, all of whose data are made and looked at.

    Raises InputError if the data are not sound, not what a run has seen before, or batches do not split over the
    processes of a run.
    """
    over = f"NUM_GPUS={processes}" if processes == options.num_gpus else f"{processes} processes"
    over += f" with ACCUMULATE={options.accumulate}" if options.accumulate > 1 else ""
    for run in runs:
        if run.cfg.SOLVER.IMS_PER_BATCH % (processes * options.accumulate):
            raise InputError(
                f"{run.cfg.SOLVER.IMS_PER_BATCH} images a batch do not split over {over}: use a divisor"
            )
    folder = options.data and Path(options.data)
    prepared = {}  # few runs, if any, have other data than the first
    for run in runs:
        splits = tuple(datasets.locate(run.cfg, folder, OUTPUT).values())
        if splits not in prepared:
            prepared[splits] = datasets.prepare(run.cfg, folder, OUTPUT)
        data = prepared[splits]
        seen = run.folder / "data_fingerprint"
        begun = run.own_record.exists() or (run.folder / "checkpoint.pth").exists()
        if begun and seen.exists() and seen.read_text() != data.fingerprint:
            raise InputError(
                f"{run.name} was trained on other data (fingerprint {seen.read_text()}, not {data.fingerprint}): "
                f"use the same DATA, or move {run.folder} away"
            )
    return data


def progress(run: Run) -> Dict:
    """What the process that works, or last worked, on a run has said of itself; nothing if none has.

    ``pid`` of its process group, ``host``, ``phase``, text for a reader, and ``iteration``, the number done.
    """
    try:
        return json.loads((run.folder / "progress.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def work(run: Run, options: Options) -> int:
    """Carry out one run in this process (and, with more than one GPU, its children). Returns the exit status.

    Where torch.distributed's environment variables describe more than one process, as under torchrun, they carry out
    the run together, and this is one of them.
    """
    store, processes = None, options.num_gpus
    if ranks.world_size() > 1:
        if options.num_gpus > 1:
            raise InputError("the processes of the run have been started already: leave NUM_GPUS out")
        processes = ranks.world_size()
        options = replace(options, num_gpus=int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        store = ranks.meet()
        if not ranks.is_first():
            told = ranks.told(store)
            return _together(run, store, *told) if told else 0
    with _held(run):
        if not run.own_record.exists():
            device = check_device(options)
            parts = list(dict.fromkeys([run, run.trained_as]))
            data = checked_data(parts, options, processes)
            for part in parts:
                write_bytes(part.folder / "data_fingerprint", data.fingerprint.encode())
            if store:
                what = (data, device, options.accumulate)
                ranks.tell(store, what)
                status = _together(run, store, *what)
            else:
                status = _launched(run, data, device, options)
            if status:
                return status
        elif store:
            ranks.tell(store, None)
        publish(run)
    return 0


def _launched(run: Run, data: datasets.Data, device: str, options: Options) -> int:
    arguments = (run, data, device, options.accumulate)
    try:
        launch(_train_and_evaluate, options.num_gpus, dist_url="auto", args=arguments)
    except torch.multiprocessing.ProcessRaisedException:
        if not (run.record() or {}).get("failed"):
            raise
    return 0 if run.own_record.exists() else FAILED


def _together(
    run: Run, store: torch.distributed.Store, data: datasets.Data, device: str, accumulate: int
) -> int:
    try:
        ranks.join(store, device)
        _train_and_evaluate(run, data, device, accumulate)
    except NonFiniteLoss:
        return FAILED  # and whoever started the ranks stops those that have not seen it
    return 0


@contextmanager
def _held(run: Run):
    """Hold the lock of a run's folder, and of the one that it has its weights from; say who has it and wait."""
    make_folder(run.folder)
    lock = FileLock(run.folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = progress(run)
        print(
            f"{run.name} is in the hands of process {owner.get('pid')} on {owner.get('host')}: waiting",
            flush=True,
        )
        lock.acquire()
    try:
        if run.trained_as != run:
            with _held(run.trained_as):
                yield
        else:
            yield
    finally:
        lock.release()


def _train_and_evaluate(run: Run, data: datasets.Data, device: str, accumulate: int) -> None:
    if device == "cpu":
        torch.set_num_threads(run.cfg.STUDY.THREADS)
    cfg = on_device(run.cfg, device)
    record = {
        "run": run.name,
        "variant": run.variant,
        "profile": run.profile,
        "seed": run.seed,
        "data_fingerprint": data.fingerprint,
        **provenance(device),
        "num_gpus": comm.get_world_size(),
        "accumulate": accumulate,
        "config": run.cfg.dump(),
    }

    def report(phase: str, iteration: int) -> None:
        _stop_if_orphaned()
        if comm.is_main_process():
            # The worker leads its process group, whichever of its processes this is.
            state = {
                "pid": os.getpgrp(),
                "host": socket.gethostname(),
                "phase": phase,
                "iteration": iteration,
            }
            write_bytes(run.folder / "progress.json", as_json(state))

    total = cfg.SOLVER.MAX_ITER
    trained_as = run.trained_as
    images, max_dets = data.val.load(), cfg.TEST.DETECTIONS_PER_IMAGE
    category_ids = data.val.category_ids()

    def detect(model, iteration):
        phase = f"iteration {iteration}/{total}, evaluating" if iteration < total else "evaluating"
        return evaluate.detect(
            cfg, model, images, category_ids, lambda i, n: report(f"{phase} {i}/{n}", iteration)
        )

    def validate(model, iteration):
        detections, _ = detect(model, iteration)
        if not comm.is_main_process():
            return {}
        found = evaluate.average_precision(data.val.json, detections, max_dets, ("bbox", "segm"), resamples=0)
        return {kind: {k: found[kind][k] for k in ("AP", "AP50", "AP75")} for kind in found}

    try:
        trained = train(
            on_device(trained_as.cfg, device),
            data.train.load(),
            trained_as.folder,
            lambda i, s: report(f"iteration {i}/{total} ({s:.2f} s)", i),
            validate,
            accumulate,
        )
    except NonFiniteLoss as error:
        write_bytes(run.published, as_json({**record, "failed": str(error)}))
        print(error, flush=True)
        if comm.get_world_size() > 1:
            raise  # the other ranks may not have seen it: who started them has to stop them
        return
    model = evaluate.load_model(cfg, trained_as.folder / "checkpoint.pth")
    detections, milliseconds = detect(model, total)
    if not ranks.leave():
        return
    measure = partial(
        evaluate.average_precision,
        detections=detections,
        max_dets=max_dets,
        report=lambda text: report(text, total),
    )
    record["metrics"] = measure(data.val.json)
    if data.val_coarse:
        coarse = measure(data.val_coarse.json)
        record["metrics"].update({f"{kind}_coarse": metrics for kind, metrics in coarse.items()})
        record["annotation_iou"] = evaluate.annotation_iou(data.val.json, data.val_coarse.json)
    if cfg.STUDY.DATASET == "cityscapes":
        truth = data.val.images.parents[1] / "gtFine" / "val"
        record["metrics"]["cityscapes"] = submission.cityscapes_average_precision(detections, images, truth)
    record["milliseconds_per_image"] = milliseconds
    record["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    record.update(trained)
    write_bytes(run.own_record, as_json(record))


def on_device(cfg, device: str):
    """A copy of a configuration for a device, not frozen."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    return cfg


def _stop_if_orphaned() -> None:
    """End with the process that started the work: it may have been killed without a chance to say so."""
    parent = os.environ.get("BMASK_PARENT")
    if parent and not alive(int(parent)):
        sys.exit("the process that started this run is gone; the next one continues from the checkpoint")


def alive(pid: int) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def provenance(device: str) -> Dict:
    def git(*arguments):
        try:
            command = ["git", "-c", "safe.directory=*", "-C", str(REPOSITORY), *arguments]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    versions = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "detectron2", "sal-detectron2", "numpy", "faster-coco-eval"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            pass
    name = torch.cuda.get_device_name() if device == "cuda" else _cpu_name()
    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": bool(git("status", "--porcelain", "--untracked-files=no", "--", ":!results")),
        "versions": versions,
        "device": device,
        "device_name": name,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    # The instructions belong to it: with others, sums are rounded otherwise, and numbers differ.
    return f"{name}, {os.cpu_count()} cores with {torch.backends.cpu.get_cpu_capability()}"


def as_json(content: Dict) -> bytes:
    """Indented, but for lists of numbers, which take one line each."""
    text = json.dumps(content, indent=1)
    text = re.sub(r"\[[\s\d.,e+-]*\]", lambda numbers: re.sub(r"\s+", " ", numbers[0]), text)
    return (text + "\n").encode()
