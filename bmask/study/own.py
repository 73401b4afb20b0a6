"""Data of your own: a profile made for them, and a page of what came out."""

from pathlib import Path
from typing import Dict, List, Optional, Tuple

import numpy as np
import yaml

from ..errors import InputError
from . import config, evaluate, predictions, runs
from .datasets import Split
from .datasets.check import Survey
from .figures.examples import shown_images
from .figures.style import save
from .figures.training_curves import curves_of
from .files import write_bytes

EPOCHS = 12  # as often as the paper's schedule shows each image: 90,000 x 16 / 118,000
SHOWN = 6  # images on the page


def given(
    train_images: Optional[str], train_json: Optional[str], val_images: Optional[str], val_json: Optional[str]
) -> Optional[Tuple[Split, Split]]:
    """The splits that four places name, to train and to test; None where none is named.

    Raises:
        InputError: some are named, and others not.
    """
    places = {"train_images": train_images, "train_json": train_json, "val_images": val_images, "val_json": val_json}
    missing = [name for name, place in places.items() if not place]
    if len(missing) == 4:
        return None
    if missing:
        raise InputError(f"the data set is named in part, without {', '.join(missing)}; name all four places")
    return Split(Path(train_json), Path(train_images)), Split(Path(val_json), Path(val_images))


def check_wishes(name: str, batch: int = 0, iterations: int = 0) -> None:
    """Raise InputError where :func:`write_profile` cannot do what it is asked for, before the data are looked at."""
    config.check_name(name)
    for what, number in (("batch", batch), ("iterations", iterations)):
        if number < 0:
            raise InputError(f"--{what} is {number}; give 1 or more, or 0 for what fits the data")


def write_profile(
    name: str, train: Tuple[Split, Survey], val: Tuple[Split, Survey], device: str, batch: int = 0, iterations: int = 0
) -> str:
    """Write the profile of a data set, under the name that runs and results will have.

    Args:
        train, val: the splits and what was found in them.
        device: "cuda": the paper's network; "cpu": that of the nuclei. Both start from ImageNet weights.
        batch: images a batch, the whole batch; 0: 16, or 2 on the CPU.
        iterations: length of the training; 0: as long as the paper's, in passes over the data.

    Returns:
        What was chosen and why, in one line.

    Raises:
        InputError: the name cannot be one, or has runs of a profile with something else in it; or the splits have other
            classes, or no objects; or ``batch`` or ``iterations`` is negative.
    """
    check_wishes(name, batch, iterations)
    (train_split, found), (val_split, found_val) = train, val
    if list(found.classes) != list(found_val.classes):
        raise InputError(
            f"{val_split.json} has the classes {', '.join(found_val.classes)}, and {train_split.json} "
            f"{', '.join(found.classes)}; make them the same"
        )
    if not len(found.sides):
        raise InputError(f"{train_split.json} has no objects to learn from; annotate some")
    content, chosen = _choose(found, max(found.objects.max(), found_val.objects.max()), device, batch, iterations)
    places = (train_split.json, train_split.images, val_split.json, val_split.images)
    keys = ("TRAIN_JSON", "TRAIN_IMAGES", "VAL_JSON", "VAL_IMAGES")
    content["STUDY"] = {"DATASET": "own", "OWN": {k: str(p.resolve()) for k, p in zip(keys, places)}}
    path = config.OUTPUT / "profiles" / f"{name}.yaml"
    text = f"# {chosen}\n" + yaml.safe_dump(content, sort_keys=False)
    trained = runs.OUTPUT / "runs" / name
    used = [*trained.glob("*/checkpoint.pth"), *trained.glob("*/record.json")]
    if used and path.exists() and path.read_bytes() != text.encode():
        raise InputError(
            f"there is a profile {name} already, which is another and has been trained with; choose another name with "
            f"--name, or remove {trained} first"
        )
    write_bytes(path, text.encode())
    return chosen


def _choose(found: Survey, most: int, device: str, batch: int, iterations: int) -> Tuple[Dict, str]:
    gpu = device == "cuda"
    base = config.resolve("mask_rcnn", "paper" if gpu else "nuclei")
    solver, number = base.SOLVER, len(found.image_sizes)
    batch = batch or solver.IMS_PER_BATCH
    # The shorter side, as it is, between what the network is made for; and the anchors for the objects at that size.
    shorter, longer = np.median(found.image_sizes.min(1)), np.median(found.image_sizes.max(1))
    side = int(np.clip(32 * round(shorter / 32), 256 if gpu else 64, 800 if gpu else 256))
    small = np.percentile(found.sides, 10) * side / shorter
    first = int(np.clip(2 ** np.floor(np.log2(small)), 8, 32))
    rate = solver.BASE_LR * batch / solver.IMS_PER_BATCH
    least = 1000 if gpu else 400
    length = iterations or max(least, round(EPOCHS * number / batch))
    detections = int(max(100, 100 * -(-1.5 * most // 100)))
    # Proposals that are kept, and that they are chosen from: in the profile of the nuclei's proportion to detections.
    wanted = {"POST_NMS_TOPK": 5 * detections // 2, "PRE_NMS_TOPK": 5 * detections}
    keys = {f"{kind}_{when}": number for kind, number in wanted.items() for when in ("TRAIN", "TEST")}
    more = {key: number for key, number in keys.items() if number > base.MODEL.RPN[key]}
    content = {
        "_BASE_": str(config.EXPERIMENTS / "profiles" / ("paper.yaml" if gpu else "nuclei.yaml")),
        "MODEL": {
            "ROI_HEADS": {"NUM_CLASSES": len(found.classes)},
            "ANCHOR_GENERATOR": {"SIZES": [[first * 2**k] for k in range(5)]},
            **({"RPN": more} if more else {}),
        },
        "INPUT": {
            "MASK_FORMAT": "bitmask" if found.rle else "polygon",
            "MIN_SIZE_TRAIN": [side],
            "MIN_SIZE_TEST": side,
            "MAX_SIZE_TRAIN": int(side * max(2, longer / shorter)),
            "MAX_SIZE_TEST": int(side * max(2, longer / shorter)),
        },
        "SOLVER": {
            "IMS_PER_BATCH": batch,
            "BASE_LR": rate,
            "MAX_ITER": length,
            "STEPS": sorted({length * 2 // 3, length * 8 // 9} - {0}),
            "WARMUP_ITERS": min(solver.WARMUP_ITERS, length // 10),
            "CHECKPOINT_PERIOD": max(min(50, length), length // 20),
        },
        "TEST": {"DETECTIONS_PER_IMAGE": detections, "EVAL_PERIOD": -(-length // 4)},
    }
    why = f"{EPOCHS} passes over {number} images, as in the paper, but at least {least}"
    chosen = (
        f"{'ResNet-50' if gpu else 'EfficientNet-Lite0'}-FPN from ImageNet weights{'' if gpu else ', for a CPU'}, "
        f"{len(found.classes)} classes; input {side} (median shorter side of the images {shorter:.0f}); anchors from "
        f"{first} pixels (a tenth of the objects is below {small:.0f}); {batch} images a batch, learning rate {rate:g} "
        f"(in proportion to the batch); {length} iterations ({'as asked' if iterations else why})"
    )
    return content, chosen


def write_page(variant: str, profile: str, seeds: List[int], options: runs.Options) -> Path:
    """Write ``results/local/<profile>/<variant>.md``: AP, the curves of the training, and the first test images.

    Raises:
        InputError: a run has not been carried out here.
    """
    wanted = [runs.Run(variant, profile, seed) for seed in seeds]
    predictions.ensure({wanted[0]: ["found"]}, options)
    folder = runs.results(profile)
    curves, _ = curves_of(wanted)
    save(curves, folder / f"{variant}_curves.png")
    save(shown_images(wanted[0], SHOWN), folder / f"{variant}_images.png")
    parts = [f"# {variant} on {profile}", _ap_table(wanted)]
    parts += [f"![losses and AP during the training]({variant}_curves.png)"]
    parts += [f"![the first test images: truth and what was found]({variant}_images.png)"]
    path = folder / f"{variant}.md"
    write_bytes(path, ("\n\n".join(parts) + "\n").encode())
    return path


def _ap_table(made: List[runs.Run]) -> str:
    """AP of boxes, masks and boundaries, the means over the seeds."""
    records = [run.record()["metrics"] for run in made]
    means = {
        kind: {
            name: None if records[0][kind][name] is None else np.mean([r[kind][name] for r in records])
            for name in evaluate.COLUMNS
        }
        for kind in evaluate.IOU_TYPES
    }
    return evaluate.to_markdown(means)
