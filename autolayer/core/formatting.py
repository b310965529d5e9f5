"""Numbers and lists as text, for reports, messages and tables."""

from collections.abc import Sequence


def format_count(value: float) -> str:
    """Formats a count with one decimal and a unit: 1234567 becomes '1.2M', 950 becomes '950'."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return f"{value:.0f}"


def format_bytes(value: float) -> str:
    """Formats a number of bytes: 1234567 becomes '1.2 MB'."""
    text = format_count(value)
    return f"{text[:-1]} {text[-1]}B" if text[-1].isalpha() else f"{text} B"


def format_seconds(seconds: float) -> str:
    """Formats a duration as a person says it: '0.4 s', '12 s', '3 min 5 s', '2 h 10 min'."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def listed(words: Sequence[str]) -> str:
    """Returns words as a list in a sentence: 'a', 'a and b', 'a, b and c'."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
