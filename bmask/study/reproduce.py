"""From nothing to tables: the runs, the measurements, the files under ``results/``, the executed notebooks.

And from a trained run to the file that an evaluation server takes.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Dict, List, Tuple

import pandas as pd
from tqdm.auto import tqdm

from ..errors import InputError, stoppable
from . import config, datasets, evaluate, findings, launch, report, runs, submission, tables
from .datasets import cityscapes, coco
from .files import write_bytes
from .items import Item


def reproduce(items: List[Item], profile: str, seeds: List[int], options: runs.Options) -> bool:
    """Carry out what tables and figures need, each run once, and write and print them.

    Notebooks are executed where papermill is installed and what they show, or they themselves, have changed.

    Returns:
        Whether all runs have metrics. If one has failed, its tables say so, and no figure is drawn and no notebook
        executed.
    """
    if "-batch" in profile:
        print(tables.setting(profile), file=sys.stderr)
    if len(items) > 1:
        print(plan(_wanted(items, profile, seeds), options), flush=True)
    whole, written = make(items, profile, seeds, options)
    if not written:  # a run of a figure has failed
        return whole
    if whole:
        for item, shown in written.items():
            _execute(item.notebook, shown, profile, seeds)
    page = report.write_page(profile)
    findings.write()
    if len(items) > 1:
        print(page)
    else:
        for path in next(iter(written.values()), []):
            print(path.read_text())
        print(page.parent)
    return whole


def make(
    items: List[Item], profile: str, seeds: List[int], options: runs.Options
) -> Tuple[bool, Dict[Item, List[Path]]]:
    """Carry out what tables and figures need, and write them.

    Returns:
        Whether all runs have metrics, and the ``.md`` files by item; without the figures where a run has failed.

    Raises:
        InputError: the profile's data cannot give one of them.
    """
    for item in items:
        item.check_fits(profile)
    whole = launch.ensure(_wanted(items, profile, seeds), options)
    written = {}
    for item in items:
        if whole or item.shows_failed:
            item.measure(profile, seeds, options.here)
            written[item] = item.write(profile, seeds)
    return whole, written


def show(name: str, profile: str, seeds: str, train: bool, **options) -> List[Path]:
    """What a notebook shows of a table or figure: what was made here, or else what is shipped.

    Args:
        name: of the table, or of the figure, with ``figure-`` before its own.
        seeds, options: of the runs, where they are carried out; see :class:`bmask.study.runs.Options`.
        train: carry out what has not been, and make it here. Where nothing is shipped this is done without being asked.

    Returns:
        The table's ``.md``, or the figure's captions; the pictures, ``.png``, lie beside them.

    Raises:
        InputError: wrong parameters, or a run has failed.
    """
    item = report.named(name)
    folder = None if train else item.made_in(profile)
    if folder:
        return item.written(folder)
    with stoppable():
        whole, written = make([item], profile, config.parse_seeds(seeds), runs.Options(**options))
    if not whole:
        raise InputError(f"a run that {name} needs has failed, above; see its log in {runs.OUTPUT / 'runs' / profile}")
    return written[item]


def answer(name: str, profile: str) -> str:
    """What a table or figure that has been made answers, as Markdown; see :func:`bmask.study.findings.answer`."""
    return findings.answer(report.named(name), profile)


def _wanted(items: List[Item], profile: str, seeds: List[int]) -> List[runs.Run]:
    return list(dict.fromkeys(run for item in items for run in item.runs(profile, seeds)))


def plan(wanted: List[runs.Run], options: runs.Options) -> str:
    """One line: how many runs there are, how many of them are left, and how long those will take.

    The estimate is from the records of this profile that were made on this machine.
    """
    left = runs.unmade(wanted, options)
    text = f"{len(wanted)} runs, {len(left)} of them to be made"
    if not left:
        return text
    if options.launcher == "slurm":
        return f"{text}, each a job of Slurm"
    device = runs.provenance(runs.check_device(options))["device_name"]
    folders = {runs.shipped(left[0].profile), runs.results(left[0].profile)}
    seconds = {}
    for path in (p for folder in folders for p in (folder / "runs").glob("*.json")):
        record = json.loads(path.read_text())
        if record["device_name"] == device and "failed" not in record:
            seconds.setdefault(record["variant"], []).append(record["seconds_per_iteration"])
    if not seconds:
        return f"{text}; none has been timed on this machine"
    mean = {variant: pd.Series(values).mean() for variant, values in seconds.items()}
    usual = pd.Series(mean).mean()
    trained = [run for run in left if run.trained_as == run]
    total = sum(run.cfg.SOLVER.MAX_ITER * mean.get(run.variant, usual) for run in trained)
    minutes = total / launch.jobs(options, left) / 60
    return f"{text}: about {minutes:.0f} minutes of training, at the speed of the {len(mean)} variants timed so far"


def _execute(name: str, shown: List[Path], profile: str, seeds: List[int]) -> None:
    source = runs.REPOSITORY / "notebooks" / name
    executed = runs.results(profile) / name
    if executed.exists() and executed.stat().st_mtime > max(p.stat().st_mtime for p in (source, *shown)):
        return
    try:
        import nbformat
        import papermill
        from traitlets.config import Config
    except ImportError:
        print(f"{name} is not executed: papermill is not installed", file=sys.stderr)
        return
    parameters = {"profile": profile, "seeds": ",".join(map(str, seeds))}
    with tempfile.TemporaryDirectory() as folder:
        # Sockets in a folder of one's own: over TCP others on this machine could read along, as the kernel warns.
        kernel = {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}
        client = {"extra_arguments": ["--log-level=CRITICAL"]}  # it logs that it is ended, as an error
        settings = Config(KernelManager=kernel, NotebookClient=client)
        content = papermill.execute_notebook(source, None, parameters, progress_bar=False, config=settings)
    # Where the repository lies on this machine is of no use to who reads the notebook on another.
    content.metadata.papermill.update(input_path=f"notebooks/{name}", output_path=None)
    write_bytes(executed, nbformat.writes(content).encode())


def submit(server: str, run: runs.Run, options: runs.Options) -> Path:
    """Detect on the test images of COCO or Cityscapes and write what their evaluation servers take.

    Args:
        server: ``coco`` (test-dev2017, with ``annotations/image_info_test-dev2017.json`` and ``test2017/``) or
            ``cityscapes`` (``leftImg8bit/test``).
        run: a run that has been carried out here.

    Returns:
        The path of the zip, in the run's folder.

    Raises:
        InputError: the run or the images are not there, or the model has other classes than the data set.
    """
    device = runs.check_device(options)
    if not run.own_record.exists():
        raise InputError(
            f"{run.name} has not been trained here: `python -m bmask run --variant {run.variant} --profile "
            f"{run.profile} --seeds {run.seed}` does it"
        )
    data = options.data and Path(options.data)
    if server == "coco":
        folder = datasets.coco_folder(data)
        test = datasets.Split(folder / "annotations/image_info_test-dev2017.json", folder / "test2017")
        if not test.json.exists():
            raise InputError(f"there is no {test.json}; download it from cocodataset.org, or correct DATA")
        content = coco.read(test.json, ("images", "categories"))
        if missing := coco.missing_files(content["images"], test.images):
            raise InputError(f"{test.json}: {missing}")
        images, category_ids = test.load(), coco.category_ids(content)
    else:
        images = cityscapes.test_images(datasets.cityscapes_folder(data))
        category_ids = [label.id for label in cityscapes.instance_labels()]
    cfg = runs.on_device(run.cfg, device)
    if len(category_ids) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise InputError(
            f"{run.name} knows {cfg.MODEL.ROI_HEADS.NUM_CLASSES} classes and {server} has {len(category_ids)}: "
            "name a run that was trained on it"
        )
    model = evaluate.load_model(cfg, run.trained_as.folder / "checkpoint.pth")
    with tqdm(total=len(images), desc=run.name, unit="image") as bar:
        detections, _ = evaluate.detect(cfg, model, images, category_ids, lambda *_: bar.update())
    if server == "coco":
        path = run.folder / f"{submission.COCO_NAME}.zip"
        submission.coco_zip(detections, path)
    else:
        path = run.folder / "cityscapes_results.zip"
        submission.cityscapes_zip(detections, images, path)
    return path
