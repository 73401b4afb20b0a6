"""What a reader opens: a page of each profile's results, and the static site of all of them."""

import io
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Dict, List

import cv2
import numpy as np
from tqdm.auto import tqdm

from ..errors import InputError
from . import figures, findings, runs, tables
from .files import write_bytes

SITE = {
    "project": "Boundary-preserving Mask R-CNN: a reproducible study",
    "extensions": ["myst_nb"],
    "html_theme": "furo",
    "html_title": "BMask R-CNN: a reproducible study",
    "html_show_sourcelink": False,
    "html_copy_source": False,
    "nb_execution_mode": "off",
    "nb_render_markdown_format": "gfm",
    "nb_ipywidgets_js": {},  # would come from the network
    "suppress_warnings": ["mystnb.unknown_mime_type"],
}


def write_page(profile: str) -> Path:
    """Write the ``README.md`` of a profile's results: every table and figure that has been made, with its notebook."""
    folder = runs.results(profile)
    parts = [f"# Results of profile `{profile}`"]
    for item in tables.made(profile):
        parts.append(f"## {_title(item)}")
        for path in written(item, folder):
            links = [f"[{end}]({p.relative_to(folder)})" for end, p in _others(path)]
            executed = notebook(item)
            links += [f"[notebook]({executed})"] if (folder / executed).exists() else []
            picture = path.with_suffix(".png").relative_to(folder)
            parts += [*_shown(path, f"![{path.stem}]({picture})"), " · ".join(links)]
    path = folder / "README.md"
    write_bytes(path, ("\n\n".join(parts) + "\n").encode())
    return path


def differences() -> List[str]:
    """What of the shipped results is not what its records give: all of it is made anew elsewhere and compared.

    Texts have to be the same, pictures the same to the eye: where a machine rounds otherwise, a pixel may be another.
    """
    shipped, found = runs.shipped(), []
    with tempfile.TemporaryDirectory() as draft:
        anew = Path(draft) / "results"
        shutil.copytree(shipped, anew, ignore=shutil.ignore_patterns("local"))
        for path in _derived(anew):
            path.unlink()
        with runs.as_shipped(anew):
            for profile in tqdm(runs.profiles(anew), desc="made anew", unit="profile"):
                for item, seeds in tables.made(profile).items():
                    number = item.removeprefix(figures.PREFIX)
                    (figures if _is_figure(item) else tables).write(number, profile, seeds)
                write_page(profile)
            findings.write()
        names = {p.relative_to(folder) for folder in (shipped, anew) for p in _derived(folder)}
        for name in sorted(names):
            if not (shipped / name).exists():
                found.append(f"{name} is missing")
            elif not (anew / name).exists():
                found.append(f"{name} is not made from any record")
            elif not _same(shipped / name, anew / name):
                found.append(f"{name} is not what the records give")
    return found


def against_shipped() -> List[str]:
    """For each profile, in a line, how far runs that were made here are from the shipped records of the same runs."""
    lines = []
    for folder in sorted(path.parent for path in runs.local().glob("*/runs")):
        apart = {}  # in AP, or NaN where one has failed
        for path in sorted((folder / "runs").glob("*.json")):
            twin = runs.shipped(folder.name) / "runs" / path.name
            if twin.exists():
                ours, theirs = (json.loads(p.read_text()).get("metrics") for p in (path, twin))
                ap = [float(found["segm"]["AP"] or 0) if found else np.nan for found in (ours, theirs)]
                apart[path.stem] = 0 if ours == theirs else abs(ap[0] - ap[1])
        if not apart:
            continue
        same = sum(ours == 0 for ours in apart.values())
        text = f"{folder.name}: of {len(apart)} runs made here that are shipped as well {same} have the same digits"
        failed = [name for name, value in apart.items() if np.isnan(value)]
        furthest = max(apart, key=lambda name: np.nan_to_num(apart[name]))
        if same + len(failed) < len(apart):
            text += f"; the others differ by up to {apart[furthest]:.1f} AP ({furthest})"
        lines.append(text + "".join(f"; of {name} one has failed" for name in failed))
    return lines


def _derived(results: Path) -> List[Path]:
    """What is made from records: not the records themselves, what was measured, and notebooks."""
    kept = ("made.json", "cost.json", runs.RESAMPLES)
    return [
        path
        for path in [*results.glob("*/**/*"), *results.glob("README.md")]
        if path.is_file()
        and path.relative_to(results).parts[0] != "local"
        and path.name not in kept
        and path.suffix != ".ipynb"
        and path.parent.name not in ("runs", "predictions")
    ]


def _same(one: Path, other: Path) -> bool:
    if one.suffix == ".svg":
        return True  # the figure of the .png beside it
    if one.suffix != ".png":
        return one.read_bytes() == other.read_bytes()
    a, b = (cv2.imread(str(path)).astype(float) for path in (one, other))
    return a.shape == b.shape and np.abs(a - b).mean() < 1


def build(folder: Path) -> Path:
    """Build the site of the shipped results and of what was made here: it opens without server or network.

    Every table and figure links to its notebook, and to configuration, record and commit of its runs.

    Returns:
        The path of its first page.

    Raises:
        InputError: there are no results, or Sphinx is not installed.
    """
    try:
        from sphinx.application import Sphinx
        from sphinx.util.docutils import docutils_namespace
    except ImportError:
        raise InputError("the report is built by Sphinx, which is not installed; `make report` installs it") from None
    shipped = runs.profiles(runs.shipped())
    local = [] if runs.PUBLISH else runs.profiles(runs.results())
    if not (shipped or local):
        raise InputError(f"there are no tables or figures in {runs.results()}; `make reproduce-table-3` makes some")
    with tempfile.TemporaryDirectory() as draft:
        source, site = Path(draft) / "source", Path(draft) / "site"
        commits = {}
        with runs.as_shipped():
            for profile in shipped:
                _write_profile(source / profile, profile, commits)
            said = findings.text(shipped)
        for profile in local:
            _write_profile(source / "local" / profile, profile, commits)
        _write_commits(source / "commits.md", commits)
        names = [*shipped, *(f"local/{profile}" for profile in local)]
        pages = "\n".join([*(f"{name}/README" for name in names), "commits"])
        write_bytes(
            source / "index.md",
            f"# {SITE['project']}\n\n{INTRODUCTION}\n{said}\n\n{_toctree(pages)}".encode(),
        )
        warnings = io.StringIO()
        with docutils_namespace():
            application = Sphinx(
                source, None, site, Path(draft) / "doctrees", "html", SITE, status=None, warning=warnings
            )
            application.build()
        if warnings.getvalue():
            raise RuntimeError(f"Sphinx warns of the report:\n{warnings.getvalue()}")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.move(site, folder)
    return folder / "index.html"


INTRODUCTION = """\
Tables and figures of the paper, made anew, beside the paper's own numbers. Each says from which runs it was made, and
links to their configuration, their record and the commit of the code. Each has a notebook, shown as it was executed.
"""


def _write_profile(folder: Path, profile: str, commits: Dict[str, List[str]]) -> None:
    """The pages of a profile, in MyST Markdown, with what they link to."""
    results, names, notebooks = runs.results(profile), [], []
    for item, seeds in tables.made(profile).items():
        name = item if item.startswith("figure") else tables.file_name(item)
        names.append(name)
        parts = [f"# {_title(item)}"]
        for path in written(item, results):
            places = {end: other.relative_to(results) for end, other in _others(path)}
            for place in places.values():
                write_bytes(folder / place, (results / place).read_bytes())
            links = [f"[{end}]({place})" for end, place in places.items()]
            parts += [*_shown(path, f"![{path.stem}]({places['png']})"), " · ".join(links)]
        executed = results / notebook(item)
        if executed.exists():
            write_bytes(folder / "notebooks" / executed.name, executed.read_bytes())
            notebooks.append(executed.stem)
            parts.append(f"[The notebook, as executed](notebooks/{executed.name})")
        lines = ["| run | configuration | record | commit | device |", "| --- | --- | --- | --- | --- |"]
        for run in needed(item, profile, seeds):
            record = run.record()
            if record is None:
                continue
            for end, content in (
                (".json", run.record_path.read_bytes()),
                (".yaml", record["config"].encode()),
            ):
                write_bytes(folder / "runs" / f"{run.name}{end}", content)
            commit = str(record["git_commit"])
            commits.setdefault(commit, []).append(f"{profile}: {run.name}")
            changed = ", with changes" if record["git_dirty"] else ""
            lines.append(
                f"| {run.variant} seed {run.seed} | [configuration](runs/{run.name}.yaml) "
                f"| [record](runs/{run.name}.json) | [{commit[:7]}](#commit-{commit[:7]}){changed} "
                f"| {record['device_name']} |"
            )
        parts += ["## Made from", "\n".join(lines)]
        write_bytes(folder / f"{name}.md", ("\n\n".join(parts) + "\n").encode())
    pages = "\n".join([*names, *(f"notebooks/{name}" for name in notebooks)])
    made = "" if runs.PUBLISH else ", made here"
    text = f"# Profile `{profile}`{made}\n\n{tables.setting(profile)}\n\n{_toctree(pages)}"
    write_bytes(folder / "README.md", text.encode())


def _write_commits(path: Path, commits: Dict[str, List[str]]) -> None:
    parts = ["# Commits", "The states of the code that the runs were made with; `git show COMMIT` shows one."]
    for commit, names in sorted(commits.items()):
        command = ["git", "-C", str(runs.REPOSITORY), "log", "-1", "--format=%cs: %s", commit]
        try:
            said = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        except OSError:
            said = ""
        parts += [f"(commit-{commit[:7]})=\n## {commit[:7]}", f"`{commit}` {said}".strip()]
        parts.append("\n".join(f"- {name}" for name in dict.fromkeys(names)))
    write_bytes(path, ("\n\n".join(parts) + "\n").encode())


def _toctree(pages: str) -> str:
    return f"```{{toctree}}\n:maxdepth: 2\n\n{pages}\n```\n"


def _is_figure(item: str) -> bool:
    return item.startswith(figures.PREFIX)


def _title(item: str) -> str:
    return figures.title(item.removeprefix(figures.PREFIX)) if _is_figure(item) else tables.title(item)


def notebook(item: str) -> str:
    """The file name of the notebook of a table or figure."""
    if _is_figure(item):
        return figures.spec(item.removeprefix(figures.PREFIX))["notebook"]
    return tables.notebook(item)


def needed(item: str, profile: str, seeds: List[int]) -> List[runs.Run]:
    """The runs of a table or figure."""
    if _is_figure(item):
        return figures.figure_runs(item.removeprefix(figures.PREFIX), profile, seeds)
    return tables.table_runs(item, profile, seeds)


def written(item: str, folder: Path) -> List[Path]:
    """The ``.md`` files of a table or figure in a folder of results."""
    if _is_figure(item):
        return figures.captions(item.removeprefix(figures.PREFIX), folder)
    return [folder / f"{tables.file_name(item)}.md"]


def _others(path: Path):
    """What lies beside a ``.md``: its data and pictures."""
    beside = ((end, path.with_suffix(f".{end}")) for end in ("csv", "png", "svg"))
    return [(end, other) for end, other in beside if other.exists()]


def _shown(path: Path, picture: str) -> List[str]:
    """A table without its title, above its picture; a figure above its caption."""
    text = path.read_text().strip()
    return [picture, text] if text.startswith("**") else [text.split("\n", 1)[1].strip(), picture]
