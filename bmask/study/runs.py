"""A run: variant x profile x seed. Its identity, where its state and its record are, and how it may be carried out.

A run keeps its state (checkpoint, progress, log, fingerprint of the data, record) in ``runs/<profile>/<name>/`` and
publishes its record to the folder of results. The record is JSON for a reader. Two files beside it hold the arrays of
all runs of a folder of results: AP on the resamples, ``resamples.npz``, and how good the masks of each image are in
their true boxes, ``true_boxes.npz``.

Results are shipped, in ``results/<profile>/`` of the repository, or local, in ``results/local/<profile>/`` of the
output folder, which git ignores. What a reader makes is local. The maintainers' switch (``make ... PUBLISH=1``) writes,
and reads, the shipped results alone.
"""

import hashlib
import json
import os
import platform
import re
import resource
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Collection, Dict, List, Optional, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from filelock import FileLock
from numpy.typing import ArrayLike

from ..errors import InputError
from . import config, stats
from .config import OUTPUT, REPOSITORY
from .files import make_folder, npz, write_bytes

SHIPPED = REPOSITORY / "results"
PUBLISH = os.environ.get("BMASK_PUBLISH", "") not in ("", "0")
RESAMPLES, TRUE_BOXES = "resamples.npz", "true_boxes.npz"
NOTHING = -1  # where a resample has no object


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
    def title(self) -> str:
        """What it is called beside a progress bar."""
        return self.variant

    @property
    def others(self) -> List["Run"]:
        """The runs whose folders it uses beside its own."""
        return [] if self.trained_as == self else [self.trained_as]

    @property
    def done(self) -> bool:
        """Whether it has been carried out here."""
        return self.own_record.exists()

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
        if not path.exists():
            return None
        record = json.loads(path.read_text())
        if isinstance(record.get("losses"), list):  # in records of before
            record["losses"] = by_term(record["losses"])
        if "failed" in record:
            return record
        for array in _arrays(path.parents[1] / RESAMPLES, [self.name]).values():
            for key, values in _unpacked(array).items():
                kind, name = key.split()
                record["metrics"][kind].setdefault("bootstrap", {})[name] = values
        for name, array in _arrays(path.parents[1] / TRUE_BOXES, [self.name]).items():
            by_image = {measure: (array[measure] / 100).tolist() for measure in array.dtype.names}
            drawn = stats.means_of_draws(by_image)
            record["metrics"][name.split()[1]] |= {"by_image": by_image, "bootstrap": drawn}
        return record


@dataclass(frozen=True)
class Together(Run):
    """Runs of the same-detector protocol whose training is carried out at once, as one that has no record.

    ``variant`` names theirs, with spaces between.

    Raises:
        InputError: they are of another protocol, or differ in more than their mask heads.
    """

    def __post_init__(self):
        detectors = {config.identity(run.cfg, config.MASK_HEAD) for run in self.others}
        if len(detectors) > 1 or not self.cfg.STUDY.SAME_DETECTOR:
            raise InputError(
                "variants are trained at once where they differ in their mask heads alone and the profile ends in "
                f"-samedetector; name one of {', '.join(self.variant.split())}"
            )

    @cached_property
    def others(self) -> List[Run]:
        return [Run(variant, self.profile, self.seed) for variant in sorted(set(self.variant.split()))]

    @property
    def cfg(self):
        return self.others[0].cfg

    @property
    def title(self) -> str:
        return f"heads of {len(self.others)} variants"

    @cached_property
    def name(self) -> str:
        names = " ".join(run.name for run in self.others)
        return f"together-seed{self.seed}-{hashlib.sha256(names.encode()).hexdigest()[:10]}"

    @property
    def done(self) -> bool:
        return all((run.folder / "checkpoint.pth").exists() for run in self.others)


def together(runs: List[Run]) -> List[Together]:
    """What is left to be trained at once of runs of the same-detector protocol: one training for each detector."""
    heads = {}
    for run in dict.fromkeys(run.trained_as for run in runs):
        if run.cfg.STUDY.SAME_DETECTOR and not run.done:
            key = (config.identity(run.cfg, config.MASK_HEAD), run.profile, run.seed)
            heads.setdefault(key, []).append(run.variant)
    found = [Together(" ".join(names), *where) for (_, *where), names in heads.items() if len(names) > 1]
    return [run for run in found if not run.done]


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
        raise InputError("NUM_GPUS and ACCUMULATE have to be 1 or more, and JOBS 1 or more (or 0 for as many as fit)")
    device = "cuda" if gpus and options.device != "cpu" else "cpu"
    if options.num_gpus > max(gpus, 1) and options.device != "cpu" and options.launcher == "local":
        raise InputError(
            f"NUM_GPUS is {options.num_gpus}, but this machine has {gpus}: lower it, or use DEVICE=cpu for "
            f"{options.num_gpus} processes on the CPU"
        )
    return device


@contextmanager
def threads_of(cfg: CfgNode, device: str):
    """Within it PyTorch computes on the CPU with as many threads as a run: sums are rounded as there."""
    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(cfg.STUDY.THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_memory_mib() -> float:
    """The most memory that this process has had."""
    try:
        return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
    except OSError:  # no Linux, where this would begin with what the process had that started it
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def keep(run: Run, record: Dict) -> None:
    """Write the record of a run, and before it its arrays, to its folder: it has been carried out then.

    Args:
        record: with ``metrics`` as :func:`bmask.study.evaluate.average_precision` gives them. Those in true boxes have
            ``by_image``, see :func:`bmask.study.stats.by_image`. It and ``bootstrap`` are kept as integers, of
            hundredths.
    """
    resamples, in_true_boxes, metrics = {}, {}, {}
    for kind, found in record["metrics"].items():
        metrics[kind] = {name: value for name, value in found.items() if name not in ("bootstrap", "by_image")}
        if "by_image" in found:  # its bootstrap is made of it
            in_true_boxes[f"{run.name} {kind}"] = _packed(found["by_image"], "<i4")
        else:
            resamples |= {f"{kind} {name}": values for name, values in found.get("bootstrap", {}).items()}
    write_bytes(run.folder / RESAMPLES, npz({run.name: _packed(resamples, "<i2")} if resamples else {}))
    write_bytes(run.folder / TRUE_BOXES, npz(in_true_boxes))
    write_bytes(run.own_record, as_json({**record, "metrics": metrics}))


@contextmanager
def locked(folder: Path):
    """Within it no other process writes to a folder of results, which is made where there is none."""
    make_folder(folder / "runs")
    with FileLock(folder / "runs" / ".lock"):
        yield


def publish(run: Run) -> None:
    """Copy record and arrays of a run that was made here to where the tables read them, unless they are there.

    Of processes that publish at once each waits for the others. What is there of runs without a record is removed.
    """
    if isinstance(run, Together):
        return
    record, folder = run.own_record.read_bytes(), run.published.parents[1]
    ours = {name: _arrays(run.folder / name) for name in (RESAMPLES, TRUE_BOXES)}
    there = {name: _arrays(folder / name, [run.name]) for name in ours}
    if run.published.exists() and run.published.read_bytes() == record and _bytes(there) == _bytes(ours):
        return
    with locked(folder):
        names = {other.stem for other in run.published.parent.glob("*.json")} - {run.name}
        for name, arrays in ours.items():  # first: a record is never without
            if arrays := {**_arrays(folder / name, names), **arrays}:
                write_bytes(folder / name, npz(dict(sorted(arrays.items()))))
        write_bytes(run.published, record)


def by_term(looks: List[Dict[str, float]]) -> Dict[str, List[float]]:
    """Looks at the losses of a training, each ``iteration`` and loss terms by name, as a list for each name."""
    return {name: [looked[name] for looked in looks] for name in looks[0]}


def _packed(columns: Dict[str, ArrayLike], kind: str) -> np.ndarray:
    """Percentages by name as one array of hundredths, integers of this kind."""
    whole = {name: np.rint(100 * np.array(values, float)) for name, values in columns.items()}
    for values in whole.values():
        values[values == NOTHING] = 0  # a difference may be that small
        values[np.isnan(values)] = NOTHING
    return np.array(tuple(whole.values()), [(name, kind, values.shape) for name, values in whole.items()])


def _unpacked(array: np.ndarray) -> Dict[str, List[Optional[float]]]:
    return {
        name: [None if value == NOTHING else value / 100 for value in array[name].tolist()]
        for name in array.dtype.names
    }


def _arrays(path: Path, names: Optional[Collection[str]] = None) -> Dict[str, np.ndarray]:
    """The arrays that a file has of runs of these names, or of all. An array's name begins with its run's."""
    if not path.exists():
        return {}
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files if names is None or name.split()[0] in names}


def _bytes(files: Dict[str, Dict[str, np.ndarray]]) -> Dict[str, List[bytes]]:
    return {name: [array.tobytes() for array in arrays.values()] for name, arrays in files.items()}


def _made(run: Run, reuse: bool) -> bool:
    """Whether a run need not be carried out again."""
    record = run.record() if reuse and not run.own_record.exists() else None
    return run.own_record.exists() or record is not None and "failed" not in record


def progress(run: Run) -> Dict:
    """What the process that works, or last worked, on a run has said of itself; nothing if none has.

    ``pid`` of its process group, ``host``, ``phase``, text for a reader, and ``iteration``, the number done.
    """
    try:
        return json.loads((run.folder / "progress.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def on_device(cfg, device: str):
    """A copy of a configuration for a device, not frozen."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    return cfg


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
    for package in ("torch", "torchvision", "detectron2", "sal-detectron2", "numpy", "faster-coco-eval", "hotcoco"):
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
    """Indented, but for lists of numbers and short objects, which take one line each."""
    text = json.dumps(content, indent=1)
    text = re.sub(r"\[(?:[\s\d.,e+-]|null)*\]|\{\n[^][{}]{,150}\}", lambda found: re.sub(r"\n\s*", " ", found[0]), text)
    return (text + "\n").encode()
