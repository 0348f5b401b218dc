"""Writes what is generated in the documentation: the table of systems in the README, a page for each system that is
built, the list of all systems, and the reference pages with the navigation to them.

    python docs/generate.py            write what has changed
    python docs/generate.py --check    change nothing; exit with 1 where something is stale
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from lengthwise.systems import SYSTEMS, find_system
from lengthwise.systems.catalogue import CATALOGUE
from lengthwise.systems.parts import find_part
from lengthwise.systems.results import Result, read_result, show_number, show_verdict
from lengthwise.systems.runner import DRAWN, measured_where, pattern_of, pattern_said, summary, usage
from lengthwise.systems.system import System

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
PACKAGE = ROOT / "src" / "lengthwise"

ROOMS = {
    "": "The contract, errors and measuring",
    "ops": "Numeric kernels: pure functions of tensors",
    "mixers": "Modules that move information along the length",
    "positions": "How order enters",
    "channels": "Modules that act on each token alone",
    "caches": "What softmax attention keeps between steps",
    "reducers": "What makes the sequence shorter inside a model",
    "models": "Expressions, blocks and whole models",
    "planning": "What a model costs, and what to choose for it",
    "conversion": "Models of other libraries, both ways",
    "tasks": "Data with a metric",
    "training": "The training loop, checkpoints and logs",
    "generation": "Sampling, streaming and sessions",
    "laws": "The contract as checks",
    "systems": "The catalogue and its runner",
    "comparison": "Candidates under one budget, and lengths under one",
    "extrapolation": "Models beyond the length that they were trained at",
    "reports": "Tables, plots and the HTML report",
    "benches": "Benchmarks of the ops",
    "commands": "What the verbs of the command line do",
}
"""The rooms that have a page of reference, and what is in each."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def outcome(result: Result | None) -> str:
    """What the last result says, with its date."""
    return "not measured yet" if result is None else f"{result.verdict} ({result.date[:10]})"


def readme_systems() -> str:
    """The systems that are built, and behind a fold those that aren't."""
    built = [
        (f"[`{key}`](docs/systems/{key}.md)", CATALOGUE[key].title, paper(key), outcome(read_result(key, RESULTS)))
        for key in SYSTEMS
    ]
    others = [(f"`{e.key}`", e.title, paper(e.key)) for e in CATALOGUE.values() if e.key not in SYSTEMS]
    return "\n\n".join(
        [
            table(["system", "title", "arXiv", "its claim, measured here"], built),
            f"<details>\n<summary>{len(others)} more are in the catalogue and not built yet</summary>",
            table(["system", "title", "arXiv"], others),
            "</details>",
        ]
    )


def paper(key: str) -> str:
    """A link to the paper."""
    return f"[{CATALOGUE[key].arxiv}]({CATALOGUE[key].link})"


def between(text: str, name: str, content: str) -> str:
    """The text with what lies between the markers of that name replaced."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"the text must have {begin} and {end} once each")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}"


def system_index() -> str:
    """The page that lists all systems."""
    rows = []
    for key, entry in CATALOGUE.items():
        name = f"[`{key}`]({key}.md)" if key in SYSTEMS else f"`{key}`"
        state = outcome(read_result(key, RESULTS)) if key in SYSTEMS else ""
        rows.append((name, entry.title, entry.short, paper(key), state))
    return (
        "# The systems\n\n"
        f"{len(CATALOGUE)} published systems are in the catalogue; those with a page of their own are built. The last "
        "column says whether the claim held when `lengthwise reproduce` was last run.\n\n"
        + table(["system", "title", "what it is", "arXiv", "measured"], rows)
        + "\n"
    )


def system_page(key: str) -> str:
    """The page of a system: from its file, and its last result."""
    entry, system = CATALOGUE[key], find_system(key)
    parts = [(f"`{name}`", summary(find_part(name))) for name in system.parts]
    experiment = inspect.getdoc(system._experiment) or ""
    sections = [
        f"# {key}",
        f"**{entry.title}** ({entry.year}), arXiv {paper(key)}. {entry.short[:1].upper()}{entry.short[1:]}.",
        f"**Claim**: {system.claim}.",
        "## What it is made of",
        table(["part", "what it is"], parts),
        "## How to use it",
        *(f"```{language}\n{text}\n```" for language, text in examples(usage(system))),
        *drawn(system),
        "## What was measured",
        *([experiment] if experiment else []),
        f"```sh\nlengthwise reproduce {key}\n```",
        *measured(read_result(key, RESULTS)),
    ]
    return "\n\n".join(sections) + "\n"


def drawn(system: System) -> list[str]:
    """The picture of a system's pattern, if it has one."""
    if not system.pattern:
        return []
    said = f"`{system.pattern}` shows {pattern_said(system)}. A line for each query, █ where it sees the key:"
    return ["## Who sees whom", said, f"```text\n{pattern_of(system).picture(DRAWN)}\n```"]


def examples(text: str) -> list[tuple[str, str]]:
    """The lines of an example, those for the shell apart from those for Python."""
    lines = text.splitlines()
    shell = [line for line in lines if line.startswith("lengthwise ")]
    python = [line for line in lines if line not in shell]
    if any("lw." in line for line in python):
        python = ["import lengthwise as lw", "", *python]
    return [(kind, "\n".join(part)) for kind, part in (("python", python), ("sh", shell)) if part]


def measured(result: Result | None) -> list[str]:
    """The table of figures, and where it comes from."""
    if result is None:
        return ["Not measured yet."]
    rows = [
        (f.name + (f" ({f.note})" if f.note else ""), f.claimed, show_number(f.measured), f.threshold, show_verdict(f))
        for f in result.figures
    ]
    where = f"Measured {measured_where(result)}, in {result.seconds:.0f} s. The claim **{result.verdict}**."
    return [where, table(["figure", "claimed", "measured", "threshold", ""], rows)]


def modules(room: str) -> list[str]:
    """The modules of a room, as they are imported, without the command line, which `--help` explains."""
    folder = PACKAGE / room
    names = sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith(("_", "cli", "options_")))
    return [".".join(filter(None, ["lengthwise", room, name])) for name in names]


def reference_page(room: str) -> str:
    """The reference of a room, from docstrings."""
    title = f"lengthwise.{room}" if room else "lengthwise"
    directives = "\n\n".join(f"::: {name}" for name in modules(room))
    return f"# {title}\n\n{ROOMS[room]}.\n\n{directives}\n"


def navigation() -> str:
    """The generated part of the navigation in mkdocs.yml."""
    rooms = [room for room in ROOMS if modules(room)]
    lines = ["  - Systems:", "      - All systems: systems/index.md"]
    lines += [f"      - {key}: systems/{key}.md" for key in SYSTEMS]
    lines += ["  - Reference:", *(f"      - {room or 'lengthwise'}: {reference_path(room)}" for room in rooms)]
    return "\n".join(lines)


def reference_path(room: str) -> str:
    """Where the reference of a room lies, below docs."""
    return f"reference/{room or 'lengthwise'}.md"


def generated() -> dict[Path, str]:
    """Every generated file, and what it has to hold."""
    files = {ROOT / "docs" / "systems" / "index.md": system_index()}
    files |= {ROOT / "docs" / "systems" / f"{key}.md": system_page(key) for key in SYSTEMS}
    files |= {ROOT / "docs" / reference_path(room): reference_page(room) for room in ROOMS if modules(room)}
    readme, site = ROOT / "README.md", ROOT / "mkdocs.yml"
    files[readme] = between(readme.read_text(encoding="utf-8"), "systems", readme_systems())
    head = site.read_text(encoding="utf-8").partition("  # generated by docs/generate.py\n")[0]
    files[site] = f"{head}  # generated by docs/generate.py\n{navigation()}\n"
    return files


def left_over(files: Iterable[Path]) -> list[Path]:
    """Pages in the generated folders that nothing generates any more."""
    folders = (ROOT / "docs" / "systems", ROOT / "docs" / "reference")
    return [page for folder in folders for page in sorted(folder.glob("*.md")) if page not in set(files)]


def stale() -> list[Path]:
    """The generated files that don't hold what they should, and those that shouldn't be there."""
    files = generated()
    changed = [p for p, text in files.items() if not p.is_file() or p.read_text(encoding="utf-8") != text]
    return changed + left_over(files)


def main(arguments: Sequence[str]) -> int:
    """Write what has changed, or only say so."""
    if list(arguments) not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    changed = stale()
    files = generated()
    for path in changed:
        print(path.relative_to(ROOT))
        if arguments:
            continue
        if path not in files:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path], encoding="utf-8")
    return 1 if arguments and changed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
