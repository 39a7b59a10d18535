"""Every link from one page to another leads somewhere, and tables of results hold what the commands wrote."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    "own full net": "dense",
    "falling": "early exit, falling",
    "the original": "original dense",
    "the original, tuned as long": "tuned dense",
}


def lines(markdown: str) -> Iterator[dict[str, str]]:
    """Of all tables: the cells of a line by heading, without signs."""
    headings: list[str] = []
    for line in markdown.splitlines():
        cells = [cell.strip(" =>") for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not headings or not cells:
            headings = cells
        elif not cells[0].startswith("---"):
            yield dict(zip(headings, cells, strict=True))


def rows(markdown: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Of all result tables: the name of a row, without the network that it is subtracted from, and cells by heading."""
    for line in lines(markdown):
        (first, row), *cells = line.items()
        if first in TABLES:
            name, seed = re.fullmatch(r"(?:.* - )?(.*?)(, seed \d+)?", row).groups(default="")
            yield ALIASES.get(name, name) + seed, dict(cells)


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


@pytest.mark.parametrize("page", ["results.md", "algorithms.md", "results-17-tokens.md", "frozen.md"])
def test_tables_hold_what_was_measured(page: str, measured: dict[str, list[dict[str, str]]]) -> None:
    written = list(rows((ROOT / "docs" / page).read_text()))
    assert len(written) > 40
    for name, cells in written:
        assert any(cells.items() <= known.items() for known in measured[name]), f"{name}: {cells}"


def audit(*names: str) -> dict[str, Any]:
    """What `vitskip evaluate` wrote of a run, whose file has these names; seed 0 is not among them."""
    name = "-".join(["audit", *(name for name in names if name not in {"frozen", "seed0"})])
    return json.loads((ROOT / f"docs/results/{name}.json").read_text())


def networks(audited: dict[str, Any]) -> dict[str, dict[str, Any]]:
    own = {"`dynavit`": audited["net"], "dense": audited["dense"]}
    return own | audited["references"] | audited["rivals"]


def test_audit_of_the_embedded_task_is_what_was_measured() -> None:
    written = [line for line in lines((ROOT / "docs/audit.md").read_text()) if "algorithm" in line]
    assert len(written) == 8
    for line in written:
        audited = audit(line["algorithm"].strip("`"), line["backbone"], f"seed{line['seed']}")
        net, others = audited["net"], networks(audited)
        assert line["MACs [%]"] == f"{100 * net['macs_fraction']:.1f}"
        assert line["accuracy"] == f"{100 * net['accuracy']:.1f}"
        assert line["correlation"] == f"{net['difficulty_correlation']:.2f}"
        for head, cell in list(line.items())[5:-1]:
            assert cell == f"{100 * others[ALIASES.get(head, head)]['accuracy']:.1f}", head


def audit_cells(audited: dict[str, Any], heading: str) -> dict[str, str]:
    """By network, as a table with this first heading shows them."""
    if heading == "network":
        return {
            name: f"{100 * numbers['accuracy']:.2f} ({100 * numbers['macs_fraction']:.0f}%)"
            for name, numbers in networks(audited).items()
        }
    return {
        name: f"{100 * test['difference']:+.2f} [{100 * test['low']:+.2f}, {100 * test['high']:+.2f}]"
        for name, test in audited["net_minus"].items()
    }


def test_audit_of_cifar_is_what_was_measured() -> None:
    written = [line for line in lines((ROOT / "docs/audit.md").read_text()) if "CIFAR-100, seed 1" in line]
    assert len(written) == 17
    for line in written:
        (first, row), *cells = line.items()
        for column, cell in cells:
            audited = audit(*column.lower().replace("cifar-", "cifar").replace("seed ", "seed").split(", "))
            assert cell == audit_cells(audited, first).get(ALIASES.get(row, row), "-"), f"{column}, {row}"


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
    heading, measured = (
        written[0],
        set.union(*(speed_ups(ROOT / "docs/results" / machine) for machine in ("", "xeon", "avx2"))),
    )
    assert set(written) <= measured | {heading}


def test_speed_ups_on_a_gpu_are_what_was_measured() -> None:
    written = written_speed_ups("gpu.md", "| `")
    assert len(written) == 6
    assert set(written) == speed_ups(ROOT / "docs/results/gpu/small") | speed_ups(ROOT / "docs/results/gpu/large")
