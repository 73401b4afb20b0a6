"""What a reader opens: a page of each profile's results, and the static site of all of them."""

import io
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Dict, List, Sequence

import cv2
import numpy as np
from tqdm.auto import tqdm

from ..errors import InputError
from . import figures, findings, items, runs, tables
from .files import occupied, whole_folder, write_bytes
from .items import Item

SITE = {
    "project": "Boundary-preserving Mask R-CNN: a reproducible study",
    "extensions": ["myst_nb"],
    "html_theme": "furo",
    "html_title": "BMask R-CNN: a reproducible study",
    "html_show_sourcelink": False,
    "html_show_copyright": False,
    "html_static_path": ["_static"],
    "html_css_files": ["report.css"],
    "html_copy_source": False,
    "nb_execution_mode": "off",
    "nb_render_markdown_format": "gfm",
    "nb_ipywidgets_js": {},  # would come from the network
    "suppress_warnings": ["mystnb.unknown_mime_type"],
}


CSS = """\
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 0.8rem; }
.cards p { margin: 0; padding: 0.6rem; border: 1px solid var(--color-background-border); border-radius: 0.4rem; }
.cards img { display: block; height: 7rem; width: 100%; object-fit: contain; background: white; }
@media (max-width: 46em) {
  table.docutils { font-size: 0.6rem; }
  table.docutils col { width: auto !important; }
  table.docutils td, table.docutils th { padding: 0.1rem 0.2rem; }
  table.docutils th, table.docutils td:first-child { overflow-wrap: anywhere; }
  table.docutils td:first-child { min-width: 4rem; }
}
"""


def named(name: str) -> Item:
    """What a reader calls "3", "sobel" or "figure-6". Raises InputError where there is no such table or figure."""
    number = name.removeprefix(figures.Figure.prefix)
    return tables.named(name) if number == name else figures.named(number)


def wanted(names: List[str], profile: str) -> List[Item]:
    """The same for several, or for "all": the tables, and the figures that the profile's data can give."""
    if names != ["all"]:
        return [named(name) for name in names]
    return [item for item in tables.items().values() if item.fits(profile)]


def made(profile: str) -> Dict[Item, List[int]]:
    """The tables and figures that have been written to where results are, in their order, and their seeds."""
    return {named(name): seeds for name, seeds in items.made(profile).items()}


def write_page(profile: str) -> Path:
    """Write the ``README.md`` of a profile's results: every table and figure that has been made, with its notebook."""
    folder = runs.results(profile)
    parts = [f"# Results of profile `{profile}`", tables.setting(profile), findings.numbers(profile)]
    for item in made(profile):
        parts.append(f"## {item.heading_in(profile)}")
        parts += _shown(item, folder, [f"[notebook]({item.notebook})"] if (folder / item.notebook).exists() else [])
    path = folder / "README.md"
    write_bytes(path, ("\n\n".join(filter(None, parts)) + "\n").encode())
    return path


def differences() -> List[str]:
    """What of the shipped results is not what its records give: all of it is made anew elsewhere and compared.

    Texts have to be the same, pictures the same to the eye: where a machine rounds otherwise, a pixel may be another.
    Raises InputError where nothing is shipped.
    """
    shipped, found = runs.shipped(), []
    if not runs.profiles(shipped):
        raise InputError(f"there are no shipped results in {shipped}; `git checkout results` brings them back")
    with tempfile.TemporaryDirectory() as draft:
        anew = Path(draft) / "results"
        shutil.copytree(shipped, anew, ignore=shutil.ignore_patterns("local"))
        for path in _derived(anew):
            path.unlink()
        with runs.as_shipped(anew):
            for profile in tqdm(runs.profiles(anew), desc="made anew", unit="profile"):
                for item, seeds in made(profile).items():
                    item.write(profile, seeds)
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
        apart, same = {}, 0  # in AP, or NaN where one has failed
        for path in sorted((folder / "runs").glob("*.json")):
            twin = runs.shipped(folder.name) / "runs" / path.name
            if twin.exists():
                ours, theirs = (json.loads(p.read_text(), parse_float=_digits).get("metrics") for p in (path, twin))
                ap = [float(found["segm"]["AP"] or 0) if found else np.nan for found in (ours, theirs)]
                apart[path.stem] = abs(ap[0] - ap[1])
                same += bool(ours) and ours == theirs
        if not apart:
            continue
        text = f"{folder.name}: of {len(apart)} runs made here that are shipped as well {same} have the same digits"
        failed = [name for name, value in apart.items() if np.isnan(value)]
        furthest = max(apart, key=lambda name: np.nan_to_num(apart[name]))
        if same + len(failed) < len(apart):
            text += f"; the others differ by up to {apart[furthest]:.1f} AP ({furthest})"
        lines.append(text + "".join(f"; of {name} one has failed" for name in failed))
    return lines


def _digits(text: str) -> float:
    """Those that count: sums of floats may differ in the sixteenth."""
    return round(float(text), 9)


def _derived(results: Path) -> List[Path]:
    """What is made from records: not the records themselves, what was measured, and notebooks."""
    kept = ("made.json", "cost.json", runs.RESAMPLES, runs.TRUE_BOXES)
    return [
        path
        for path in [*results.glob("*/**/*"), *results.glob("*.*")]
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
        InputError: there are no results, Sphinx is not installed, or the folder holds something else.
    """
    try:
        from sphinx.application import Sphinx
        from sphinx.util.docutils import docutils_namespace
    except ImportError:
        raise InputError("the report is built by Sphinx, which is not installed; `make report` installs it") from None
    shipped = runs.profiles(runs.shipped())
    local = [] if runs.PUBLISH else runs.profiles(runs.results())
    ours = (folder / "_static" / "report.css").exists()  # an earlier report, which is replaced
    if occupied(folder) and not ours:
        raise InputError(f"{folder} is there already and is no report; name another folder with --out")
    if not (shipped or local):
        raise InputError(f"there are no tables or figures in {runs.results()}; `make reproduce-table-3` makes some")
    with tempfile.TemporaryDirectory() as draft:
        source, site = Path(draft) / "source", Path(draft) / "site"
        commits = {}
        with runs.as_shipped():
            for profile in shipped:
                _write_profile(source / profile, profile, commits)
            judged = {profile: findings.judge(profile) for profile in shipped}
            said = findings.text(judged)
            drawn = findings.picture(judged, source / "claims.png")
            index = [f"# {SITE['project']}", INTRODUCTION, drawn, _cards(shipped)]
        for profile in local:
            _write_profile(source / "local" / profile, profile, commits)
        _write_commits(source / "commits.md", commits)
        names = [*shipped, *(f"local/{profile}" for profile in local)]
        pages = "\n".join([*(f"{name}/README" for name in names), "commits"])
        # Here a figure's page lies beside those of the tables, and notebooks below them.
        said = re.sub(r"\(([\w-]+)/(\w+\.ipynb)\)", r"(\1/notebooks/\2)", said.replace("/figures/", "/"))
        write_bytes(source / "index.md", "\n\n".join([*index, said, _toctree(pages)]).encode())
        write_bytes(source / "_static" / "report.css", CSS.encode())
        warnings = io.StringIO()
        with docutils_namespace():
            application = Sphinx(
                source, None, site, Path(draft) / "doctrees", "html", SITE, status=None, warning=warnings
            )
            application.build()
        if warnings.getvalue():
            raise RuntimeError(f"Sphinx warns of the report:\n{warnings.getvalue()}")
        with whole_folder(folder) as anew:
            shutil.copytree(site, anew, dirs_exist_ok=True)
            if folder.exists():
                shutil.rmtree(folder)
    return folder / "index.html"


INTRODUCTION = """\
Tables and figures of the paper, made anew, beside the paper's own numbers. Each says from which runs it was made, and
links to their configuration, their record and the commit of the code. Each has a notebook, shown as it was executed.
"""


def _cards(profiles: Sequence[str]) -> str:
    """A card for each table and figure, with its picture, of the first profile that has it; Figure 2 stands before."""
    chosen = {item: profile for profile in reversed(profiles) for item in made(profile)}
    order = [item for item in (*figures.known().values(), *tables.known().values()) if item in chosen]
    cards, hero = [], ""
    for item in order:
        profile = chosen[item]
        path = item.written(runs.results(profile))[0]
        picture = f"![{item.label}]({profile}/{path.with_suffix('.png').relative_to(runs.results(profile))})"
        if item.name == "figure-2":
            hero = f"{picture}\n\n{path.read_text()}"
        cards.append(f"[{picture} {item.heading}]({profile}/{item.stem}.md)")
    return "\n\n".join([hero, '<div class="cards">', *cards, "</div>"])


def _write_profile(folder: Path, profile: str, commits: Dict[str, List[str]]) -> None:
    """The pages of a profile, in MyST Markdown, with what they link to."""
    results, names, notebooks = runs.results(profile), [], []
    for item, seeds in made(profile).items():
        names.append(item.stem)
        parts = [f"# {item.heading_in(profile)}", *_shown(item, results)]
        for path in (other for written in item.written(results) for other in _beside(written)):
            write_bytes(folder / path.relative_to(results), path.read_bytes())
        executed = results / item.notebook
        if executed.exists():
            content = json.loads(executed.read_text())
            for output in (output for cell in content["cells"] for output in cell.get("outputs", [])):
                output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)  # its picture stays
            write_bytes(folder / "notebooks" / executed.name, json.dumps(content).encode())
            notebooks.append(executed.stem)
            parts.append(f"[The notebook, as executed](notebooks/{executed.name})")
        lines = ["| run | configuration | record | commit | device |", "| --- | --- | --- | --- | --- |"]
        for run in item.runs(profile, seeds):
            record = run.record()
            if record is None:
                continue
            for end, content in ((".json", run.record_path.read_bytes()), (".yaml", record["config"].encode())):
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
        write_bytes(folder / f"{item.stem}.md", ("\n\n".join(parts) + "\n").encode())
    pages = "\n".join([*names, *(f"notebooks/{name}" for name in notebooks)])
    where = "" if runs.PUBLISH else ", made here"
    parts = [f"# Profile `{profile}`{where}", tables.setting(profile), findings.numbers(profile), _toctree(pages)]
    write_bytes(folder / "README.md", "\n\n".join(filter(None, parts)).encode())


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


def _shown(item: Item, results: Path, links: Sequence[str] = ()) -> List[str]:
    """A table or figure on a page in the folder of results, with links to what it is made of."""
    parts = []
    for path in item.written(results):
        places = {other.suffix[1:]: other.relative_to(results) for other in _beside(path)}
        parts += item.on_page(path, f"![{path.stem}]({places['png']})")
        parts.append(" · ".join([*(f"[{end}]({place})" for end, place in places.items()), *links]))
    return parts


def _beside(path: Path) -> List[Path]:
    """The data and pictures that lie beside a ``.md``."""
    beside = (path.with_suffix(end) for end in (".csv", ".png", ".svg"))
    return [other for other in beside if other.exists()]
