"""The command line: ``python -m bmask --help``."""

import argparse
import itertools
import sys
from pathlib import Path

from ..errors import InputError, Stopped, escaped


def main(arguments=None) -> int:
    """Run one command. Returns the exit status: 0, 1 for a failed run, 2 for wrong input, 130 for Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        # A file's name, or a class's, may be beyond what can be printed here.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    options = parser().parse_args(arguments)
    try:
        return options.command(options) or 0
    except InputError as error:
        print(f"bmask: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"bmask: {Stopped()}", file=sys.stderr)
        return 130
    except PermissionError as error:
        print(
            f"bmask: {escaped(error.filename)} is not for this user to read; change its permissions",
            file=sys.stderr,
        )
        return 2


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m bmask", description="A reproducible study of BMask R-CNN.")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    reproduce = commands.add_parser(
        "reproduce",
        help="train and evaluate what tables and figures need, write and print them, execute their notebooks",
    )
    reproduce.add_argument(
        "items",
        nargs="+",
        metavar="ITEM",
        help="a table, 1 to 9, sobel or release; a figure, figure-1, -2, -5, -6, -7a, -7b or -curves; or all",
    )
    reproduce.set_defaults(command=_reproduce)

    run = commands.add_parser("run", help="train and evaluate what a table (or one variant) needs")
    what = run.add_mutually_exclusive_group(required=True)
    what.add_argument("--table", help="a table of the paper: 1 to 9, sobel or release")
    what.add_argument("--variant", help="one model, a file of experiments/variants/")
    run.set_defaults(command=_run)

    table = commands.add_parser("table", help="write and show a table from the records that are there")
    table.add_argument("table", help="1 to 9, sobel or release")
    table.set_defaults(command=_table)

    figure = commands.add_parser("figure", help="draw a figure from the records and predictions that are there")
    figure.add_argument("figure", help="1, 2, 5, 6, 7a, 7b or curves")
    figure.set_defaults(command=_figure)

    curves = commands.add_parser("curves", help="draw losses and AP during the training of any runs")
    curves.add_argument("variants", nargs="+", metavar="VARIANT", help="files of experiments/variants/")
    curves.add_argument("--out", type=Path, help="a .png or .svg (default: results/local/PROFILE/curves.png)")
    curves.set_defaults(command=_curves)

    predictions = commands.add_parser("predictions", help="train what has not been, and keep predictions for figures")
    predictions.add_argument("--variant", required=True, help="a file of experiments/variants/")
    predictions.set_defaults(command=_predictions)

    report = commands.add_parser("report", help="build the static site of all results, shipped and made here")
    report.add_argument("--out", type=Path, help="(default: report/)")
    report.set_defaults(command=_report)

    verify = commands.add_parser("verify", help="make the shipped results anew from their records, and compare")
    verify.set_defaults(command=_verify)

    check = commands.add_parser("check-data", help="look at a data set in COCO format before anything is spent on it")
    check.add_argument("images", type=Path, metavar="IMAGES", help="the folder of its images")
    check.add_argument("json", type=Path, metavar="JSON", help="its instance file")
    check.set_defaults(command=_check_data)

    train = commands.add_parser("train", help="train on data of your own, in COCO format")
    for split in ("train", "val"):
        train.add_argument(f"--{split}", nargs=2, type=Path, metavar=("IMAGES", "JSON"), required=True)
    train.add_argument("--variant", default="bmask_rcnn", help="a file of experiments/variants/ (default: bmask_rcnn)")
    train.add_argument("--name", default="own", help="of the profile that is written, and the results (default: own)")
    train.add_argument("--batch", type=int, default=0, help="images a batch (default: 0, for 16, or 2 on the CPU)")
    train.add_argument("--iterations", type=int, default=0, help="(default: 0, for 12 passes over the data)")
    train.set_defaults(command=_train)

    predict = commands.add_parser("predict", help="find instances in images of your own")
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or patterns")
    predict.add_argument("--boundaries", action="store_true", help="also write maps of the boundaries")
    predict.add_argument("--min-score", type=float, default=0.5, help="leave out instances below (default: 0.5)")
    predict.set_defaults(command=_predict)

    export = commands.add_parser("export", help="write a trained model as TorchScript")
    export.add_argument("image", type=Path, help="an image to trace it with")
    export.set_defaults(command=_export)

    for command in (predict, export):
        command.add_argument("--weights", type=Path, required=True, help="a run's checkpoint.pth, or released weights")
        command.add_argument("--config", type=Path, help="the configuration file of released weights")
        command.add_argument("--device", default="auto", help="auto, a GPU where there is one, cpu or cuda")
        command.add_argument("--out", type=Path, required=True, help="the folder or, for export, the file to write")

    work = commands.add_parser(
        "work", help="train and evaluate one run in this process, or in those of torchrun: what `run` starts"
    )
    work.add_argument("variant")
    work.add_argument("--seed", type=int, default=0)
    work.set_defaults(command=_work)

    submission = commands.add_parser(
        "submission", help="detections on the test images, as an evaluation server takes them"
    )
    submission.add_argument("server", choices=("coco", "cityscapes"))
    submission.add_argument("--variant", default="bmask_rcnn", help="a trained model (default: bmask_rcnn)")
    submission.add_argument("--seed", type=int, default=0)
    submission.set_defaults(command=_submission)

    evaluate = commands.add_parser(
        "evaluate", help="average precision of released weights, the authors' or detectron2's"
    )
    evaluate.add_argument("--config", required=True, help="a .yaml, or its name in detectron2's model zoo")
    evaluate.add_argument("--weights", required=True, type=Path, help="a .pth or .pkl")
    evaluate.add_argument("--json", type=Path, help="a COCO instance file (default: val2017 of --data)")
    evaluate.add_argument("--images", type=Path, help="the folder of its images")
    evaluate.add_argument("--partial", action="store_true", help="take weights that do not match in full")
    evaluate.add_argument("--out", type=Path, help="a JSON file to write the metrics to")
    evaluate.set_defaults(command=_evaluate)

    for command in (reproduce, run, predictions, train):
        command.add_argument(
            "--jobs", type=int, default=0, help="runs at a time (default: one a core, or one on a GPU)"
        )
        command.add_argument("--reuse", action="store_true", help="take the shipped records instead of training anew")
        command.add_argument(
            "--launcher",
            default="local",
            help="local, processes of this machine, or slurm, jobs of its cluster",
        )
        command.add_argument(
            "--slurm",
            nargs="+",
            action="extend",
            default=[],
            metavar="KEY=VALUE",
            help="what jobs are submitted with, as sbatch's --KEY=VALUE: partition, time in minutes, mem, nodes, ...",
        )
    for command in (reproduce, run, table, figure, curves, predictions, train):
        command.add_argument("--seeds", default="0", help="comma-separated (default: 0)")
    for command in (reproduce, run, table, figure, curves, predictions, work, submission):
        command.add_argument(
            "--profile",
            default="cpu",
            help="a file of experiments/profiles/ (default: cpu); PROFILE-batchN has N images a batch",
        )
    for command in (reproduce, run, predictions, train, work, submission, evaluate):
        command.add_argument("--device", default="auto", help="auto, cpu or cuda")
    for command in (reproduce, run, predictions, work, submission, evaluate):
        command.add_argument("--data", help="folder of the data set")
    for command in (reproduce, run, predictions, train, work):
        command.add_argument("--num-gpus", type=int, default=1, help="GPUs (on the CPU: processes) of one run")
        command.add_argument(
            "--accumulate", type=int, default=1, help="parts of a batch that are taken one after the other"
        )

    nuclei = commands.add_parser("prepare-nuclei", help="download BBBC038 and convert it to COCO format")
    nuclei.add_argument("--source", type=Path, help="stage1_train.zip or its unpacked folder, if you have it")
    nuclei.add_argument("--out", type=Path, help="(default: data/nuclei)")
    nuclei.set_defaults(command=_prepare_nuclei)
    return top


def _reproduce(options) -> int:
    from . import config
    from .reproduce import everything, reproduce

    items = everything(options.profile) if options.items == ["all"] else options.items
    whole = reproduce(items, options.profile, config.parse_seeds(options.seeds), _options(options))
    return 0 if whole else 1


def _options(options):
    from . import runs
    from .launch import ranks

    if ranks.world_size() > 1:
        raise InputError("torchrun starts one run, and this command several: give it `-m bmask work VARIANT`")
    return runs.Options(
        options.device,
        options.num_gpus,
        options.jobs,
        options.data,
        options.reuse,
        options.launcher,
        tuple(options.slurm),
        options.accumulate,
    )


def _run(options) -> int:
    from . import config, launch, runs, tables

    seeds = config.parse_seeds(options.seeds)
    if options.table:
        wanted = tables.table_runs(options.table, options.profile, seeds)
    else:
        wanted = [runs.Run(options.variant, options.profile, seed) for seed in seeds]
    return 0 if launch.ensure(wanted, _options(options)) else 1


def _table(options) -> int:
    from . import config, tables

    print(tables.write(options.table, options.profile, config.parse_seeds(options.seeds)).read_text())


def _figure(options) -> int:
    from . import config, figures

    for path in figures.write(options.figure, options.profile, config.parse_seeds(options.seeds)):
        print(path, path.with_suffix(".md").read_text(), sep="\n")


def _curves(options) -> int:
    from . import config, draw, figures, runs

    seeds = config.parse_seeds(options.seeds)
    figure, _ = figures.training_curves(
        [runs.Run(variant, options.profile, seed) for variant in options.variants for seed in seeds]
    )
    out = options.out or runs.results(options.profile) / "curves.png"
    draw.save(figure, out)
    print(out)


def _predictions(options) -> int:
    from . import config, launch, predictions, runs

    wanted = [runs.Run(options.variant, options.profile, s) for s in config.parse_seeds(options.seeds)]
    if not launch.ensure(wanted, _options(options)):
        return 1
    predictions.ensure(dict.fromkeys(wanted, predictions.PARTS), _options(options).here)


def _report(options) -> int:
    from . import report, runs

    print(report.build(options.out or runs.OUTPUT / "report"))


def _verify(options) -> int:
    from . import report

    found = report.differences()
    print(*found, f"{len(found)} differences", *report.against_shipped(), sep="\n")
    return 1 if found else 0


def _check_data(options) -> int:
    from .datasets import given
    from .datasets.survey import survey, to_text

    split = given(options.images, options.json)
    found = survey(*split)
    print(to_text(split.json.name, found))
    return 2 if found.errors else 0


def _train(options) -> int:
    from . import config, launch, own, runs
    from .datasets import given
    from .datasets.survey import survey, to_text

    options.data = None
    own.check_wishes(options.name, options.batch, options.iterations)
    seeds, device = config.parse_seeds(options.seeds), runs.check_device(_options(options))
    splits = []
    for split in (given(*options.train), given(*options.val)):
        found = survey(*split)
        print(to_text(split.json.name, found))
        if found.errors:
            raise InputError(f"{split.json} has errors, above; correct them first")
        splits.append((split, found))
    print(own.write_profile(options.name, *splits, device, options.batch, options.iterations), flush=True)
    if not launch.ensure([runs.Run(options.variant, options.name, s) for s in seeds], _options(options)):
        return 1
    page = own.write_page(options.variant, options.name, seeds, _options(options))
    print(page.read_text(), page, sep="\n")


def _predict(options) -> int:
    from ..predictor import Predictor
    from .predict import image_paths, keep_apart, predict, written_files

    if not 0 <= options.min_score <= 1:
        raise InputError(f"--min-score is {options.min_score}; give a number from 0 to 1")
    paths, out = image_paths(options.images), options.out
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    written = written_files(paths, options.boundaries)
    keep_apart(out, ["predictions.json", *itertools.chain(*written.values())], _model_files(options), paths)
    predictor = Predictor(options.weights, options.config, options.device, options.boundaries)
    broken = predict(predictor, written, out, options.min_score, options.boundaries)
    print(f"{escaped(out)}: {len(paths) - len(broken)} of {len(paths)} images")
    return 1 if broken else 0


def _model_files(options) -> list:
    return [options.weights, options.weights.with_name("record.json"), *filter(None, [options.config])]


def _export(options) -> int:
    import torch

    from ..images import read_image
    from ..predictor import Predictor
    from .files import write_file
    from .predict import keep_apart

    out = options.out
    if out.is_dir():
        raise InputError(f"--out {out} is a folder; name a file in it")
    keep_apart(out.parent, [out.name], [options.image, *_model_files(options)])
    image = read_image(options.image)
    model = Predictor(options.weights, options.config, options.device).traced(image)
    write_file(out, lambda draft: torch.jit.save(model, str(draft)))
    print(escaped(out))


def _work(options) -> int:
    from . import runs
    from .launch.work import work

    run = runs.Run(options.variant, options.profile, options.seed)
    how = runs.Options(options.device, options.num_gpus, data=options.data, accumulate=options.accumulate)
    return work(run, how)


def _submission(options) -> int:
    from . import runs
    from .reproduce import submit

    run = runs.Run(options.variant, options.profile, options.seed)
    print(submit(options.server, run, runs.Options(options.device, data=options.data)))


def _evaluate(options) -> int:
    from .. import released
    from . import evaluate, runs
    from .files import write_bytes

    if options.out and options.out.is_dir():
        raise InputError(f"--out {options.out} is a folder; name a file in it")
    split = evaluate.find_data(options.data, options.json, options.images)
    cfg, model, report = released.load(options.config, options.weights, options.partial, options.device)
    print(report, file=sys.stderr)
    found = evaluate.measure(cfg, model, split)
    print(evaluate.to_markdown(found["metrics"]))
    if options.out:
        write_bytes(options.out, runs.as_json(found))


def _prepare_nuclei(options) -> int:
    from . import runs
    from .datasets import nuclei

    folder = options.out or runs.OUTPUT / "data" / "nuclei"
    source = options.source or folder.with_suffix(".zip")
    if not options.source:
        nuclei.download(source)
    nuclei.convert(source, folder)
    print(f"{folder} is ready for --profile nuclei --data {folder}")
