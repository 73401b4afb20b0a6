"""One run, carried out: its data, its training, its evaluation, its record.

Every run is a process of its own, or several, and holds the lock of its folder for as long as it works on it.
"""

import os
import socket
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import List

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from filelock import FileLock, Timeout

from ...errors import InputError
from .. import config, datasets, evaluate, runs, same_detector, stats, submission, true_boxes
from ..files import make_folder, write_bytes
from ..runs import Options, Run
from ..train import NonFiniteLoss, train
from . import ranks

FAILED = 3  # exit status of a run whose loss was not finite


def checked_data(wanted: List[Run], options: Options, processes: int) -> datasets.Data:
    """The data of the last of runs of one profile, all of whose data are made and looked at.

    Raises InputError if the data are not sound, not what a run has seen before, or batches do not split over the
    processes of a run.
    """
    over = f"NUM_GPUS={processes}" if processes == options.num_gpus else f"{processes} processes"
    over += f" with ACCUMULATE={options.accumulate}" if options.accumulate > 1 else ""
    for run in wanted:
        if run.cfg.SOLVER.IMS_PER_BATCH % (processes * options.accumulate):
            raise InputError(f"{run.cfg.SOLVER.IMS_PER_BATCH} images a batch do not split over {over}: use a divisor")
    folder = options.data and Path(options.data)
    prepared = {}  # few runs, if any, have other data than the first
    for run in wanted:
        splits = tuple(datasets.locate(run.cfg, folder, runs.OUTPUT).values())
        if splits not in prepared:
            prepared[splits] = datasets.prepare(run.cfg, folder, runs.OUTPUT)
        data = prepared[splits]
        seen = run.folder / "data_fingerprint"
        begun = run.own_record.exists() or (run.folder / "checkpoint.pth").exists()
        if begun and seen.exists() and seen.read_text() != data.fingerprint:
            raise InputError(
                f"{run.name} was trained on other data (fingerprint {seen.read_text()}, not {data.fingerprint}): "
                f"use the same DATA, or move {run.folder} away"
            )
    return data


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
        if not run.done:
            device = runs.check_device(options)
            parts = [run, *run.others]
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
        runs.publish(run)
    return 0


def _launched(run: Run, data: datasets.Data, device: str, options: Options) -> int:
    arguments = (run, data, device, options.accumulate)
    try:
        launch(_train_and_evaluate, options.num_gpus, dist_url="auto", args=arguments)
    except torch.multiprocessing.ProcessRaisedException:
        if not (run.record() or {}).get("failed"):
            raise
    return 0 if run.done else FAILED


def _together(run: Run, store: torch.distributed.Store, data: datasets.Data, device: str, accumulate: int) -> int:
    try:
        ranks.join(store, device)
        _train_and_evaluate(run, data, device, accumulate)
    except NonFiniteLoss:
        return FAILED  # and whoever started the ranks stops those that have not seen it
    return 0


@contextmanager
def _held(run: Run):
    """Hold the locks of a run's folder and of those of the others that it uses; say who has one and wait."""
    with ExitStack() as held:
        for part in [run, *run.others]:
            make_folder(part.folder)
            lock = FileLock(part.folder / "lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                owner = runs.progress(part)
                whose = f"process {owner.get('pid')} on {owner.get('host')}"
                print(f"{part.name} is in the hands of {whose}: waiting", flush=True)
                lock.acquire()
            held.callback(lock.release)
        yield


def _train_and_evaluate(run: Run, data: datasets.Data, device: str, accumulate: int) -> None:
    if device == "cpu":
        torch.set_num_threads(run.cfg.STUDY.THREADS)
    cfg = runs.on_device(run.cfg, device)
    record = {
        "run": run.name,
        "variant": run.variant,
        "profile": run.profile,
        "seed": run.seed,
        "data_fingerprint": data.fingerprint,
        **runs.provenance(device),
        "num_gpus": comm.get_world_size(),
        "accumulate": accumulate,
        "config": config.to_text(run.cfg),
    }

    def report(phase: str, iteration: int) -> None:
        _stop_if_orphaned()
        if comm.is_main_process():
            # The worker leads its process group, whichever of its processes this is.
            state = {"pid": os.getpgrp(), "host": socket.gethostname(), "phase": phase, "iteration": iteration}
            write_bytes(run.folder / "progress.json", runs.as_json(state))

    total = cfg.SOLVER.MAX_ITER
    trained_as = run.trained_as
    at_once = run.others if isinstance(run, runs.Together) else []
    images, max_dets = data.val.load(), cfg.TEST.DETECTIONS_PER_IMAGE

    def detect(model, iteration, images=images):
        phase = f"iteration {iteration}/{total}, evaluating" if iteration < total else "evaluating"
        return evaluate.detect(
            cfg, model, images, data.category_ids, lambda i, n: report(f"{phase} {i}/{n}", iteration)
        )

    def validate(model, iteration):
        detections, _ = detect(model, iteration)
        if not comm.is_main_process():
            return {}
        found = evaluate.average_precision(data.val.json, detections, max_dets, ("bbox", "segm"), resamples=0)
        return {kind: {k: found[kind][k] for k in ("AP", "AP50", "AP75")} for kind in found}

    try:
        trained = train(
            runs.on_device(trained_as.cfg, device),
            data.train.load(),
            trained_as.folder,
            lambda i, s: report(f"iteration {i}/{total} ({s:.2f} s)", i),
            validate,
            accumulate,
            {part.variant: runs.on_device(part.cfg, device) for part in at_once},
        )
    except NonFiniteLoss as error:
        if not at_once:
            write_bytes(run.published, runs.as_json({**record, "failed": str(error)}))
        print(error, flush=True)
        if comm.get_world_size() > 1:
            raise  # the other ranks may not have seen it: who started them has to stop them
        return
    if at_once:
        if ranks.leave():
            same_detector.hand_out(run.folder / "checkpoint.pth", {part.variant: part.folder for part in at_once})
            (run.folder / "checkpoint.pth").unlink()
        return
    model = evaluate.load_model(cfg, trained_as.folder / "checkpoint.pth")
    if cfg.STUDY.SAME_DETECTOR:
        record["detector"] = same_detector.fingerprint(model)
    detections, milliseconds = detect(model, total)
    second = data.val_second.load() if data.val_second else []
    further = detect(model, total, second)[0] if second else []
    if not ranks.leave():
        return

    def measure(split, detections, suffix):
        found = evaluate.average_precision(split.json, detections, max_dets, report=lambda text: report(text, total))
        record["metrics"].update({f"{kind}{suffix}": metrics for kind, metrics in found.items()})

    def measure_in_true_boxes(split, images, name, annotated=None):
        def show(done, images):
            report(f"in true boxes {done}/{images}", total)

        found = true_boxes.measure(cfg, model, images, split.json, show, annotated)
        by_image = stats.by_image(found, len(images))
        record["metrics"][name] = {**true_boxes.means(found), "images": len(images), "by_image": by_image}

    record["metrics"] = {}
    measure(data.val, detections, "")
    measure_in_true_boxes(data.val, images, "true_boxes", data.val_coarse and data.val_coarse.json)
    if data.val_second:
        record["second_fingerprint"] = data.second_fingerprint
        measure(data.val_second, further, "_second")
        measure_in_true_boxes(data.val_second, second, "true_boxes_second")
    if data.val_coarse:
        measure(data.val_coarse, detections, "_coarse")
        record["annotation_iou"] = evaluate.annotation_iou(data.val.json, data.val_coarse.json)
    if cfg.STUDY.DATASET == "cityscapes":
        truth = data.val.images.parents[1] / "gtFine" / "val"
        record["metrics"]["cityscapes"] = submission.cityscapes_average_precision(detections, images, truth)
    record["milliseconds_per_image"] = milliseconds
    record["peak_memory_mib"] = runs.peak_memory_mib()
    record.update(trained)
    runs.keep(run, record)


def _stop_if_orphaned() -> None:
    """End with the process that started the work: it may have been killed without a chance to say so."""
    parent = os.environ.get("BMASK_PARENT")
    if parent and not runs.alive(int(parent)):
        sys.exit("the process that started this run is gone; the next one continues from the checkpoint")
