"""The table that ends a measurement, on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forward_influence.cli import tables
from forward_influence.cli.wording import in_options

if TYPE_CHECKING:
    from forward_influence.storage.run import Run


def show_summary(run: Run) -> None:
    """Print the summary of a run: the table, for kept tokens a second one on fidelity, the notes and the flags."""
    from forward_influence.analysis.formatting.summary_words import fidelity, multiples, readable
    from forward_influence.analysis.measures.notes import flag_remarks
    from forward_influence.analysis.measures.summary import summarise

    table = summarise(run)
    out = tables.console()
    title = f"{run.name}: mean KL in nats [95% interval over documents]"
    means, compared = readable(table), multiples(table)
    whole = means.merge(compared, how="left").fillna(tables.ABSENT) if len(compared) else means
    if tables.fits(whole, out.width):
        tables.show(whole, title, out)
    else:
        tables.show(means, title, out)
        if len(compared):
            title = "as a multiple of controls on the same documents"
            tables.show(compared, title, out)
    kept = fidelity(table)
    if len(kept):
        title = "what stays: mean shift of the text's NLL in nats, and how often the most likely token is the same"
        tables.show(kept, title, out)
    for line in [*table.attrs["notes"], *flag_remarks(table)]:
        out.print(in_options(line), markup=False, style="dim", soft_wrap=True)


def as_values(run: Run) -> dict[str, Any]:
    """What `show_summary` shows, as values fit for JSON, with where the run lies."""
    from forward_influence.analysis.measures.summary import summarise

    table = summarise(run)
    return {
        "run": str(run.where),
        "documents": len(run.documents),
        "measured": len(run.measured()),
        "rules": tables.records(table),
        "notes": [in_options(note) for note in table.attrs["notes"]],
    }
