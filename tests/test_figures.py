import json

import numpy as np
import pytest
import torch
from conftest import complaint, contents

from bmask.boundary import boundary_targets
from bmask.errors import InputError
from bmask.losses import weighted_bce_loss
from bmask.study import config, figures, files, items, predictions, report, runs, true_boxes
from bmask.study.evaluate import boundary_quality
from bmask.study.figures import architecture, boundary_losses, roi_features, style, training_curves
from bmask.study.true_boxes import SIDE

IOUS = [f"{iou:.2f}" for iou in np.arange(0.5, 1, 0.05)]


def publish(variant, seed, ap, gain_at_75=0.0, spread=0.1, **more):
    """A record whose AP falls with the threshold, from ``ap`` at 0.50."""
    noise = np.random.default_rng(seed).normal(0, 3, 200)  # what all models find hard about a resample
    own = np.random.default_rng(len(variant)).normal(0, spread, 200)
    values = {"AP": ap - 5, "AP50": ap, "AP75": ap - 10 + gain_at_75}
    metrics = {**values, "per_iou": {iou: ap - 40 * (float(iou) - 0.5) for iou in IOUS}}
    metrics["bootstrap"] = {name: list(value + noise + own) for name, value in values.items()}
    losses = {"iteration": [*range(1, 7)], **{f"loss_{x}": [1 / i for i in range(1, 7)] for x in ("mask", "cls")}}
    record = {"variant": variant, "data_fingerprint": "data", "losses": losses}
    record["validation"] = [{"iteration": 3, "segm": {"AP": 1.0}, "bbox": {"AP": 2.0}}]
    record |= {"metrics": {kind: metrics for kind in ("segm", "bbox", "boundary", "segm_coarse")}, **more}
    files.write_bytes(runs.Run(variant, "smoke", seed).published, json.dumps(record).encode())


def drawn(number, seeds=(0,)):
    """A figure's drawings and captions, by the name of their files."""
    figure = figures.named(number)
    return figure.draw(figure.runs("smoke", seeds), figure.predicted("smoke", seeds))


def lines(panel, length):
    """The values of each line with that many points."""
    return [line.get_ydata() for line in panel.lines if len(line.get_xdata()) == length]


def test_figure_1_draws_ap_its_difference_and_the_papers(output):
    for seed in (0, 1):
        publish("mask_rcnn", seed, 30 + seed)
        publish("bmask_rcnn", seed, 31 + seed, gain_at_75=2)
    ((figure, caption),) = drawn("1", [0, 1]).values()
    above, other, below, _ = figure.axes
    assert (above.get_title(), other.get_title()) == ("masks", "boundaries (Boundary AP)")
    first, second = lines(above, 10)
    assert first[0] == 30.5 and second[0] == 31.5 and lines(below, 10)[0] == pytest.approx(np.ones(10))
    assert [list(values)[:2] for values in lines(above, 8)] == [[58.1, 55.6], [59.1, 56.6]]  # up to 0.85
    assert lines(below, 8)[0][-1] == 2.7 and len(other.lines) == 2
    assert below.get_xlabel() == "IoU threshold" and "AP points" in below.get_ylabel()
    assert "+1.0 AP points at an IoU of 0.50, +3.0 at 0.75, a difference of +2.0" in caption
    assert "grows with the threshold" in caption


@pytest.mark.parametrize("gain,words", [(0.0, "is not shown to grow"), (-3.0, "falls with the threshold")])
def test_the_caption_of_figure_1_says_what_the_interval_says(output, gain, words):
    publish("mask_rcnn", 0, 30)
    publish("bmask_rcnn", 0, 31, gain_at_75=gain)
    record = runs.Run("bmask_rcnn", "smoke", 0)
    content = record.record()
    resamples = content["metrics"]["segm"]["bootstrap"]
    resamples["AP75"] = list(np.array(resamples["AP75"]) + np.random.default_rng(5).normal(0, 0.5, 200))
    files.write_bytes(record.published, json.dumps(content).encode())
    ((_, caption),) = drawn("1").values()
    assert words in caption


def test_the_papers_profile_compares_the_papers_models(output):
    models = figures.named("1").models("paper-batch8")
    assert models == ["mask_rcnn_800_r101", "bmask_rcnn_800_r101"]
    assert figures.named("1").models("nuclei") == ["mask_rcnn", "bmask_rcnn"]
    for ap, variant in enumerate(models):
        publish(variant, 0, ap)
    ((figure, _),) = figures.named("1").draw([runs.Run(v, "smoke", 0) for v in models], []).values()
    assert lines(figure.axes[2], 10)[0] == pytest.approx(np.ones(10))


def test_training_curves_are_losses_then_ap_of_any_runs(output):
    for seed in (0, 1):
        publish("mask_rcnn", seed, 30 + 2 * seed)
        publish("bmask_rcnn_m2b", seed, 31)
    shown = [runs.Run(variant, "smoke", s) for variant in ("mask_rcnn", "bmask_rcnn_m2b") for s in (0, 1)]
    figure, _ = training_curves.curves_of(shown)
    titles = [panel.get_title() for panel in figure.axes]
    assert titles == ["mask loss", "cls loss", "mask AP", "box AP"]
    assert lines(figure.axes[0], 6)[0] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6])
    assert [list(values) for values in lines(figure.axes[2], 2)] == [[1, 26], [1, 26]]
    assert {panel.get_xlabel() for panel in figure.axes} == {"iteration"}
    colours = training_curves.colours(["bmask_rcnn_m2b", "mask_rcnn"])
    assert colours["mask_rcnn"] == style.COLOURS["mask_rcnn"] != colours["bmask_rcnn_m2b"]


def test_gains_on_coarse_and_on_precise_truth_stand_side_by_side(output):
    for system, gain in (("mask_rcnn", 0), ("bmask_rcnn", 2)):
        publish(system, 0, 30 + gain, spread=0)
        path = runs.Run(system, "smoke", 0).published
        record = json.loads(path.read_text())
        for kind, factor in (("true_boxes", 1), ("true_boxes_second", 3)):
            values = {name: 60.0 + factor * gain for name in ("IoU", "F")}
            drawn_values = {name: list(value + np.arange(200) / 200) for name, value in values.items()}
            record["metrics"][kind] = {**values, "bootstrap": drawn_values}
        record["metrics"]["segm_second"] = record["metrics"]["segm"]
        files.write_bytes(path, json.dumps(record).encode())
    ((figure, caption),) = drawn("precise").values()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["mask IoU", "boundary F", "AP"]
    assert [list(line.get_xdata()) for line in figure.axes[0].lines[1:]] == [[2, 2, 2], [6, 6, 2]]
    assert "coarse: mask IoU +2.0 [+2.0, +2.0]" in caption and "precise: mask IoU +6.0 [+6.0, +6.0]" in caption
    for system in ("mask_rcnn", "bmask_rcnn"):
        publish(system, 0, 30)
    assert "precise: not measured" in drawn("precise")["precise"][1]
    fitting = [p for p in config.available("profile") if figures.named("precise").fits(p)]
    assert "coco_person" in fitting and not {"cpu", "nuclei"} & {*fitting}


def test_no_panel_of_training_curves_is_left_empty(output):
    losses = {"iteration": [1, 2], **{f"loss_{k}": [1, 0] for k in range(5)}}
    publish("mask_rcnn", 0, 30, losses=losses)
    figure, _ = training_curves.curves_of([runs.Run("mask_rcnn", "smoke", 0)])
    assert len(figure.axes) == 7  # of eight places


def test_training_curves_of_more_variants_than_there_are_markers(output):
    shown = [runs.Run(variant, "smoke", 0) for variant in config.available("variant")[: len(style.MARKERS) + 2]]
    for run in shown:
        publish(run.variant, 0, 30)
    assert len(training_curves.curves_of(shown)[0].axes[2].lines) == len(shown)


def publish_coarse():
    """Records for Fig. 7a, those of coarse runs with how much finer their masks are than annotations."""
    for system, ap in (("mask_rcnn", 30), ("bmask_rcnn", 34)):
        publish(system, 0, ap)
        for level, gain in (("02", 3), ("04", 2), ("08", 1), ("16", 0)):
            ap = 30 + gain * (system == "bmask_rcnn")
            publish(f"{system}_coarse{level}", 0, ap, annotation_iou=1 - int(level) / 50)
            path = runs.Run(f"{system}_coarse{level}", "smoke", 0).published
            record = json.loads(path.read_text())
            record["metrics"]["true_boxes"] = {"finer": 2.5, "bootstrap": {"finer": [1.5, 3.5] * 100}}
            files.write_bytes(path, json.dumps(record).encode())


def test_figure_7a_draws_gains_over_the_quality_of_the_annotation(output, pictured):
    publish_coarse()
    (figure, caption), (examples, _) = drawn("7a").values()
    titles = [panel.get_title() for panel in figure.axes]
    assert titles == ["gain in AP", "gain in AP75", "IoU of mask minus IoU of annotation"]
    exact, coarse = lines(figure.axes[0], 5)
    assert list(exact) == list(coarse) == [4, 3, 2, 1, 0]
    assert figure.axes[0].lines[0].get_xdata() == pytest.approx([1, 0.96, 0.92, 0.84, 0.68], abs=0.01)
    assert figure.axes[0].xaxis_inverted()
    assert caption.startswith(
        "BMask R-CNN gains +4.0 AP over Mask R-CNN when both are trained on exact masks, and +0.0"
    )
    assert "0.96: +3.0 and +3.0" in caption and "0.68: +0.0 and +0.0" in caption
    titles = [panel.get_title() for panel in examples.axes][:4]
    assert titles == ["image", "annotation", "predicted mask", "predicted boundary"]
    assert [list(values) for values in lines(figure.axes[2], 4)] == [[2.5] * 4] * 2
    assert "0.96: +2.5; 0.92: +2.5" in caption


@pytest.mark.parametrize("better,words", [(True, "are closer to"), (False, "are further from")])
def test_the_caption_of_figure_7a_says_whether_predictions_or_annotations_are_better(
    output, pictured, monkeypatch, better, words
):
    publish_coarse()
    if not better:
        swapped = predictions.Predictions(*(np.roll(pictured.roi_masks, k, axis=1) for k in (4, 4, 2)))
        monkeypatch.setattr(predictions, "load", lambda run, parts: swapped)
    _, (_, caption) = drawn("7a").values()
    assert caption.startswith(f"The predictions {words} the exact masks than annotations")


def test_the_drawing_of_the_head_is_of_the_head_as_it_is(tmp_path):
    """Fig. 4: four and two 3x3 convolutions, one of stride 2, one at the end, 1x1 in the fusions; 14x14 to 28x28."""
    words, sides = architecture.described()
    assert words["mask_fcn1..4"] == "4 times 3x3" and words["boundary_fcn1..2"] == "2 times 3x3"
    assert words["downsample"] == "3x3, stride 2" and words["mask_final_fusion"] == "3x3"
    assert words["mask_to_boundary"] == words["boundary_to_mask"] == "1x1"
    assert (sides["R_m"], sides["R_b"], sides["downsample"], sides["mask_predictor"]) == (14, 28, 14, 28)
    style.save(architecture.draw(), tmp_path / "head.png")
    assert report._same(tmp_path / "head.png", architecture.PATH)


@pytest.fixture
def pictured(monkeypatch):
    """Three pictures with two squares each, and models whose boundaries are right, thick, weak or shifted."""
    pictures, masks, boxes = [], [], []
    for k in range(3):
        pictures.append(np.full((64, 64, 3), 60 * k, np.uint8))
        for x in (4, 34):
            mask = np.zeros((64, 64), bool)
            mask[10 : 10 + 20 + k, x : x + 20 + k] = True
            masks.append(mask)
            boxes.append([x - 4, 6, x + 24 + k, 34 + k])
    boxes = np.array(boxes, np.float32)
    rois = np.stack([true_boxes.in_rois(m[None], b[None])[0] for m, b in zip(masks, boxes)])
    credits = ["somebody (CC BY 2.0)"] * 3
    images = predictions.Images(pictures, masks, boxes, np.repeat(range(3), 2), np.zeros(6, int), rois, credits, "data")
    truth = torch.from_numpy(images.roi_boundaries).float()
    thick = torch.nn.functional.max_pool2d(truth, 3, stride=1, padding=1)
    boundaries = {"bmask_rcnn_bce": 0.4 * truth, "bmask_rcnn_weighted_bce": thick}
    boundaries["bmask_rcnn_dice"] = truth.roll(1, dims=2)

    def load(run, parts):
        found = boundaries.get(run.variant, truth)
        here = (images.image_of == 0) | (run.variant != "mask_rcnn")  # which finds those of the first picture alone
        return predictions.Predictions(
            masks=rois.astype(np.float16),
            boundaries=found.half().numpy(),
            annotated=np.roll(rois, 2, axis=1),
            found_in=images.image_of[here],
            found_boxes=boxes[here],
            found_classes=np.zeros(here.sum(), int),
            found_masks=rois[here].astype(np.float16),
            found_boundaries=found[here].half().numpy(),
            quality={"image": images.image_of, **{k: v.numpy() for k, v in boundary_quality(found, truth).items()}},
            calibration=np.array([[10, 1, 2], [10, 9, 8.0]]),
        )

    monkeypatch.setattr(predictions, "load_images", lambda shown: images)
    monkeypatch.setattr(predictions, "load", load)
    return images


def test_figure_2_shows_most_gain_median_and_most_loss_by_the_rule_of_its_caption(pictured, monkeypatch):
    """Of six objects the other model has half of the first, less of the third, and all of the others."""
    load = predictions.load

    def worse(run, parts):
        found = load(run, parts)
        if run.variant == "mask_rcnn":
            found.masks[0, :14] = found.masks[2, :7] = 0
        return found

    monkeypatch.setattr(predictions, "load", worse)
    ((figure, caption),) = drawn("2").values()
    first, second, third = [panel.get_ylabel() for panel in figure.axes if panel.get_ylabel()]
    assert first.startswith("largest gain:\n+") and "+0" in second and "+0" in third
    assert [panel.get_title() for panel in figure.axes][:4] == ["truth", "Mask R-CNN", "BMask R-CNN", "enlarged"]
    assert "33% of 6 objects have a better mask by BMask R-CNN" in caption and "of all in 3 test images" in caption
    assert caption.endswith("Photographs: " + "; ".join(["somebody (CC BY 2.0)"] * 3) + ".")
    truth, worse, better = (panel.images[0].get_array() for panel in figure.axes[:3])
    assert (truth != better).mean() < 0.1 * (truth != worse).mean()


def test_figure_5_shows_the_levels_of_the_configuration_and_of_the_objects(pictured):
    """At smoke and at the size of the paper's: boxes below 112 pixels come from P2."""
    ((figure, caption),) = drawn("5").values()
    titles = [panel.get_title() for panel in figure.axes]
    assert titles[:2] == ["P2 to P5 by scale\nRoIAlign 14x14 or 28x28", "P2 alone\nRoIAlign 14x14 or 28x28"]
    assert all("P5, stride 32" in [text.get_text() for text in panel.texts] for panel in figure.axes[:2])
    ends = [{note.xy for note in panel.texts if hasattr(note, "xy")} for panel in figure.axes[:2]]
    assert [len(places) for places in ends] == [4, 1]
    assert [text.get_text() for text in figure.axes[2].texts] == ["P2\n100%", "P3\n0%", "P4\n0%", "P5\n0%"]
    assert caption.startswith("All 6 objects are small enough for P2")
    cfg = runs.Run("bmask_rcnn_p2p5_14", "paper", 0).cfg  # shorter side 600: boxes of 28 pixels become 262
    assert set(roi_features.levels(cfg, pictured)) == {4}
    assert set(roi_features.levels(runs.Run("bmask_rcnn", "paper", 0).cfg, pictured)) == {2}


def test_figure_6_shows_the_same_objects_and_measures_all(pictured):
    parts = drawn("6", [0, 1])
    assert list(parts) == ["figure6", "figure6_numbers", "figure6_thickness"]
    maps, caption = parts["figure6"]
    titles = [panel.get_title() for panel in maps.axes][:6]
    assert titles == ["image", "BCE", "weighted BCE", "Dice", "Dice-BCE", boundary_losses.UNDONE]
    rows = [panel.get_ylabel() for panel in maps.axes if panel.get_ylabel()]
    assert rows == ["a small object,\n28 px", "a typical one,\n29 px", "a large one,\n30 px"]
    assert maps.axes[-1].get_xlabel() == "probability"
    assert caption.startswith("Weighted BCE draws the thickest boundary (3.00 px)") and "BCE finds least" in caption
    figure, caption = parts["figure6_numbers"]
    assert [panel.get_title() for panel in figure.axes] == ["thickness", "precision", "recall"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == titles[1:5]
    thickness, recall = (
        {line.get_ydata()[0]: line.get_xdata()[0] for line in figure.axes[k].lines[:4]} for k in (0, 2)
    )
    assert np.isnan(thickness[0]) and thickness[1] == pytest.approx(3, abs=0.1)
    assert thickness[3] == pytest.approx(1) and "all 6 objects" in caption and "BCE –" in caption
    assert recall == {0: 0, 1: 1, 2: 1, 3: 1}


def test_weighted_bce_is_lowest_where_the_inverse_of_the_formula_is_the_true_probability():
    """2 in 10 pixels of the instance are boundary, and 3 in 10 of those that are given one probability."""
    target = (torch.arange(100) < 20).float()
    given = torch.linspace(0.01, 0.99, 981)
    logits = torch.zeros(len(given), 100)
    logits[:, 17:27] = torch.logit(given)[:, None]
    costs = [float(weighted_bce_loss(x.view(1, 10, 10), target.view(1, 10, 10))) for x in logits]
    best = float(given[np.argmin(costs)])
    assert boundary_losses.without_weights(best, 0.2) == pytest.approx(0.3, abs=0.002)
    assert boundary_losses.without_weights(0.5, 0.2) == pytest.approx(0.2)


def test_figure_6_says_how_far_weighted_bce_is_off_and_that_its_formula_says_so(pictured):
    figure, caption = drawn("6")["figure6_thickness"]
    (panel,) = figure.axes
    diagonal, formula, bce = panel.lines[:3]
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata())
    assert np.interp(0.5, formula.get_xdata(), formula.get_ydata()) == pytest.approx(0.5)  # 10 of 20 pixels
    assert list(bce.get_xdata()) == [0.1, 0.9] and list(bce.get_ydata()) == [0.2, 0.8]
    assert caption.startswith("The weights of weighted BCE make it say 0.5 where 50% of the pixels are boundary")
    assert "(measured: 50%)" in caption and "px thick instead of 3.00 px (BCE: – px)" in caption


def test_figure_7b_shows_the_sobel_operator_of_the_predicted_mask(pictured):
    ((figure, _),) = drawn("7b").values()
    titles = ["image", "mask", "Sobel, x", "Sobel, y", "boundary"]
    titles += ["mask, $L_b$ / 10", "boundary, $L_b$ / 10"]
    assert [panel.get_title() for panel in figure.axes][:7] == titles
    assert figure.axes[0].get_ylabel() == "a poor mask,\nIoU 1.00"
    assert [panel.get_xlabel() for panel in figure.axes[-3:]] == [
        "probability",
        "response (an edge from 0 to 1 has 4)",
        "probability",
    ]
    mask, x = (figure.axes[k].images[0].get_array()[SIDE // 2] for k in (1, 2))
    assert mask.argmax() - x.argmax() in (0, 1) and x.max() == 4 == -x.min()


def test_figures_are_written_as_png_and_caption_and_the_same_again(output, pictured):
    publish("mask_rcnn", 0, 30)
    publish("bmask_rcnn", 0, 31)
    figure = figures.named("2")
    paths = figure.write("smoke", [0])
    assert [path.name for path in paths] == ["figure2.md"] and figure.written(runs.results("smoke")) == paths
    before, times = contents(folder := paths[0].parent), [p.stat().st_mtime_ns for p in sorted(folder.iterdir())]
    assert set(before) == {"figure2.png", "figure2.md"} and before["figure2.md"].startswith(b"**Figure 2. Masks of")
    figure.write("smoke", [0])
    assert contents(folder) == before and [p.stat().st_mtime_ns for p in sorted(folder.iterdir())] == times
    assert items.made("smoke") == {"figure-2": [0]}


@pytest.mark.parametrize(
    "number,failed,words",
    [
        ("1", False, "--variant mask_rcnn --profile smoke --seeds 0"),
        ("6", False, "predictions --variant bmask_rcnn_bce --profile smoke"),
        ("1", True, "iteration 7: no"),
    ],
)
def test_a_figure_says_which_run_has_failed_or_which_command_makes_it(output, number, failed, words):
    published = runs.Run("mask_rcnn", "smoke", 0).published
    if failed:
        files.write_bytes(published, b'{"failed": "iteration 7: no"}')
    with pytest.raises(InputError, match=words):
        figures.named(number).write("smoke", [0])
    if failed:
        assert [p for p in (output / "results").rglob("*") if p.is_file()] == [published]
    else:
        assert not (output / "results").exists()


def test_the_boundary_targets_are_those_of_the_stored_masks(pictured):
    expected = boundary_targets(torch.from_numpy(pictured.roi_masks)).numpy()
    assert (pictured.roi_boundaries == expected.astype(bool)).all()


def test_the_controls_of_figure_6_redraw_what_is_below_them(output, pictured):
    figure = figures.named("6")
    complaint(lambda: boundary_losses.explore(figure, "smoke"), "Figure 6", "make reproduce-figure-6 PROFILE=smoke")
    figure.note_made("smoke", [0])
    explorer = boundary_losses.explore(figure, "smoke")
    top, *pictures = explorer.children
    assert explorer._repr_mimebundle_()["image/png"].startswith("iVBOR")  # a PNG, in base64
    (image, place, threshold), pictures = top.children[0].children, [top.children[1], *pictures]
    assert (image.max, place.max) == (2, 1)
    before = [bytes(picture.value) for picture in pictures]
    assert all(value.startswith(b"\x89PNG") for value in before)
    threshold.value = 0.6
    assert [bytes(p.value) == old for p, old in zip(pictures, before)] == [True, False]
    place.value = 1
    image.value = 2
    assert all(bytes(picture.value) != old for picture, old in zip(pictures, before))
