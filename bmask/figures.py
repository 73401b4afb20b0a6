"""Every plot of the study. Functions take tables and return matplotlib figures; :func:`save` writes them."""

import io
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import cv2
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from .files import write_bytes

# Okabe and Ito's palette, told apart by colour-blind readers and, by marker, in greyscale.
OURS, PAPER = "#0072B2", "#D55E00"


def component_gains(frame: pd.DataFrame, info: Dict) -> Figure:
    """What each row of a table gains over its first, here and in the paper.

    Args:
        frame: from :func:`bmask.tables.table`.
        info: the table's entry in ``experiments/tables.yaml``.

    Returns:
        One panel a metric: rows from top to bottom, the difference to the first row in AP points from left to
        right. Bars are the standard deviation over seeds of the paired differences, where there are several.
    """
    metrics = info["metrics"]
    words = frame.iloc[:, : frame.columns.get_loc("variant")]
    labels = [
        " + ".join(w.replace("_", " ") for w, value in row.items() if value == "✓") or "Mask R-CNN"
        for _, row in words.iterrows()
    ]
    rows = range(len(frame))
    with sns.axes_style("whitegrid"):
        figure = Figure(figsize=(2.3 * len(metrics) + 2.2, 0.5 * len(frame) + 1.4), layout="constrained")
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for panel, metric in zip(panels, metrics):
        panel.axvline(0, color="0.4", linewidth=1)
        panel.errorbar(
            frame[f"d{metric}"],
            [r - 0.12 for r in rows],
            xerr=None if frame[f"d{metric} std"].isna().all() else frame[f"d{metric} std"],
            fmt="o",
            color=OURS,
            capsize=3,
            label="here",
        )
        panel.plot(
            frame[f"paper d{metric}"],
            [r + 0.12 for r in rows],
            "D",
            color=PAPER,
            fillstyle="none",
            label="paper",
        )
        panel.set_title(metric)
        panel.set_xlabel("difference to row 1 (AP points)", fontsize=8)
        panel.margins(x=0.15)
    panels[0].set_yticks(list(rows), labels)
    panels[0].set_ylim(len(frame) - 0.5, -0.5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=9)
    seeds = int(frame["seeds"].min())
    figure.suptitle(f"{info['title']} ({seeds} {'seed' if seeds == 1 else 'seeds'})", x=0.01, ha="left")
    return figure


def examples(rows: List[Dict[str, Tuple[np.ndarray, np.ndarray]]]) -> Figure:
    """Images side by side with what was found in them.

    Args:
        rows: for each image and each column, by title, the background, (H, W, 3) uint8 or (H, W) in [0, 1], and
            the masks to outline on it, (N, H, W) bool.
    """
    figure = Figure(figsize=(1.9 * len(rows[0]), 1.9 * len(rows) + 0.3), layout="constrained")
    panels = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for k, row in enumerate(rows):
        for panel, (title, (background, masks)) in zip(panels[k], row.items()):
            height, width = background.shape[:2]
            panel.imshow(background, cmap="gray_r", vmin=0, vmax=1)
            for mask, colour in zip(masks, sns.color_palette("bright", max(len(masks), 1))):
                # Padded, so that the outline is closed where the image cuts the object.
                x, y = np.arange(-1, width + 1), np.arange(-1, height + 1)
                panel.contour(x, y, np.pad(mask, 1).astype(float), [0.5], colors=[colour], linewidths=1.2)
            panel.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
            panel.set_title(title if k == 0 else "", fontsize=10)
    return figure


def example_rows(runs: Sequence, data, device: str, count: int, min_score: float = 0.3) -> List[Dict]:
    """What :func:`examples` draws: the first ``count`` validation images, whatever they show.

    Args:
        runs: the finished runs whose models are to be shown, with their checkpoints in place.
        data: the :class:`bmask.datasets.Data` of the runs.
        min_score: detections below are not shown.
    """
    import torch
    from detectron2.data import DatasetMapper
    from detectron2.layers.mask_ops import paste_masks_in_image
    from faster_coco_eval import COCO

    from .evaluate import load_model

    truth = COCO(str(data.val.json))
    images = sorted(data.val.load(), key=lambda x: x["image_id"])[:count]
    rows = []
    for image in images:
        picture = cv2.imread(image["file_name"])[:, :, ::-1]
        masks = [truth.annToMask(a) for a in truth.imgToAnns[image["image_id"]]]
        rows.append({"image": (picture, []), "ground truth": (picture, masks)})
    for run in runs:
        cfg = run.cfg.clone()
        cfg.defrost()
        head = cfg.MODEL.BOUNDARY_MASK_HEAD
        boundaries = (
            cfg.MODEL.ROI_MASK_HEAD.NAME == "BoundaryPreservingHead" and head.SUPERVISION == "boundary"
        )
        cfg.MODEL.DEVICE, head.OUTPUT_BOUNDARIES = device, boundaries
        model, mapper = load_model(cfg, run.folder / "checkpoint.pth"), DatasetMapper(cfg, is_train=False)
        for image, row in zip(images, rows):
            picture = row["image"][0]
            with torch.no_grad():
                found = model([mapper(image)])[0]["instances"].to("cpu")
            found = found[found.scores >= min_score]
            row[run.variant] = (picture, found.pred_masks.numpy())
            if boundaries:
                pasted = paste_masks_in_image(
                    found.pred_boundaries[:, 0], found.pred_boxes, picture.shape[:2], threshold=-1
                )
                strongest = pasted.amax(0).numpy() / 255 if len(found) else np.zeros(picture.shape[:2])
                row[f"{run.variant}: boundary"] = (strongest, [])
    return rows


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
