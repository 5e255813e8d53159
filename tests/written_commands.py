"""The commands that are written in pages, in blocks of code and within sentences, and which blocks cannot be run here.

A block that cannot be run in a test has its reason in a comment before it:

    <!-- not run: needs a GPU -->
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Pages for people who use the package; CHANGELOG.md tells what was.
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
#: What the first word of a command can be.
PROGRAMS = ("forward-influence", "fi", "make", "pip", "python", "source", "docker", "ray")
_MARK = re.compile(r"<!-- not run: (.+?) -->")
_SETTING = re.compile(r"[A-Z_]+=\S*")
_INLINE = re.compile(r"`(forward-influence [^`\n]+)`")


@dataclass(frozen=True)
class Written:
    """A command as it stands in a page.

    Attributes:
        page: the file's name.
        line: where its block begins, from 1.
        words: as a shell would give them; comments, redirections and settings of the environment left out.
        why: the reason why its block cannot be run here; "" where it can.
        inline: it stands within a sentence, and may be a part of a command.
    """

    page: str
    line: int
    words: tuple[str, ...]
    why: str = ""
    inline: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether it is a command of this package."""
        return self.words[0] in ("forward-influence", "fi")

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out of it, and nothing is a shell's variable."""
        return not any("..." in word or "$" in word for word in self.words)

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {shlex.join(self.words)[:100]}"


def written_commands(pages: list[Path] = PAGES) -> list[Written]:
    """Every command of every page, in order."""
    return [command for page in pages for command in commands_of(page.name, page.read_text("utf-8"))]


def commands_of(name: str, text: str) -> Iterator[Written]:
    """The commands of a page's text."""
    for start, body, why in _blocks(text):
        for line in body.replace("\\\n", " ").splitlines():
            for words in _simple(line.strip()):
                if words[0] in PROGRAMS:
                    yield Written(name, start, tuple(words), why)
    for number, line in enumerate(text.splitlines(), 1):
        for found in _INLINE.findall(line):
            yield Written(name, number, tuple(shlex.split(found)), inline=True)


def _blocks(text: str) -> Iterator[tuple[int, str, str]]:
    """(first line, what stands in it, why it is not run) of fenced blocks of shell, and of indented ones."""
    lines = text.splitlines()
    before, at = "", 0
    while at < len(lines):
        line = lines[at]
        fence = re.match(r"\s*(`{3,})(\w*)", line)
        indented = line.startswith("    ") and not before.strip().startswith(("- ", "* "))
        end = at + 1
        if fence is not None:
            while end < len(lines) and not lines[end].strip().startswith(fence[1]):
                end += 1
            if fence[2] in ("", "bash", "sh", "console"):
                yield at + 1, "\n".join(lines[at + 1 : end]), _reason(before)
            end += 1
        elif indented:
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            yield at + 1, "\n".join(lines[at:end]), _reason(before)
        if line.strip():
            before = lines[end - 1] if fence or indented else line
        at = end


def _reason(line: str) -> str:
    found = _MARK.fullmatch(line.strip())
    return found[1] if found else ""


def _simple(line: str) -> Iterator[list[str]]:
    """The commands of a line: what stands between `&&`, `|` and `;`."""
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split, lexer.commenters = True, "#"
        found = list(lexer)
    except ValueError:  # a quotation mark that is an apostrophe: no shell's
        return
    words: list[str] = []
    skip = False
    for word in [*found, ";"]:
        if word in ("|", "&&", ";", "||", "&"):
            if words:
                yield words
            words = []
        elif word in (">", ">>", "<"):
            skip = True
        elif skip:
            skip = False
        elif words or not _SETTING.fullmatch(word):
            words.append(word)
