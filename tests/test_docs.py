"""Every link from one page to another leads somewhere, and tables of results hold what the commands wrote."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from vitskip.eval.comparison_report import accuracy_grid, difference_grid
from vitskip.eval.throughput_report import read_speed_ups, speed_up_grid

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = page if not path else page.parent / path
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


TABLES = {"network", "networks", "minus"}  # first headings of those that `vitskip report` makes
ALIASES = {
    "its own full net": "dense",
    "its own dense net": "dense",
    "the original": "original dense",
    "the original, tuned as long": "tuned dense",
}


def rows(markdown: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Of all result tables: the name of a row, without the network that it is subtracted from, and cells by heading."""
    headings: list[str] = []
    for line in markdown.splitlines():
        cells = [cell.strip(" =>") for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not headings or not cells:
            headings = cells
        elif headings[0] in TABLES and not cells[0].startswith("---"):
            name, seed = re.fullmatch(r"(?:.* - )?(.*?)(, seed \d+)?", cells[0]).groups(default="")
            yield ALIASES.get(name, name) + seed, dict(zip(headings[1:], cells[1:], strict=True))


@pytest.fixture(scope="module")
def measured() -> dict[str, list[dict[str, str]]]:
    """What `vitskip report` says of the files in docs/results: cells by heading, for each name of a row."""
    found = defaultdict(list)
    for file in ROOT.glob("docs/results/*.json"):
        values = json.loads(file.read_text())
        if isinstance(values, list):
            for grid in (accuracy_grid(values), difference_grid(values)):
                for name, cells in rows(grid.markdown()):
                    found[name].append(cells)
    return found


@pytest.mark.parametrize("page", ["results.md", "results-17-tokens.md", "frozen.md"])
def test_tables_hold_what_was_measured(page: str, measured: dict[str, list[dict[str, str]]]) -> None:
    written = list(rows((ROOT / "docs" / page).read_text()))
    assert len(written) > 40
    for name, cells in written:
        assert any(cells.items() <= known.items() for known in measured[name]), f"{name}: {cells}"


def speed_ups(folder: Path) -> set[tuple[str, ...]]:
    """The rows of `vitskip report` of the benchmarks in a folder, without names."""
    values, _ = read_speed_ups(sorted(folder.glob("*benchmark.json")))
    return {tuple(row[1:]) for row in speed_up_grid(values).rows}


def written_speed_ups(page: str, first: str) -> list[tuple[str, ...]]:
    """The lines of a page's tables that begin so, without names."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    return [tuple(line.strip("|").replace(" ", "").split("|")[1:]) for line in lines if line.startswith(first)]


def test_speed_ups_are_what_was_measured() -> None:
    written = written_speed_ups("throughput.md", "| ")
    assert len(written) > 10
    assert set(written[1:]) <= speed_ups(ROOT / "docs" / "results")  # below the headings


def test_speed_ups_on_a_gpu_are_what_was_measured() -> None:
    written = written_speed_ups("gpu.md", "| `")
    assert len(written) == 6
    assert set(written) == speed_ups(ROOT / "docs/results/gpu/small") | speed_ups(ROOT / "docs/results/gpu/large")
