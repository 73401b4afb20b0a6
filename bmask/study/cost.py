"""What the heads cost: multiply-adds, parameters, time and memory (Table 8)."""

import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from textwrap import fill
from typing import Dict, List, Sequence, Tuple

import numpy as np
import pandas as pd
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.roi_heads.mask_head import build_mask_head
from detectron2.structures import Boxes, Instances
from detectron2.utils.env import seed_all_rng
from fvcore.nn import FlopCountAnalysis
from torch import nn
from tqdm.auto import tqdm

from ..config import without_weights
from . import config, runs
from .files import write_bytes

SYSTEMS = ("mask_rcnn", "mask_rcnn_larger_head", "bmask_rcnn")  # the rows of Table 8
SECONDS = 60  # for all systems together
MIN_ROUNDS, MAX_ROUNDS = 5, 200


def multiply_adds(variant: str) -> float:
    """Multiply-adds, in 10^9, of a variant's mask head for one RoI at the paper's sizes, as Table 8 counts them.

    Without the final predictors: the deconvolutions and the 1x1 convolutions after them.
    """
    head, inputs = mask_head(variant, rois=1)

    class Layers(nn.Module):
        def __init__(self, head):
            super().__init__()
            self.head = head

        def forward(self, *features):
            return self.head.layers(*features)

    counts = FlopCountAnalysis(Layers(head), tuple(inputs))
    counts = counts.unsupported_ops_warnings(False).by_module()
    predictors = sum(n for name, n in counts.items() if name in ("head.deconv", "head.predictor"))
    return (counts[""] - predictors) / 1e9


def mask_head(variant: str, rois: int) -> Tuple[nn.Module, List[torch.Tensor]]:
    """A variant's mask head at the paper's sizes, and features of RoIs: R_m (R, C, M, M), and R_b if it has any."""
    cfg = config.resolve(variant, "paper")
    channels, side = cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
    inputs = [torch.zeros(rois, channels, side, side)]
    if cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE:
        shape = ShapeSpec(channels=channels, height=side, width=side)
    else:
        shape = {f"p{k}": ShapeSpec(channels=channels, stride=2**k) for k in (2, 3, 4, 5)}
        side = cfg.MODEL.BOUNDARY_MASK_HEAD.POOLER_RESOLUTION
        inputs.append(torch.zeros(rois, channels, side, side))
    return build_mask_head(cfg, shape), inputs


def ensure(profile: str, options: runs.Options) -> None:
    """Measure what Table 8 shows, unless this has been done here, and publish it as ``cost.json``.

    With ``options.reuse`` a measurement that was made elsewhere is taken as it is.
    """
    device = runs.check_device(options)
    own = runs.OUTPUT / "runs" / profile / "cost.json"
    folders = runs.results(profile), runs.shipped(profile)
    if not own.exists() and options.reuse and any((folder / "cost.json").exists() for folder in folders):
        return
    if not own.exists() or json.loads(own.read_text())["runs"] != _identities(profile):
        write_bytes(own, runs.as_json(measure(profile, device)))
    write_bytes(runs.results(profile) / "cost.json", own.read_bytes())


def _identities(profile: str) -> Dict[str, str]:
    return {variant: runs.Run(variant, profile, 0).name for variant in SYSTEMS}


def measure(profile: str, device: str) -> Dict:
    """Time the systems in turn, so that what slows the machine down slows all of them down.

    The weights are random and the image is noise of ``STUDY.COST_INPUT``: every system does what it does for any
    image, and its mask head sees the same ``TEST.DETECTIONS_PER_IMAGE`` detections.

    Returns:
        For each system ``ms``, the median over the rounds, ``ms_quartiles``; ``ratio``, the median over the rounds
        of its time by the first system's; ``parameters``, ``head_multiply_adds`` (see :func:`multiply_adds`), and
        ``peak_memory_mib``: of the GPU's memory, or on the CPU of a process that does nothing else. And where it was
        measured.
    """
    cfgs = {variant: configured(profile, variant, device) for variant in SYSTEMS}
    with runs.threads_of(cfgs[SYSTEMS[0]], device):
        models = {variant: built(cfg) for variant, cfg in cfgs.items()}
        times = {variant: [_milliseconds(model, cfgs[variant]) for _ in range(2)] for variant, model in models.items()}
        round_seconds = sum(t[-1] for t in times.values()) / 1000  # the first is the warm-up
        rounds = int(np.clip(SECONDS / round_seconds, MIN_ROUNDS, MAX_ROUNDS))
        times = {variant: [] for variant in SYSTEMS}
        for _ in tqdm(range(rounds), desc="timing", unit="round"):
            for variant in SYSTEMS:
                times[variant].append(_milliseconds(models[variant], cfgs[variant]))
    first = np.array(times[SYSTEMS[0]])
    cfg = cfgs[SYSTEMS[0]]
    parameters = {variant: sum(p.numel() for p in models[variant].parameters()) for variant in SYSTEMS}
    models.clear()  # each has the memory to itself
    return {
        **runs.provenance(device),
        "runs": _identities(profile),
        "input": list(cfg.STUDY.COST_INPUT),
        "detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        "mixed_precision": cfg.SOLVER.AMP.ENABLED,
        "rounds": rounds,
        "systems": {
            variant: {
                "head_multiply_adds": multiply_adds(variant) * 1e9,
                "parameters": parameters[variant],
                "ms": float(np.median(times[variant])),
                "ms_quartiles": np.percentile(times[variant], [25, 75]).tolist(),
                "ratio": float(np.median(np.array(times[variant]) / first)),
                "peak_memory_mib": _peak_memory(cfgs[variant]),
            }
            for variant in SYSTEMS
        },
    }


def configured(profile: str, variant: str, device: str) -> CfgNode:
    cfg = runs.on_device(config.resolve(variant, profile), device)
    without_weights(cfg)
    return cfg


def built(cfg: CfgNode) -> nn.Module:
    seed_all_rng(0)
    return build_model(cfg).eval().to(memory_format=torch.channels_last)  # as it is trained and used


def _input(cfg: CfgNode) -> Tuple[List[Dict], Instances]:
    """A batch of one image of noise, and the detections that the mask head is given; the same each time."""
    height, width = cfg.STUDY.COST_INPUT
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    count = cfg.TEST.DETECTIONS_PER_IMAGE
    corner = torch.rand(count, 2, generator=generator) * 0.7
    boxes = torch.cat([corner, corner + 0.05 + torch.rand(count, 2, generator=generator) * 0.25], dim=1)
    detections = Instances((height, width))
    detections.pred_boxes = Boxes(boxes * torch.tensor([width, height, width, height]))
    detections.pred_classes = torch.randint(0, cfg.MODEL.ROI_HEADS.NUM_CLASSES, (count,), generator=generator)
    detections.scores = torch.rand(count, generator=generator)
    return [{"image": image, "height": height, "width": width}], detections.to(cfg.MODEL.DEVICE)


@torch.no_grad()
def infer(model: GeneralizedRCNN, cfg: CfgNode, batch: List[Dict], detections: Instances) -> None:
    """All that inference does, with given detections for the mask head instead of what the box head finds."""
    with torch.autocast(cfg.MODEL.DEVICE, enabled=cfg.SOLVER.AMP.ENABLED):
        images = model.preprocess_image(batch)
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features, None)
        heads = model.roi_heads
        pooled = heads.box_pooler([features[f] for f in heads.box_in_features], [x.proposal_boxes for x in proposals])
        heads.box_predictor.inference(heads.box_predictor(heads.box_head(pooled)), proposals)
        (result,) = heads.forward_with_given_boxes(features, [detections])
        detector_postprocess(result, batch[0]["height"], batch[0]["width"])


def _milliseconds(model: nn.Module, cfg: CfgNode) -> float:
    batch, detections = _input(cfg)
    if cfg.MODEL.DEVICE == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        infer(model, cfg, batch, detections)
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)
    start = time.perf_counter()
    infer(model, cfg, batch, detections)
    return (time.perf_counter() - start) * 1000


def _peak_memory(cfg: CfgNode) -> float:
    if cfg.MODEL.DEVICE == "cuda":
        model = built(cfg)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        infer(model, cfg, *_input(cfg))
        return torch.cuda.max_memory_allocated() / 2**20
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_resident, cfg.dump()).result()


def _peak_resident(dump: str) -> float:
    cfg = CfgNode.load_cfg(dump)
    torch.set_num_threads(cfg.STUDY.THREADS)
    infer(built(cfg), cfg, *_input(cfg))
    return runs.peak_memory_mib()


def measured(folders: Dict[str, Path]) -> Dict[str, Dict]:
    """What :func:`measure` has given, of those folders of results that have it."""
    paths = {source: folder / "cost.json" for source, folder in folders.items()}
    return {source: json.loads(path.read_text()) for source, path in paths.items() if path.exists()}


def to_markdown(records: Dict[str, Dict], names: Sequence[str], paper: Sequence[Dict[str, str]]) -> str:
    """The measurements as one table, the systems in turn, each with the paper's numbers.

    Args:
        records: from :func:`measured`.
        names: of the systems.
        paper: the words of Table 8's rows.
    """
    if not records:
        return "The cost has not been measured: `make reproduce-table-8` does it.\n"
    paper_ms = [float(words["ms_per_image_2080Ti"]) for words in paper]
    lines = []
    for variant, name, words, ms in zip(SYSTEMS, names, paper, paper_ms):
        for source, record in records.items():
            system = record["systems"][variant]
            low, high = system["ms_quartiles"]
            lines.append(
                [
                    name if len(lines) % (len(records) + 1) == 0 else "",
                    source,
                    f"{system['head_multiply_adds'] / 1e9:.2f}",
                    f"{system['ms']:.1f} [{low:.1f}, {high:.1f}]",
                    f"{system['ratio']:.3f}",
                    f"{system['parameters'] / 1e6:.1f}",
                    # The record of profile gpu lacks it: it had counted another model's weights as well.
                    f"{system['peak_memory_mib']:.0f}" if "peak_memory_mib" in system else "–",
                ]
            )
        lines.append(["", "paper", words["head_GFLOPs"], f"{ms:.1f}", f"{ms / paper_ms[0]:.3f}", "", ""])
    columns = ["", "", "GMAC", "ms an image", "ratio", "parameters, M", "MiB"]
    text, said = pd.DataFrame(lines, columns=columns).to_markdown(index=False, disable_numparse=True), ""
    for source, record in records.items():
        height, width = record["input"]
        said += (
            f"{source}: {record['device_name']}{', mixed precision' if record['mixed_precision'] else ''}, input "
            f"{height}x{width}, {record['detections']} detections, {record['rounds']} rounds; memory of "
            f"{'the GPU' if record['device'] == 'cuda' else 'a whole process, libraries included'}. "
        )
    said += (
        "paper: one RTX 2080 Ti, input 600x1000. GMAC: multiply-adds of the head for one RoI at the paper's sizes. "
        "Times are medians and quartiles, the systems in turn; a ratio is the median of the rounds' ratios."
    )
    return f"{text}\n\n{fill(said, 100)}\n"
