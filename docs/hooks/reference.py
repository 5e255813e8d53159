"""What the site has beside the pages in docs/: the command line's reference, written from the commands themselves, and
CONTRIBUTING.md and CHANGELOG.md, which lie where people look for them in a repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
#: Page of the site -> file of the repository.
TAKEN_OVER = {"contributing.md": "CONTRIBUTING.md", "changes.md": "CHANGELOG.md"}
_TO_CODE = re.compile(r"\[([^\]]+)\]\((?:\.\./)*((?:tests|benchmarks|examples|forward_influence)/[^)]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made."""
    files.append(File.generated(config, "cli.md", content=command_line()))
    for page, source in TAKEN_OVER.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, page, content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to code become its name: the site holds no code."""
    return _TO_CODE.sub(r"\1 (`\2`)", markdown)


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """The theme would fetch a script for searching in pages that are opened from a folder: ours lies beside them."""
    depth = page.file.dest_uri.count("/")
    return re.sub(r"https://unpkg\.com/iframe-worker/shim", "../" * depth + "assets/file-worker.js", output)


def command_line() -> str:
    """Every command with its arguments and options, as `--help` has them."""
    from forward_influence.cli.app import group

    lines = ["# Command line", "", "`forward-influence COMMAND --help` shows the same in a terminal.", ""]
    for name, command in group().commands.items():
        lines += _command(f"forward-influence {name}", command, 2)
    return "\n".join(lines)


def _command(path: str, command: Any, level: int) -> list[str]:
    lines = [f"{'#' * level} {path}", "", _text(command.help), ""]
    if subcommands := getattr(command, "commands", None):
        for name, inner in subcommands.items():
            lines += _command(f"{path} {name}", inner, level + 1)
        return lines
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join([path, "[OPTIONS]", *(_argument(a) for a in arguments)])
    lines += ["```text", usage, "```", ""]
    groups: dict[str, list[Any]] = {}
    for parameter in command.params:
        if not getattr(parameter, "hidden", False) and "--help" not in parameter.opts:
            title = getattr(parameter, "rich_help_panel", None) or "Options"
            groups.setdefault("Arguments" if parameter in arguments else title, []).append(parameter)
    for title, parameters in groups.items():
        lines += [f"**{title}**", "", "| | default | |", "| --- | --- | --- |"]
        lines += [
            f"| {_names(p)} | {_default(p)} | {_text(getattr(p, 'help', None)).replace('|', chr(92) + '|')} |"
            for p in parameters
        ]
        lines.append("")
    return lines


def _argument(parameter: Any) -> str:
    name = parameter.name.upper() + ("..." if parameter.nargs == -1 else "")
    return name if parameter.required else f"[{name}]"


def _names(parameter: Any) -> str:
    names = (
        [parameter.name.upper()]
        if parameter.param_type_name == "argument"
        else [*parameter.opts, *parameter.secondary_opts]
    )
    return ", ".join(f"`{name}`" for name in names)


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default() if callable(parameter.default) else parameter.default
    value = getattr(value, "value", value)
    if value is None or value is False or value == () or value == []:
        return ""
    return f"`{', '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}`"


def _text(help: str | None) -> str:
    return re.sub(r"\s+", " ", help or "").strip()
