"""Small turns of phrase that the parts of a comparison's page share."""

from __future__ import annotations

from srr_ext.comparison.records import Comparison

MINUS = "\N{MINUS SIGN}"


def plural(count: int, noun: str) -> str:
    """Write a number of things."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def extra_epochs(comparison: Comparison) -> dict[str, float]:
    """Return the epochs beyond the others', by label: the largest difference of any cell."""
    found: dict[str, float] = dict.fromkeys(comparison.labels, 0)
    for entry in comparison.summaries:
        found[entry.method] = max(found[entry.method], entry.extra_epochs, key=abs)
    return found


def epochs_more(extra: float) -> str:
    """Write how many epochs more or fewer than others; empty for none."""
    if not extra:
        return ""
    return f"{extra:+.4g} epoch{'' if abs(extra) == 1 else 's'}".replace("-", MINUS)
