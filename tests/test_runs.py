import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import PATIENCE, Stop, complaint, stop_at
from filelock import FileLock

from bmask import losses
from bmask.errors import InputError
from bmask.study import config, datasets, files, launch, runs, tables, train
from bmask.study.launch import work

RUN = runs.Run("bmask_rcnn", "smoke", 0)


def comparable(record):
    """What has to be the same when the same run is made again: all but times and memory."""
    return {k: record[k] for k in ("metrics", "losses", "config", "data_fingerprint")}


def finished(process):
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The uninterrupted run, made once, in this process."""
    folder = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "OUTPUT", folder)
        patch.delenv("BMASK_PARENT", raising=False)
        assert work.work(RUN, runs.Options(device="cpu")) == 0
        return RUN.record()


def test_the_same_seed_gives_the_same_numbers(reference, output):
    assert work.work(RUN, runs.Options(device="cpu")) == 0
    assert comparable(RUN.record()) == comparable(reference)


def test_another_seed_gives_other_numbers(reference, output):
    other = runs.Run("bmask_rcnn", "smoke", 1)
    assert work.work(other, runs.Options(device="cpu")) == 0
    assert other.record()["losses"] != reference["losses"]


def test_a_record_holds_what_a_reader_needs(reference):
    for kind in ("bbox", "segm", "boundary"):
        metrics = reference["metrics"][kind]
        names = {"AP", "AP50", "AP75", "APs", "APm", "APl", "per_iou", "per_class"}
        assert set(metrics) == names | ({"bootstrap"} if kind != "boundary" else set())
        assert len(metrics["per_iou"]) == 10 and set(metrics["per_class"]) == {"star", "blob", "gear", "leaf"}
    assert reference["versions"]["torch"] == torch.__version__.split("+")[0]
    assert reference["device"] == "cpu" and reference["seconds_per_iteration"] > 0
    assert reference["milliseconds_per_image"] > 0 and reference["peak_memory_mib"] > 100
    assert "git_commit" in reference and len(reference["data_fingerprint"]) == 16
    assert reference["losses"]["iteration"] == [1, 2, 3, 4, 5, 6]
    terms = {"iteration", "loss_cls", "loss_box_reg", "loss_mask", "loss_boundary", "loss_rpn_cls", "loss_rpn_loc"}
    assert set(reference["losses"]) == terms


def test_kill_9_and_the_same_command_again_end_with_the_numbers_of_an_uninterrupted_run(reference, output, bmask):
    command = ("run", "--variant", "bmask_rcnn", "--profile", "smoke", "--device", "cpu")
    first = bmask(*command)
    deadline = time.monotonic() + PATIENCE
    while not (RUN.folder / "checkpoint.pth").exists():
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.01)
    first.kill()
    os.killpg(json.loads((RUN.folder / "progress.json").read_text())["pid"], signal.SIGKILL)
    finished(first)
    assert not (RUN.folder / "record.json").exists(), "the run was over before it could be killed"
    status, _, err = finished(bmask(*command))
    assert status == 0, err
    assert comparable(RUN.record()) == comparable(reference)


def test_a_run_ends_with_the_process_that_started_it(output, bmask):
    first = bmask("run", "--variant", "bmask_rcnn", "--profile", "smoke", "--device", "cpu")
    deadline = time.monotonic() + PATIENCE
    while not (RUN.folder / "progress.json").exists():
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.01)
    first.kill()
    finished(first)
    with FileLock(RUN.folder / "lock", timeout=60):  # the worker has let go
        assert not (RUN.folder / "record.json").exists()


def test_training_resumes_at_every_checkpoint_as_if_it_had_not_stopped(output):
    cfg = RUN.cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    data = datasets.prepare(cfg, None, output)

    def validate(model, iteration):
        assert not model.training
        weights = sum(p.double().sum().item() for p in model.parameters())
        return {**validated(model, iteration), "weights": weights}

    (output / "whole").mkdir()
    whole = train.train(cfg, data.train.load(), output / "whole", stop_at(None), validate)
    (output / "parts").mkdir()
    for iteration in (1, 3, 4):
        with pytest.raises(Stop):
            train.train(cfg, data.train.load(), output / "parts", stop_at(iteration), validate)
    parts = train.train(cfg, data.train.load(), output / "parts", stop_at(None), validate)
    assert parts["losses"] == whole["losses"] and parts["validation"] == whole["validation"]
    assert [looked["iteration"] for looked in whole["validation"]] == [3]
    a, b = (torch.load(output / name / "checkpoint.pth", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])
    # Stopped between training and evaluation, a run has nothing left to train, and needs no optimizer.
    assert "optimizer" not in a
    assert train.train(cfg, data.train.load(), output / "whole", stop_at(None), validate)["losses"] == whole["losses"]


def test_a_half_written_file_is_never_seen(tmp_path):
    target = tmp_path / "record.json"
    target.write_text("old")

    def write(path):
        path.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_file(target, write)
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["record.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def fill(_):
        Path("/dev/full").write_bytes(b"1")

    def save(_):
        torch.save({"a": torch.zeros(9)}, "/dev/full")

    with pytest.raises(RuntimeError):
        files.write_file(tmp_path / "checkpoint.pth", save)  # of something else, as far as one can tell
    with pytest.raises(InputError, match=f"the disk of {tmp_path} is full; make room"):
        files.write_file(tmp_path / "record.json", fill)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(InputError, match="full"):
        files.write_file(tmp_path / "checkpoint.pth", save)
    with pytest.raises(InputError), files.whole_folder(tmp_path / "data"):
        raise OSError("cannot write 1.png")
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))

    def fill_a_folder(path):
        with files.whole_folder(path) as draft:
            (draft / "a").touch()

    for path in ("file/x", "file/x/y", "n" * 300, "folder/" + "n" * 300):
        for write in (
            lambda path: files.write_bytes(path, b"1"),
            lambda path: files.write_file(path, lambda draft: torch.save({}, draft)),
            files.make_folder,
            fill_a_folder,
        ):
            complaint(lambda: write(tmp_path / path), str(tmp_path / path), "cannot be written")
    complaint(lambda: files.write_bytes(tmp_path / "folder", b"1"), "folder cannot be written")
    complaint(lambda: files.make_folder(tmp_path / "file"), "file cannot be written")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_without_permission_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write anywhere
    complaint(lambda: files.make_folder(tmp_path), f"{tmp_path} cannot be written (Permission denied)")


def test_an_output_folder_that_is_a_file_is_one_sentence(bmask, tmp_path):
    (tmp_path / "file").touch()
    status, _, err = finished(
        bmask("run", "--variant", "bmask_rcnn", "--profile", "smoke", "--device", "cpu", output=tmp_path / "file")
    )
    assert status == 2 and "cannot be written (Not a directory)" in err and "Traceback" not in err


@pytest.mark.parametrize("content", [b"", b"cut", "cut", "foreign"], ids=str)
def test_a_run_does_not_go_on_from_a_checkpoint_that_is_none(output, content):
    RUN.folder.mkdir(parents=True)
    checkpoint = RUN.folder / "checkpoint.pth"
    if content == "foreign":
        torch.save({"model": {"a": torch.zeros(2)}, "iteration": 6, "losses": [], "seconds": []}, checkpoint)
    elif content == "cut":
        torch.save({"model": {"a": torch.zeros(9999)}}, checkpoint)
        os.truncate(checkpoint, 9999)
    else:
        checkpoint.write_bytes(content)
    before = checkpoint.read_bytes()
    complaint(lambda: work.work(RUN, runs.Options(device="cpu")), str(checkpoint), "remove it to train the run anew")
    assert checkpoint.read_bytes() == before and not RUN.own_record.exists()


def test_lists_of_numbers_take_one_line_of_a_record(reference):
    text = runs.as_json(reference).decode()
    assert json.loads(text) == reference
    assert len(text.splitlines()) < 300  # 1,000 resamples of six metrics among them


def test_a_record_of_before_is_read_as_one_of_now(output, reference):
    """Resamples stood in it, and losses look by look."""
    terms = reference["losses"]
    looks = [dict(zip(terms, values)) for values in zip(*terms.values())]
    files.write_bytes(RUN.own_record, runs.as_json({**reference, "losses": looks}))
    runs.publish(RUN)
    assert RUN.record() == reference


def test_a_run_with_the_weights_of_another_waits_for_it(output, bmask):
    """While someone works on bmask_rcnn its refined masks cannot be measured."""
    refined = runs.Run("bmask_rcnn_refined", "smoke", 0)
    RUN.folder.mkdir(parents=True)
    with FileLock(RUN.folder / "lock"):
        waiting = bmask("work", "bmask_rcnn_refined", "--profile", "smoke", "--device", "cpu")
        assert waiting.stdout.readline().startswith(f"{RUN.name} is in the hands of")
        assert not refined.own_record.exists()
    status, _, err = finished(waiting)
    assert status == 0, err
    assert (RUN.folder / "checkpoint.pth").exists() and not (refined.folder / "checkpoint.pth").exists()
    assert refined.record()["losses"] and not RUN.own_record.exists()


def test_nothing_is_trained_twice(reference, output, monkeypatch):
    runs.keep(RUN, reference)
    monkeypatch.setattr(launch, "carry_out", None)  # would start the work
    assert launch.ensure([RUN], runs.Options(device="cpu"))
    assert RUN.record() == reference  # published again
    assert "bootstrap" not in RUN.published.read_text() and RUN.published.stat().st_size < 10_000


def kept(seed, resamples=(0.0, 33.37, None, 100.0)):
    """A run, and its record, which has been kept."""
    run, drawn = runs.Run("bmask_rcnn", "smoke", seed), {"AP": [*resamples], "AP75": [seed / 100] * 4}
    record = {"seed": seed, "metrics": {"segm": {"AP": 1.5, "bootstrap": drawn}, "boundary": {"AP": None}}}
    runs.keep(run, record)
    return run, record


def test_what_two_processes_publish_at_once_is_all_there_and_what_is_of_no_record_is_not(output):
    made = dict(kept(seed) for seed in range(10))
    code = (
        "import sys; from bmask.study import runs; print(flush=True); input()\n"
        "for seed in range(int(sys.argv[1]), 10, 2): runs.publish(runs.Run('bmask_rcnn', 'smoke', seed))"
    )
    command, pipes = [sys.executable, "-c", code], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = {**os.environ, "BMASK_OUTPUT": str(output)}
    both = [subprocess.Popen([*command, part], env=environment, cwd=runs.REPOSITORY, **pipes) for part in "01"]
    for process in both:
        process.stdout.readline()
    for process in both:
        process.stdin.write(b"\n")
        process.stdin.flush()
    assert [process.wait(timeout=PATIENCE) for process in both] == [0, 0]
    assert {run: run.record() for run in made} == made
    (path,) = runs.results("smoke").glob("*.npz")
    before, (first, second, *_) = path.stat().st_mtime_ns, made
    runs.publish(first)
    assert path.stat().st_mtime_ns == before
    second.published.unlink()
    runs.publish(kept(0, (5.0,))[0])
    assert first.record()["metrics"]["segm"]["bootstrap"]["AP"] == [5.0]
    with np.load(path) as stored:
        assert set(stored.files) == {run.name for run in made} - {second.name}


def test_a_difference_of_a_hundredth_below_zero_is_kept_as_a_number(output):
    run, _ = kept(0, (-0.01, -0.02, None, 1.0))
    runs.publish(run)
    drawn = run.record()["metrics"]["segm"]["bootstrap"]["AP"]
    assert drawn == [0.0, -0.02, None, 1.0]  # the place of -0.01 is taken by what is not there


def test_the_peak_memory_of_a_process_is_its_own_and_not_that_of_who_started_it():
    ballast = np.ones(2**26)  # 512 MiB
    code = "from bmask.study import runs; print(runs.peak_memory_mib())"
    child = subprocess.run([sys.executable, "-c", code], cwd=runs.REPOSITORY, capture_output=True, text=True)
    assert 100 < float(child.stdout) < runs.peak_memory_mib() - ballast.nbytes / 2**21


def test_of_a_long_queue_the_first_are_shown(output, capsys):
    queued = SimpleNamespace(phase=lambda progress: "pending", poll=lambda: 0)
    launcher = SimpleNamespace(start=lambda run: queued, stop=lambda workers: None, pause=0)
    wanted = [runs.Run("bmask_rcnn", "smoke", seed) for seed in range(10)]
    assert launch.carry_out(wanted, launcher, jobs=10)
    last = capsys.readouterr().err.split("\r")[-1]
    assert last.count("pending") == 8 and "2 more" in last


def test_records_made_elsewhere_count_on_request_alone(reference, output, monkeypatch):
    files.write_bytes(RUN.published, json.dumps(reference).encode())
    assert runs._made(RUN, reuse=True) and not runs._made(RUN, reuse=False)


def test_two_processes_that_want_the_same_run_do_it_once(output, bmask):
    work = ("work", "bmask_rcnn", "--profile", "smoke", "--device", "cpu")
    RUN.folder.mkdir(parents=True)
    (RUN.folder / "progress.json").write_text(json.dumps({"pid": 4242, "host": "elsewhere"}))
    with FileLock(RUN.folder / "lock"):
        waiting = bmask(*work)
        line = waiting.stdout.readline()
        assert line == f"{RUN.name} is in the hands of process 4242 on elsewhere: waiting\n"
        assert not (RUN.folder / "checkpoint.pth").exists()
        (RUN.folder / "record.json").write_text('{"made": "by the other"}')
    status, _, err = finished(waiting)
    assert status == 0, err
    assert RUN.record() == {"made": "by the other"}


def test_a_loss_that_is_not_finite_stops_the_run_with_iteration_and_terms(output, monkeypatch):
    calls = []

    def exploding(*arguments, **options):
        calls.append(1)
        return losses.bce_loss(*arguments[:2]) * (float("nan") if len(calls) == 4 else 1)

    monkeypatch.setattr(losses, "boundary_loss", exploding)
    assert work.work(RUN, runs.Options(device="cpu")) == work.FAILED
    assert RUN.record()["failed"] == "iteration 4: loss_boundary not finite"
    assert not (RUN.folder / "record.json").exists()
    saved = torch.load(RUN.folder / "checkpoint.pth", weights_only=True)
    assert saved["iteration"] == 2 and all(v.isfinite().all() for v in saved["model"].values())


def test_two_processes_train_one_run_over_gloo(output, bmask):
    status, _, err = finished(
        bmask("run", "--variant", "bmask_rcnn", "--profile", "smoke", "--device", "cpu", "--num-gpus", "2")
    )
    assert status == 0, err
    record = RUN.record()
    assert record["num_gpus"] == 2 and record["metrics"]["segm"]["AP"] >= 0
    assert len(record["losses"]["iteration"]) == 6
    state = torch.load(RUN.folder / "checkpoint.pth", weights_only=True)
    assert state["iteration"] == 6
    boards = list((RUN.folder / "tensorboard").iterdir())
    assert len(boards) == 1 and boards[0].stat().st_size > 500
    # Gradient accumulation: one process takes the same batches in two parts.
    again = RUN.folder.with_name("again")
    again.mkdir()
    cfg, data = runs.on_device(RUN.cfg, "cpu"), datasets.prepare(RUN.cfg, None, output)
    torch.set_num_threads(1)
    parts = train.train(cfg, data.train.load(), again, lambda *_: None, validated, accumulate=2)
    assert parts["losses"].keys() == record["losses"].keys()
    for term, values in parts["losses"].items():
        assert values == pytest.approx(record["losses"][term], abs=1e-5)


def validated(model, iteration):
    return {"segm": {"AP": 0.0}, "bbox": {"AP": 0.0}}


def test_ranks_share_the_stream_of_one_process(output):
    """Two ranks of half the batch see, together, the images that one process sees."""
    cfg = RUN.cfg.clone()
    cfg.defrost()
    cfg.SOLVER.IMS_PER_BATCH = 4
    images = datasets.prepare(cfg, None, output).train.load()

    def stream(part, parts, count=4):
        loader = iter(train.train_loader(cfg, images, 0, part, parts))
        return [[x["image_id"] for x in next(loader)] for _ in range(count)]

    one, left, right = stream(0, 1), stream(0, 2), stream(1, 2)
    assert [sorted(a + b) for a, b in zip(left, right)] == [sorted(x) for x in one]


def with_new_key(add_config):
    def add(cfg):
        add_config(cfg)
        cfg.MODEL.NEW_KEY = "at its default, from a later version"

    return add


def test_the_identity_is_of_what_is_computed_not_of_where(monkeypatch):
    cfg = RUN.cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.OUTPUT_DIR, cfg.DATALOADER.NUM_WORKERS = "cuda", "/elsewhere", 7
    assert config.identity(cfg) == config.identity(RUN.cfg)
    cfg.MODEL.NEW_KEY = "at its default, from a later version"
    monkeypatch.setattr(config, "add_study_config", with_new_key(config.add_study_config))
    monkeypatch.setattr(config, "_flat_defaults", config._flat_defaults.__wrapped__)  # not those of before
    assert config.identity(cfg) == config.identity(RUN.cfg)
    cfg.SOLVER.BASE_LR *= 2
    assert config.identity(cfg) != config.identity(RUN.cfg)


@pytest.mark.parametrize("profile", config.available("profile"))
def test_every_variant_is_another_run_in_every_profile(profile):
    names = config.available("variant")
    assert len({config.identity(config.resolve(name, profile)) for name in names}) == len(names)


def test_the_rows_of_table_3_add_one_component_each():
    rows = [config.resolve(v, "paper").MODEL for v in tables.named("3").variants]
    assert rows[0].ROI_MASK_HEAD.NAME == "MaskRCNNConvUpsampleHead"
    switches = [
        (
            row.BOUNDARY_MASK_HEAD.SUPERVISION,
            row.BOUNDARY_MASK_HEAD.M2B_FUSION and row.BOUNDARY_MASK_HEAD.B2M_FUSION,
            row.BOUNDARY_MASK_HEAD.LOSS,
            (len(row.BOUNDARY_MASK_HEAD.IN_FEATURES), row.BOUNDARY_MASK_HEAD.POOLER_RESOLUTION),
        )
        for row in rows[1:]
    ]
    assert switches == [
        ("boundary", False, "bce", (4, 14)),
        ("boundary", True, "bce", (4, 14)),
        ("boundary", True, "dice_bce", (4, 14)),
        ("boundary", True, "dice_bce", (1, 28)),
    ]


@pytest.mark.parametrize(
    "options,message",
    [
        ({"device": "cuda"}, "no GPU on this machine"),
        ({"device": "tpu"}, "choose auto, cpu or cuda"),
        ({"num_gpus": 2}, "NUM_GPUS is 2, but this machine has 0"),
        ({"num_gpus": 0}, "NUM_GPUS and ACCUMULATE have to be 1 or more"),
        ({"num_gpus": 3, "device": "cpu"}, "2 images a batch do not split over NUM_GPUS=3"),
        ({"jobs": -1}, "JOBS"),
    ],
)
def test_devices_that_are_not_there_are_one_sentence(output, monkeypatch, options, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match=message):
        launch.ensure([RUN], runs.Options(**options))
    assert os.listdir(output) == []


def test_rows_of_one_table_must_have_seen_the_same_data(output):
    RUN.folder.mkdir(parents=True)
    (RUN.folder / "data_fingerprint").write_text("0123456789abcdef")
    both = [runs.Run("mask_rcnn", "smoke", 0), RUN]
    work.checked_data(both, runs.Options(device="cpu"), 1)  # of a first try that came to nothing
    (RUN.folder / "checkpoint.pth").touch()
    with pytest.raises(InputError, match="trained on other data .fingerprint 0123456789abcdef"):
        launch.ensure(both, runs.Options(device="cpu"))
