"""How numbers are written in tables and sentences."""

from collections.abc import Sequence

from adaptmedseg.inference.prompt_origin import is_oracle

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
MISSING = "\N{EM DASH}"
TOO_FEW = "too few patients for an interval"


def score(value: float | None) -> str:
    """A Dice value with three decimals, a dash where there is none."""
    return MISSING if value is None else f"{value:.3f}"


def interval(bounds: tuple[float, float] | None) -> str:
    """An interval of Dice values."""
    return MISSING if bounds is None else f"{bounds[0]:.3f}{DASH}{bounds[1]:.3f}"


def change(value: float) -> str:
    """A difference with its sign; what rounds to nought has none."""
    text = f"{value:+.3f}"
    return "0.000" if float(text) == 0 else text.replace("-", MINUS)


def change_interval(bounds: tuple[float, float] | None) -> str:
    """An interval of differences."""
    return MISSING if bounds is None else f"{change(bounds[0])} to {change(bounds[1])}"


def interval_95(bounds: tuple[float, float] | None) -> str:
    """An interval of Dice values in a sentence."""
    return TOO_FEW if bounds is None else f"95 % interval {interval(bounds)}"


def change_95(bounds: tuple[float, float] | None) -> str:
    """An interval of differences in a sentence."""
    return TOO_FEW if bounds is None else f"95 % interval {change_interval(bounds)}"


def volume(value: float | None) -> str:
    """A volume in ml."""
    return "unknown ml" if value is None else f"{value:.1f} ml"


def effect(value: float | None) -> str:
    """A correlation or effect size with its sign."""
    return MISSING if value is None else f"{value:+.2f}".replace("-", MINUS)


def p_value(p: float | None) -> str:
    """A p-value with two digits; below 0.001 not written out."""
    if p is None:
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def origin(prompt_origin: str) -> str:
    """A prompt origin as the reader sees it: an oracle never goes without the word 'truth'."""
    if is_oracle(prompt_origin):
        return f"{prompt_origin}, made from the truth"
    return "no prompt" if prompt_origin == "none" else prompt_origin


def count(number: int, noun: str) -> str:
    """A number with its noun: `1 case`, `2 cases`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """Seconds as `4.2 s`, `3 min 05 s` or `2 h 07 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def listing(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1] if words else "") if part)
