"""The project's own checks, which no general tool knows. Run by `make check`; prints complaints, exits 1 if any.

Each check is a function that returns a list of complaints, one line each.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from checks import generate_docs
from kobza.codecs.container import errors as packed_errors
from kobza.core import cards, errors, techniques

ROOT = Path(__file__).resolve().parents[1]
PICTURE_LIMIT = 300_000  # bytes: a clone stays small
# paths that exist on one machine only: home folders, mounted work trees, temporary folders
MACHINE_PATH = re.compile(r"(?<![\w.$}])/(?:home|root|Users|work|farm|mnt|opt|tmp)/[\w.-]+")
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s#]+)")


def tracked() -> list[Path]:
    """Return every file git knows or would add."""
    shown = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    return [ROOT / name for name in shown.stdout.decode().splitlines() if (ROOT / name).is_file()]


def no_cuda_packages() -> list[str]:
    """The environment was made torch first and through constraints.txt, so it holds no CUDA package."""
    names = sorted(d.metadata["Name"].lower() for d in importlib.metadata.distributions())
    return [
        f"the environment holds {name}: install the CPU build of torch first (README, Install)"
        for name in names
        if name.startswith(("nvidia", "cuda", "triton"))
    ]


def no_machine_paths() -> list[str]:
    """No tracked file names a path of one machine."""
    found = []
    for path in tracked():
        if path.suffix == ".png":
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if hit := MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number} names a path of one machine: {hit.group()}")
    return found


def small_pictures() -> list[str]:
    """Pictures in the repository stay below the limit."""
    return [
        f"{path.relative_to(ROOT)} has {path.stat().st_size} bytes; at most {PICTURE_LIMIT}"
        for path in tracked()
        if path.suffix in {".png", ".svg", ".jpg"} and path.stat().st_size > PICTURE_LIMIT
    ]


def every_error_has_a_page() -> list[str]:
    """docs/errors holds one page per error, with its three headings, and no other page."""
    known = vars(errors) | vars(packed_errors)
    classes = {name for name, value in known.items() if isinstance(value, type) and issubclass(value, Exception)}
    pages = {path.stem: path for path in (ROOT / "docs" / "errors").glob("*.md") if path.stem != "README"}
    found = [f"docs/errors/{name}.md is missing" for name in sorted(classes - set(pages))]
    found += [f"docs/errors/{name}.md describes no error" for name in sorted(set(pages) - classes)]
    for name in sorted(classes & set(pages)):
        text = pages[name].read_text()
        found += [
            f"docs/errors/{name}.md lacks '## {part}'" for part in ("Symptom", "Cause", "Cure") if part not in text
        ]
    return found


def every_technique_has_card_and_test() -> list[str]:
    """File, card and test carry one name; a card's recipe names techniques and options that exist."""
    found = []
    held = {(room, name) for room in techniques.ROOMS for name in techniques.names(room)}
    carded = {(card.room, card.name): card for card in cards.cards()}
    for room, name in sorted(held):
        if (room, name) not in carded:
            found.append(f"kobza/vault/cards/{room}/{name}.md is missing")
        if not (ROOT / "tests" / room / f"test_{name}.py").exists():
            found.append(f"tests/{room}/test_{name}.py is missing")
    found += [f"kobza/vault/cards/{r}/{n}.md describes no technique" for r, n in sorted(set(carded) - held)]
    return found


def links_lead_somewhere() -> list[str]:
    """Every relative link of every page of documentation names a file that exists."""
    found = []
    for path in tracked():
        if path.suffix == ".md" and "reference" not in path.parts:
            for target in LINK.findall(path.read_text()):
                if not (path.parent / target).exists():
                    found.append(f"{path.relative_to(ROOT)} links to {target}, which is not there")
    return found


CHECKS: tuple[Callable[[], list[str]], ...] = (
    no_cuda_packages,
    no_machine_paths,
    small_pictures,
    every_error_has_a_page,
    every_technique_has_card_and_test,
    links_lead_somewhere,
    generate_docs.stale,
)


def main() -> int:
    """Run every check and print what each found."""
    failed = 0
    for check in CHECKS:
        complaints = check()
        print(f"{'FAIL' if complaints else 'ok':5}{check.__name__}")
        for complaint in complaints:
            print(f"     {complaint}")
        failed += len(complaints)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
