"""Documentation that can rot is tested: every relative link leads to a file, every mentioned make target and setting exists."""

import re
from pathlib import Path

import pytest

from torpor.api.errors import _DENIED, _GUEST_OS, TABLE

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    dead = [link for link in links if not (page.parent / link).exists()]
    assert dead == []


def test_make_targets_named_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z]+)", (ROOT / "README.md").read_text())):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_decisions_are_numbered_once() -> None:
    numbers = [page.name.split("-")[0] for page in (ROOT / "docs" / "decisions").glob("*.md")]
    assert len(numbers) == len(set(numbers))


def test_no_page_or_source_names_a_machine_or_an_index() -> None:
    forbidden = re.compile("pypi" + r"\.org|python" + r"hosted|deb\.deb" + r"ian\.org|registry\.npm" + r"js|/wo" + r"rk/")
    files = [path for pattern in ("src/**/*.py", "docs/**/*.md", "scripts/*", "tests/**/*.py") for path in ROOT.glob(pattern)]
    assert [str(path.relative_to(ROOT)) for path in files if path.is_file() and forbidden.search(path.read_text())] == []


def test_the_api_page_names_every_code_with_its_status() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    paragraph = page[page.index("Codes and their statuses") : page.index("## Who is calling")]
    statuses: dict[str, set[str]] = {}
    waiting: list[str] = []
    for code, status in re.findall(r"`(\w+)`|\b([45]\d\d)\b", paragraph):
        if code:
            waiting.append(code)
        else:
            for each in waiting:
                statuses.setdefault(each, set()).add(status)
            waiting = []
    rows = [*TABLE.values(), *_GUEST_OS.values(), *_DENIED.values()]
    missing = {(row.code, row.status) for row in rows if str(row.status) not in statuses.get(row.code, set())}
    assert missing == set()
