"""How long the systems take beside each other: `make benchmark`, or `python benchmarks/speed.py --help`.

Systems take turns, so what slows the machine slows all of them. A ratio is the median over the rounds of a system's
time by Mask R-CNN's in the same round, with its quartiles. Weights are random. Images are noise with objects on it, as
many as a photograph may have: so the number of RoIs changes from image to image, as it does in life.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from pycocotools import mask as rle_tools
from torch import nn
from tqdm.auto import tqdm

from bmask.study import cost, datasets, evaluate, runs, train

SYSTEMS = ("mask_rcnn", "bmask_rcnn", "pointrend_800")
OURS = "bmask_rcnn"  # trained and used channels last; the others are detectron2's, untouched


def configured(variant, profile, device, mixed_precision):
    cfg = cost.configured(profile, variant, device)
    cfg.SOLVER.AMP.ENABLED = mixed_precision
    return cfg


def built(variant, cfg):
    model = cost.built(cfg)
    return model.to(memory_format=torch.channels_last) if variant == OURS else model


def boxes(count, height, width, rng):
    size = np.exp(rng.uniform(np.log(0.06), np.log(0.6), (count, 2))) * (width, height)
    corner = rng.uniform(0, 1, (count, 2)) * ((width, height) - size)
    return torch.tensor(np.concatenate([corner, corner + size], 1), dtype=torch.float32)


def objects_in_an_image(rng, most):
    """Half the photographs of COCO have four objects or fewer, and some have dozens."""
    return int(np.clip(rng.lognormal(1.4, 0.9), 1, most))


def training_images(cfg, step):
    rng = np.random.default_rng(step)
    height, width = cfg.STUDY.COST_INPUT
    batch = []
    for _ in range(cfg.SOLVER.IMS_PER_BATCH):
        found = Instances((height, width), gt_boxes=Boxes(boxes(objects_in_an_image(rng, 60), height, width, rng)))
        found.gt_classes = torch.tensor(rng.integers(cfg.MODEL.ROI_HEADS.NUM_CLASSES, size=len(found)))
        masks = torch.zeros(len(found), height, width, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, found.gt_boxes.tensor.round().int().tolist()):
            mask[y0:y1, x0:x1] = True
            mask[y0 : (y0 + y1) // 2, x0 : (x0 + x1) // 2] = False
        found.gt_masks = BitMasks(masks)
        image = torch.tensor(rng.integers(256, size=(3, height, width), dtype=np.uint8))
        batch.append({"image": image, "instances": found, "height": height, "width": width})
    return batch


class TrainedProposals(nn.Module):
    """An RPN that does its work, and then proposes what a trained one would: each object several times."""

    def __init__(self, rpn):
        super().__init__()
        self.rpn = rpn

    def forward(self, images, features, gt_instances):
        proposals, losses = self.rpn(images, features, gt_instances)
        for found, truth in zip(proposals, gt_instances):
            near = truth.gt_boxes.tensor.repeat(8, 1)[: len(found)]
            sides = (near[:, 2:] - near[:, :2]).repeat(1, 2)
            found.proposal_boxes.tensor[: len(near)] = near + 0.1 * sides * torch.randn_like(near)
            found.proposal_boxes.clip(found.image_size)
        return proposals, losses


class Training:
    """A training step of one system."""

    def __init__(self, variant, profile, device, mixed_precision):
        self.cfg = configured(variant, profile, device, mixed_precision)
        self.model = built(variant, self.cfg).train()
        self.model.proposal_generator = TrainedProposals(self.model.proposal_generator)
        self.optimizer = train.build_optimizer(self.cfg, self.model)
        self.scaler = torch.amp.GradScaler(device, enabled=mixed_precision)

    def __call__(self, step):
        batch = training_images(self.cfg, step)
        seed_all_rng(step)

        def work():
            with EventStorage(), torch.autocast(self.cfg.MODEL.DEVICE, enabled=self.cfg.SOLVER.AMP.ENABLED):
                losses = self.model(batch)
            self.optimizer.zero_grad()
            self.scaler.scale(1e-6 * sum(losses.values())).backward()  # weights stay as they are
            self.scaler.step(self.optimizer)
            self.scaler.update()

        return seconds(work, self.cfg.MODEL.DEVICE)


class Inference:
    """One system on one image."""

    def __init__(self, variant, profile, device, mixed_precision):
        self.cfg = configured(variant, profile, device, mixed_precision)
        self.model = built(variant, self.cfg)

    def __call__(self, step):
        rng = np.random.default_rng(step)
        height, width = self.cfg.STUDY.COST_INPUT
        # A detector finds several times as many objects as there are.
        count = min(5 * objects_in_an_image(rng, 60), self.cfg.TEST.DETECTIONS_PER_IMAGE)
        found = Instances((height, width), pred_boxes=Boxes(boxes(count, height, width, rng)))
        found.pred_classes = torch.tensor(rng.integers(self.cfg.MODEL.ROI_HEADS.NUM_CLASSES, size=count))
        found.scores = torch.rand(count)
        image = torch.tensor(rng.integers(256, size=(3, height, width), dtype=np.uint8))
        batch, found = [{"image": image, "height": height, "width": width}], found.to(self.cfg.MODEL.DEVICE)
        return seconds(lambda: cost.infer(self.model, self.cfg, batch, found), self.cfg.MODEL.DEVICE)


class Head:
    """The mask head of one system at the paper's sizes, on the features of 50 RoIs."""

    def __init__(self, variant, profile, device, mixed_precision):
        self.head, inputs = cost.mask_head(variant, rois=50)
        self.head, self.device = self.head.to(device).eval(), device
        self.r_m, *_ = inputs = [torch.rand_like(x, device=device) for x in inputs]
        self.head.pool = lambda *_: inputs

    @torch.no_grad()
    def __call__(self, step):
        found = Instances((600, 1000), pred_boxes=Boxes(torch.zeros(50, 4)), pred_classes=torch.arange(50))
        found = [found.to(self.device)]
        return seconds(lambda: self.head(self.r_m, found), self.device)


def seconds(work, device):
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(what, kind, systems, args, mixed_precision=False):
    """Time the systems in turn for ``args.seconds``, and print a line for each."""
    timed = {variant: kind(variant, args.profile, args.device, mixed_precision) for variant in systems}
    for step in range(3):  # warm up
        for system in timed.values():
            system(step)
    times, end = {variant: [] for variant in timed}, time.monotonic() + args.seconds
    with tqdm(desc=what, unit="round", file=sys.stderr) as bar:
        while time.monotonic() < end or len(times[systems[0]]) < 5:
            for variant, system in timed.items():
                times[variant].append(system(3 + len(times[variant])))
            bar.update()
    first = np.array(times[systems[0]])
    for variant, found in times.items():
        low, middle, high = np.percentile(found / first, [25, 50, 75])
        print(
            f"| {what} | {variant} | {1000 * np.median(found):.1f} | {middle:.3f} [{low:.3f}, {high:.3f}] |", flush=True
        )


def loading(args):
    """Images a second that the trainer's loader gives, by the number of its workers."""
    cfg = configured(OURS, args.profile, args.device, False)
    images = datasets.prepare(cfg, args.data and Path(args.data), runs.OUTPUT).train.load()
    for workers in args.workers:
        cfg.DATALOADER.NUM_WORKERS = workers
        batches = iter(train.train_loader(cfg, images, 0, 0, 1))
        next(batches)
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < args.seconds / 4:
            done += len(next(batches))
        print(
            f"| loading, images a second | {workers} workers | {done / (time.perf_counter() - start):.0f} | |",
            flush=True,
        )


def average_precision(images):
    """The seconds that AP of boxes, masks and boundaries and 1,000 resamples take, of 100 detections an image."""
    rng = np.random.default_rng(0)
    height, width = 480, 640
    content = {"images": [], "annotations": [], "categories": [{"id": k, "name": str(k)} for k in range(1, 81)]}
    detections = []

    def described(box, category):
        x0, y0, x1, y1 = box
        polygon = [x0, y0, x1, y0, x1, y1, (x0 + x1) / 2, y1]
        rle = rle_tools.frPyObjects([polygon], height, width)[0]
        area, segmentation = float(rle_tools.area(rle)), {**rle, "counts": rle["counts"].decode()}
        box = [x0, y0, x1 - x0, y1 - y0]
        return {"image_id": image, "category_id": category, "bbox": box, "area": area, "segmentation": segmentation}

    for image in tqdm(range(1, images + 1), desc="detections", unit="image", file=sys.stderr):
        content["images"].append({"id": image, "height": height, "width": width, "file_name": f"{image}.jpg"})
        count = objects_in_an_image(rng, 40)
        truth, classes = boxes(count, height, width, rng).numpy(), rng.integers(1, 81, count)
        for box, category in zip(truth.tolist(), classes.tolist()):
            annotation = {**described(box, category), "id": len(content["annotations"]) + 1, "iscrowd": 0}
            content["annotations"].append(annotation)
        sides = np.tile(truth[:, 2:] - truth[:, :2], 2)
        near = np.clip(truth + 0.08 * sides * rng.normal(size=truth.shape), 0, (width, height, width, height))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        others = boxes(max(0, 100 - count), height, width, rng).numpy()
        seen = np.concatenate([classes, rng.integers(1, 81, len(others))])
        for box, category in zip(np.concatenate([near, others]).tolist(), seen.tolist()):
            detections.append({**described(box, category), "score": rng.random()})
    with TemporaryDirectory() as folder:
        truth = Path(folder) / "instances.json"
        truth.write_text(json.dumps(content))
        for kind, name in evaluate.IOU_TYPES.items():
            took = seconds(lambda kind=kind: evaluate.average_precision(truth, detections, kinds=[kind]), "cpu")
            print(f"| AP of {name} | {images} images | {1000 * took:.0f} | |", flush=True)


def start():
    """What a run imports before it does anything."""
    for what, code in {
        "torch and an optimizer alone": "import torch; torch.optim.AdamW([torch.zeros(1, requires_grad=True)])",
        "a run": "import torch, bmask.study.launch.work; torch.optim.AdamW([torch.zeros(1, requires_grad=True)])",
    }.items():
        took = [
            seconds(lambda: subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True), "cpu")
            for _ in range(3)
        ]
        print(f"| imports | {what} | {1000 * np.median(took):.0f} | |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--profile", help="by default cpu, and on a GPU paper")
    parser.add_argument("--data", help="folder of the profile's data set, for loading")
    parser.add_argument("--seconds", type=float, default=40, help="for each comparison")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--images", type=int, default=500, help="for AP; COCO's validation has 5000")
    args = parser.parse_args()
    args.device = args.device.replace("auto", "cuda" if torch.cuda.is_available() else "cpu")
    args.profile = args.profile or {"cpu": "cpu", "cuda": "paper"}[args.device]
    args.workers = [4, 8, 16] if args.device == "cuda" else [0, 2]
    torch.set_num_threads(args.threads)
    where = runs.provenance(args.device)
    print(
        f"{where['device_name']}, torch {where['versions']['torch']}, {args.threads} threads, profile {args.profile}\n"
    )
    print("| what | | ms | by Mask R-CNN's |\n| --- | --- | --- | --- |")
    for mixed_precision in [False, True] if args.device == "cuda" else [False]:
        precision = ", mixed precision" * mixed_precision
        compare(f"training step{precision}", Training, SYSTEMS, args, mixed_precision)
        compare(f"inference{precision}", Inference, SYSTEMS, args, mixed_precision)
    torch.set_num_threads(1)
    compare("mask head, 50 RoIs", Head, SYSTEMS[:2], args)
    torch.set_num_threads(args.threads)
    if args.device == "cpu" or args.data or os.environ.get("DETECTRON2_DATASETS"):
        loading(args)
    average_precision(args.images)
    start()


if __name__ == "__main__":
    main()
