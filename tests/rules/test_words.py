"""The project's words: what is left of the arrow is not in README, docs, docstrings, help, messages, recipes or pages.

A linter of prose with a list of its own, as Vale's `substitution` rule, but for texts inside Python too.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from house import ROOT, package_files, tracked

GENERATED = r"<!-- (\w+)(?:: begin)? -->.*?<!-- (?:\1: )?end -->"  # by tools, whose texts are looked at where they are

# A pattern -> what to say, and the paths where the words are right.
WORDS: dict[str, tuple[str, tuple[str, ...]]] = {
    r"stand(s|ing)? still|still stands?|thaw(s|ed|ing)?": ("frozen, unfrozen", ()),
    r"(live|dead|alive|dying) codes?|codes? (die|dies|died)": ("active or unused codes, codebook collapse", ()),
    r"reviv\w+|re-?seed(s|ed|ing)?|seeded again": ("dead-code reset", ()),
    r"members?": ("assigned features, assignments", ("docs/shards.md", "docs/failures.md", "soho_fast/data/")),
    r"drawn codes?|codes? (is|are|were) drawn": ("data-initialised codes", ()),
    r"pictures?": ("image", ("soho_fast/data/mini/", "soho_fast/common/text.py", "soho_fast/explore/licences.py")),
    r"places? (of|in) (a|the|each) texts?": ("tokens, positions", ()),
    r"cells?": ("patch, grid position", ("soho_fast/common/tables.py",)),
    r"claims? (a|no|the|any|of) words?|claims? none|claimed words?": ("is associated with a word", ()),
    r"caption words \(the loss\)|the aid|MatchingHead": ("bag-of-words loss, auxiliary loss; ITM head", ()),
    r"kept outputs?|kept features?|the feed": ("feature cache", ()),
    r"(held-out|all|other|every|each|these|eight|the|a) measures?(?! of)": ("metric", ()),
    r"(?-i:[aA]rms?)": ("conditions", ()),
    r"contenders?|bars (held|missed)": ("baselines, targets met and missed", ()),
    r"(this|every|each|the|a|no) (room|house|door)s?": ("package, layout, entry point", ()),
    r"hints?|reduced pass|guess(ed|ing)": ("warm start, low-dimensional pruning, predict", ()),
    r"Gop|share of the peak": ("GFLOP, MFU", ()),
    r"lost process(es)?|spread anew": ("failed process, resharded", ()),
    r"(is|are|was|were) (not )?told(?! apart)|told (in|of|by)|tells? of": ("reported, says", ()),
    r"(with|by) another (image|caption)|another image's caption": ("shuffled-image, shuffled-caption baseline", ()),
    r"recomput(e|es|ed|ing|ation)": ("activation checkpointing", ()),
    r"anew": ("again", ()),
    r"nobody": ("say it of the thing", ()),
}

ANY = re.compile(rf"\b(?:{'|'.join(WORDS)})\b", flags=re.IGNORECASE)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and lines of what a person reads in a file; what is in backticks is code."""
    text = path.read_text()
    if path.suffix == ".md":
        for pattern in (GENERATED, r"^```.*?^```"):
            text = re.sub(pattern, lambda found: "\n" * found[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)
        lines = list(enumerate(text.splitlines(), 1))
    elif path.suffix == ".js":
        lines = [
            (number, string)
            for number, line in enumerate(text.splitlines(), 1)
            for string in re.findall(r'"[^"]* [^"]*"|`[^`]* [^`]*`|// .*', line)
        ]
        lines = [(number, string.strip("`")) for number, string in lines]
    elif path.suffix == ".yaml":
        lines = list(enumerate(text.splitlines(), 1))
    else:
        texts = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
        lines = [
            (node.lineno + number, line)
            for node in texts
            if isinstance(node.value, str) and " " in node.value
            for number, line in enumerate(node.value.splitlines())
        ]
    for number, line in lines:
        yield number, re.sub(r"`[^`]+`|\]\([^)]*\)", "`", line)


def findings(path: Path, name: str) -> list[str]:
    """What a file says in other words than the project's."""
    return [
        f"{name}:{number}: {found[0]!r}: {instead}"
        for number, line in prose(path)
        if ANY.search(line)
        for pattern, (instead, right) in WORDS.items()
        if not name.startswith(right or ("\0",))
        for found in re.finditer(rf"\b(?:{pattern})\b", line, flags=re.IGNORECASE)
    ]


def test_the_words_are_the_projects():
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *package_files()]
    paths += [path for path in tracked(".yaml", ".js") if path.is_relative_to(ROOT / "soho_fast")]
    found = [line for path in paths for line in findings(path, str(path.relative_to(ROOT)))]
    assert not found, f"{len(found)} findings\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("page.md", "A dead code is revived. `dead code`\n```\npicture\n```\n", 2),
        (
            "page.md",
            "[image](picture.md)\n<!-- ops: begin -->\nreduced pass\n<!-- ops: end -->\nThe CNN stands still.\n",
            1,
        ),
        ("file.py", '"""A picture."""\npicture = f"{1} lost processes"  # a picture\n', 2),
        ("file.py", "def f():\n    raise ValueError('the picture' ' is told')\n", 2),
        ("file.js", 'const cells = members(picture); say("the picture is told") // a cell\n', 3),
        ("file.yaml", "thawed_backbone_factor: 1  # The CNN stands still.\n", 1),
        ("shards.md", "members of an archive\n", 1),
        ("docs/shards.md", "members of an archive\n", 0),
    ],
)
def test_what_is_found(name, text, count, tmp_path):
    path = tmp_path / Path(name).name
    path.write_text(text)
    assert len(findings(path, name)) == count
