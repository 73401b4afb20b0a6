"""The command line: ``python -m bmask --help``. A command is a function; its first line and its types are its help."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, List, Literal, Optional, Tuple, get_args

import cyclopts
from cyclopts import Group, Parameter
from cyclopts.help import DefaultFormatter, PanelSpec
from rich.box import Box

from ..errors import InputError, Stopped, escaped, nearest, one_line

app = cyclopts.App(
    "python -m bmask",
    "A reproducible study of BMask R-CNN.",
    default_parameter=Parameter(allow_repeating=True, negative=()),
    exit_on_error=False,
    group_parameters="Options",
    help_format="plaintext",
    help_formatter=DefaultFormatter(panel_spec=PanelSpec(box=Box("    \n" * 8, ascii=True), padding=(0, 0, 0, 3))),
    print_error=False,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    version_flags=(),
)
app["--help"].show = False


def main(arguments=None) -> int:
    """Run one command. Returns the exit status: 0, 1 for a failed run, 2 for wrong input, 130 for Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        # A file's name, or a class's, may be beyond what can be printed here.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if not arguments:
            raise InputError("no command is given: `python -m bmask --help` lists them")
        return app(arguments) or 0
    except KeyboardInterrupt:
        status, what = 130, Stopped()
    except PermissionError as error:
        status, what = 2, f"{escaped(error.filename)} is not for this user to read; change its permissions"
    except (InputError, cyclopts.CycloptsError) as error:
        status, what = 2, error if isinstance(error, InputError) else _refusal(error)
    print(f"bmask: {what}", file=sys.stderr)
    return status


def _refusal(error: cyclopts.CycloptsError) -> InputError:
    """What is wrong with a command line that cannot be read."""
    what = one_line(error)
    match error:
        case cyclopts.UnknownCommandError(unused_tokens=[name, *_]):
            return nearest("command", name, [known for known in app if not known.startswith("-")])
        case cyclopts.UnknownOptionError(token=token, argument_collection=known):
            names = [name for argument in known for name in argument.names if name.startswith("-")]
            return nearest("option", token.keyword or token.value, [*names, "--help"])
        case cyclopts.UnusedCliTokensError(unused_tokens=[token, *_]):
            what = f"{token!r} is one too many"
        case cyclopts.MissingArgumentError(argument=argument, keyword=keyword):
            needs = "needs two values" if argument.token_count()[0] > 1 else "needs a value"
            what = f"{keyword} {needs}" if keyword else f"{argument.name} is missing"
        case cyclopts.CoercionError(token=cyclopts.Token() as token, argument=argument, target_type=kind):
            wanted = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind)
            what = f"{token.keyword or argument.name} is {token.value!r}, not {wanted or ' or '.join(get_args(kind))}"
    return InputError(f"{what}: see `{' '.join(['python -m bmask', *(error.command_chain or ())])} --help`")


# cyclopts itself would round 1.5, and read a Path that begins with { as JSON.
Whole = Annotated[int, Parameter(converter=lambda _, tokens: int(tokens[0].value))]
Split = Annotated[Tuple[str, str], Parameter(help="a folder of images and its instance file")]
Flag = Annotated[bool, Parameter(show_default=False)]
ITEM = "a table, 1 to 9, sobel, gradients or release; a figure, figure-1, 2, 5, 6, 7a, 7b, precise or curves; or all"
Item = Annotated[str, Parameter(help=ITEM, required=True)]
Table = Annotated[str, Parameter(help="1 to 9, sobel, gradients or release")]
Figure = Annotated[str, Parameter(help="1, 2, 5, 6, 7a, 7b, precise or curves")]
Variant = Annotated[str, Parameter(help="a file of experiments/variants/")]
Variants = Annotated[Variant, Parameter(required=True)]
Profile = Annotated[str, Parameter(help="a file of experiments/profiles/, perhaps with -samedetector or -batchN")]
Seeds = Annotated[str, Parameter(help="comma-separated, such as 0,1,2")]
Data = Annotated[Optional[str], Parameter(help="folder of the data set")]
Device = Annotated[str, Parameter(help="auto, a GPU where there is one, cpu or cuda")]
Processes = Annotated[Whole, Parameter(help="GPUs (on the CPU: processes) of one run")]
Parts = Annotated[Whole, Parameter(help="parts of a batch that are taken one after the other")]
Images = Annotated[Path, Parameter(help="the folder of the images")]
Json = Annotated[Path, Parameter(help="a COCO instance file")]
Source = Annotated[Path, Parameter(help="stage1_train.zip or its unpacked folder, if you have it")]
Coco = Annotated[Optional[Path], Parameter(help="a folder of COCO 2017, if you have it")]
Persons = Annotated[Optional[Path], Parameter(help="PennFudanPed.zip, or its folder or a prepared one, if you have it")]
Out = Annotated[Optional[Path], Parameter(help="where to write it instead")]


@Parameter(name="*")
@dataclass(frozen=True)
class Setup:
    """What runs are trained on."""

    profile: Profile = "cpu"
    data: Data = None


@dataclass(frozen=True)
class OneRun(Setup):
    """One run of a variant."""

    seed: Whole = 0
    device: Device = "auto"


@Parameter(name="*")
@dataclass(frozen=True)
class How:
    """How runs are carried out."""

    seeds: Seeds = "0"
    device: Device = "auto"
    num_gpus: Processes = 1
    accumulate: Parts = 1
    jobs: Annotated[Whole, Parameter(help="runs at a time (0: one a core, or one on a GPU)")] = 0
    reuse: Annotated[Flag, Parameter(help="take the shipped records instead of training anew")] = False
    launcher: Annotated[str, Parameter(help="local, processes here, or slurm, jobs of its cluster")] = "local"
    slurm: Annotated[Tuple[str, ...], Parameter(consume_multiple=1, show_default=False)] = ()
    """what jobs are submitted with, as sbatch's --KEY=VALUE: partition, time in minutes, mem, nodes, ..."""

    def options(self, data: Optional[str] = None):
        from . import runs
        from .launch import ranks

        if ranks.world_size() > 1:
            raise InputError("torchrun starts one run, and this command several: give it `-m bmask work VARIANT`")
        return runs.Options(data=data, **{key: value for key, value in vars(self).items() if key != "seeds"})


@Parameter(name="*")
@dataclass(frozen=True)
class Model:
    """A trained one, and where to write what it is used for."""

    weights: Annotated[Path, Parameter(help="a run's checkpoint.pth, or released weights")]
    out: Annotated[Path, Parameter(help="the folder or, for export, the file to write")]
    config: Annotated[Optional[Path], Parameter(help="the configuration file of released weights")] = None
    device: Device = "auto"

    @property
    def files(self) -> List[Path]:
        return [self.weights, self.weights.with_name("record.json"), *filter(None, [self.config])]


def _reproduce(*items: Item, on: Setup = Setup(), how: How = How()):
    """Make tables and figures: train, evaluate, draw, run notebooks."""
    from . import config
    from .report import wanted
    from .reproduce import reproduce

    items = wanted(list(items), on.profile)
    return 0 if reproduce(items, on.profile, config.parse_seeds(how.seeds), how.options(on.data)) else 1


def _run(*, table: Optional[Table] = None, variant: Optional[Variant] = None, on: Setup = Setup(), how: How = How()):
    """Train and evaluate what a table, or one variant, needs."""
    from . import config, launch, runs, tables

    if (table is None) == (variant is None):
        raise InputError("run takes a --table or a --variant, one of them")
    seeds = config.parse_seeds(how.seeds)
    if variant is None:
        wanted = tables.named(table).runs(on.profile, seeds)
    else:
        wanted = [runs.Run(variant, on.profile, seed) for seed in seeds]
    return 0 if launch.ensure(wanted, how.options(on.data)) else 1


def _table(table: Table, /, *, profile: Profile = "cpu", seeds: Seeds = "0"):
    """Write and show a table from the records that are there."""
    from . import config, tables

    (item := tables.named(table)).check_fits(profile)
    (path,) = item.write(profile, config.parse_seeds(seeds))
    print(path.read_text())


def _figure(figure: Figure, /, *, profile: Profile = "cpu", seeds: Seeds = "0"):
    """Draw a figure from the records and predictions there are."""
    from . import config, figures

    (item := figures.named(figure)).check_fits(profile)
    for path in item.write(profile, config.parse_seeds(seeds)):
        print(path.with_suffix(".png"), path.read_text(), sep="\n")


def _curves(*variants: Variants, profile: Profile = "cpu", seeds: Seeds = "0", out: Out = None):
    """Draw losses and AP during any trainings, in curves.png."""
    from . import config, runs
    from .figures.style import save
    from .figures.training_curves import curves_of

    if out and out.suffix not in (".png", ".svg"):
        raise InputError(f"--out {out} is no .png or .svg; name such a file")
    numbers = config.parse_seeds(seeds)
    figure, _ = curves_of([runs.Run(variant, profile, n) for variant in variants for n in numbers])
    out = out or runs.results(profile) / "curves.png"
    save(figure, out)
    print(out)


def _predictions(*, variant: Variant, on: Setup = Setup(), how: How = How()):
    """Train what has not been, and keep predictions for figures."""
    from . import config, launch, predictions, runs

    wanted = [runs.Run(variant, on.profile, seed) for seed in config.parse_seeds(how.seeds)]
    if not launch.ensure(wanted, how.options(on.data)):
        return 1
    predictions.ensure(dict.fromkeys(wanted, predictions.PARTS), how.options(on.data).here)


def _report(*, out: Out = None):
    """Build the static site of all results, in report/."""
    from . import report, runs

    print(report.build(out or runs.OUTPUT / "report"))


def _check_data(images: Images, json: Json, /):
    """Look at data in COCO format before anything is spent on it."""
    from .datasets import given
    from .datasets.check import survey, to_text

    split = given(images, json)
    found = survey(*split)
    print(to_text(split.json.name, found))
    return 2 if found.errors else 0


def _train(
    *,
    train: Split,
    val: Split,
    variant: Variant = "bmask_rcnn",
    name: Annotated[str, Parameter(help="of the profile that is written, and the results")] = "own",
    batch: Annotated[Whole, Parameter(help="images a batch (0: 16, or 2 on the CPU)")] = 0,
    iterations: Annotated[Whole, Parameter(help="(0: 12 passes over the data)")] = 0,
    how: How = How(),
):
    """Train on data of your own, in COCO format."""
    from . import config, launch, own, runs
    from .datasets import given
    from .datasets.check import survey, to_text

    own.check_wishes(name, batch, iterations)
    seeds, device = config.parse_seeds(how.seeds), runs.check_device(how.options())
    if how.launcher == "slurm" and how.device != "auto":
        device = how.device  # of the jobs: this machine may lack the GPU
    splits = []
    for split in (given(*map(Path, train)), given(*map(Path, val))):
        found = survey(*split)
        print(to_text(split.json.name, found))
        if found.errors:
            raise InputError(f"{split.json} has errors, above; correct them first")
        splits.append((split, found))
    print(own.write_profile(name, *splits, device, batch, iterations), flush=True)
    if not launch.ensure([runs.Run(variant, name, seed) for seed in seeds], how.options()):
        return 1
    page = own.write_page(variant, name, seeds, how.options().here)
    print(page.read_text(), page, sep="\n")


def _predict(
    *images: Annotated[str, Parameter(help="files, folders or patterns", required=True)],
    model: Model,
    boundaries: Annotated[Flag, Parameter(help="also write maps of the boundaries")] = False,
    min_score: Annotated[float, Parameter(help="leave out instances below")] = 0.5,
):
    """Find instances in images of your own."""
    from ..predictor import Predictor
    from .predict import image_paths, keep_apart, predict, written_files

    if not 0 <= min_score <= 1:
        raise InputError(f"--min-score is {min_score}; give a number from 0 to 1")
    paths, out = image_paths(list(images)), model.out
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    written = written_files(paths, boundaries)
    keep_apart(out, ["predictions.json", *(name for names in written.values() for name in names)], model.files, paths)
    predictor = Predictor(model.weights, model.config, model.device, boundaries)
    broken = predict(predictor, written, out, min_score, boundaries)
    print(f"{escaped(out)}: {len(paths) - len(broken)} of {len(paths)} images")
    return 1 if broken else 0


def _export(image: Annotated[Path, Parameter(help="an image to trace it with")], /, *, model: Model):
    """Write a trained model as TorchScript."""
    import torch

    from ..images import read_image
    from ..predictor import Predictor
    from .files import write_file
    from .predict import keep_apart

    if (out := model.out).is_dir():
        raise InputError(f"--out {out} is a folder; name a file in it")
    keep_apart(out.parent, [out.name], [image, *model.files])
    picture = read_image(image)
    traced = Predictor(model.weights, model.config, model.device).traced(picture)
    write_file(out, lambda draft: torch.jit.save(traced, str(draft)))
    print(escaped(out))


def _evaluate(
    *,
    config: Annotated[str, Parameter(help="a .yaml, or its name in detectron2's model zoo")],
    weights: Annotated[Path, Parameter(help="a .pth or .pkl")],
    json: Annotated[Optional[Path], Parameter(help="a COCO instance file (default: val2017 of --data)")] = None,
    images: Optional[Images] = None,
    data: Data = None,
    partial: Annotated[Flag, Parameter(help="take weights that do not match in full")] = False,
    device: Device = "auto",
    out: Annotated[Optional[Path], Parameter(help="a JSON file to write the metrics to")] = None,
):
    """Average precision of the authors' or detectron2's weights."""
    from .. import released
    from . import evaluate, runs
    from .files import write_bytes

    if out and out.is_dir():
        raise InputError(f"--out {out} is a folder; name a file in it")
    split = evaluate.find_data(data, json, images)
    cfg, model, report = released.load(config, weights, partial, device)
    print(report, file=sys.stderr)
    found = evaluate.measure(cfg, model, split)
    print(evaluate.to_markdown(found["metrics"]))
    if out:
        write_bytes(out, runs.as_json(found))


def _submission(server: Literal["coco", "cityscapes"], /, *, variant: Variant = "bmask_rcnn", on: OneRun = OneRun()):
    """Detections on test images, as an evaluation server takes them."""
    from . import runs
    from .reproduce import submit

    print(submit(server, runs.Run(variant, on.profile, on.seed), runs.Options(on.device, data=on.data)))


def _work(*variants: Variants, on: OneRun = OneRun(), num_gpus: Processes = 1, accumulate: Parts = 1):
    """Carry out one run in this process, or in those of torchrun.

    Of several variants, with a profile NAME-samedetector, all mask heads are trained at once.
    """
    from . import runs
    from .launch.work import work

    how = runs.Options(on.device, num_gpus, data=on.data, accumulate=accumulate)
    kind = runs.Run if len(variants) == 1 else runs.Together
    return work(kind(" ".join(variants), on.profile, on.seed), how)


def _verify():
    """Make shipped results anew from records; compare."""
    from . import report

    found = report.differences()
    print(*found, f"{len(found)} differences", *report.against_shipped(), sep="\n")
    return 1 if found else 0


def _prepare_nuclei(*, source: Optional[Source] = None, out: Out = None):
    """Download BBBC038, in COCO format, to data/nuclei."""
    from . import runs
    from .datasets import nuclei

    folder = (out or runs.OUTPUT / "data" / "nuclei").absolute()
    nuclei.convert(source, folder)
    print(f"{folder} is ready for --profile nuclei --data {folder}")


def _prepare_coco_person(*, source: Coco = None, out: Out = None):
    """Download photographs of COCO to data/coco_person."""
    from . import runs
    from .datasets import coco_person

    folder = out or runs.OUTPUT / "data" / "coco_person"
    coco_person.prepare(folder, source)
    print(f"{folder} is ready for --data {folder}")


def _prepare_pennfudan(*, source: Persons = None, out: Out = None):
    """Download Penn-Fudan, a second test set of persons."""
    from . import runs
    from .datasets import pennfudan

    folder = (out or runs.OUTPUT / "data" / "pennfudan").absolute()
    pennfudan.convert(source, folder)
    print(f"{folder} is ready" + ("" if out else ": what is trained on coco_person is tested on it as well"))


for title, commands in {
    "Reproduce": (_reproduce, _run, _table, _figure, _curves, _predictions, _report),
    "Your data": (_check_data, _train, _predict, _export),
    "Weights": (_evaluate, _submission),
    "Servers": (_work,),
    "Maintenance": (_verify, _prepare_nuclei, _prepare_coco_person, _prepare_pennfudan),
}.items():
    group = Group.create_ordered(title)
    for place, command in enumerate(commands):
        app.command(command, group=group, sort_key=place)
