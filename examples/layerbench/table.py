"""Prints LayerBench's tables from results/: how good the prediction and `pick` are, beside every baseline and probe.

    python examples/layerbench/table.py             # seconds: nothing is run
    python examples/layerbench/table.py tiny gigpo  # only environments with one of these in their names
    python examples/layerbench/table.py --json      # the same numbers, for a machine
    python examples/layerbench/table.py --sealed    # with the sealed environments: once, at the end

The tables are Markdown, so README.md holds them as they are printed.
"""

import argparse
import json
from collections.abc import Mapping, Sequence

import numpy as np
from environments import ENVIRONMENTS
from judge import BASELINES, LEVEL, NEW_ARCHITECTURE, PROBES, Judged, best_probe_of_others, judge, mean
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from run import known, load

TEXTS = ("environment", "method", "differs", "one", "other", "sets of three")
"""Columns that hold no numbers."""
OTHERS_BEST = "best probe of the other bases"


def per_environment(rows: list[Judged]) -> Table:
    heads = ("environment", "best", "ceiling", "Spearman", "regret: prediction", "picked at .25", "regret", "cost",
             "picked at 1", "regret", "cost", *BASELINES)  # fmt: skip
    table = markdown("LayerBench, left-out bases: regret of the choices", heads)
    for row in rows:
        picks = []
        for name in ("pick 0.25", "pick 1"):
            layers = ", ".join(map(str, row.picked.get(name, ()))) or "-"
            picks += [layers, number(row.regret.get(name)), number(row.cost.get(name))]
        table.add_row(
            row.name + (" (sealed)" if row.sealed else ""), str(row.best), number(row.ceiling),
            number(row.spearman["prediction"]), number(row.regret["prediction"]), *picks,
            *(number(row.regret[name]) for name in BASELINES),
        )  # fmt: skip
    return table


def per_probe(rows: list[Judged]) -> Table:
    names = [name for name in PROBES if any(name in row.regret for row in rows)]
    table = markdown("Single probes: Spearman / regret", ("environment", *names))
    for row in rows:
        cells = [f"{number(row.spearman.get(name))} / {number(row.regret.get(name))}" for name in names]
        table.add_row(row.name, *(cell if cell != "- / -" else "-" for cell in cells))
    return table


def means(rows: list[Judged], title: str) -> Table:
    """Every method's means, and how much better the prediction is, paired over environments."""
    heads = ("method", "Spearman", "regret", "worst", "prediction's Spearman minus it",
             "its regret minus the prediction's")  # fmt: skip
    table = markdown(title, heads)
    for name in ("prediction", NEW_ARCHITECTURE, "pick 0.25", "pick 1", *PROBES, *BASELINES):
        having = [row for row in rows if name in row.regret]
        correlated = [row for row in having if row.spearman.get(name) is not None]
        _add(
            table,
            name,
            having,
            {r.name: r.spearman[name] or 0.0 for r in correlated},
            {r.name: r.regret[name] for r in having},
        )
    if len({row.base for row in rows}) > 2:
        other = best_probe_of_others(rows)
        _add(table, OTHERS_BEST, rows, {n: s for n, (s, _) in other.items()}, {n: r for n, (_, r) in other.items()})
    return table


def _add(
    table: Table, name: str, rows: list[Judged], spearman: Mapping[str, float], regret: Mapping[str, float]
) -> None:
    if not rows:
        return
    ahead = [(row.spearman["prediction"] or 0) - spearman[row.name] for row in rows if row.name in spearman]
    lost = [regret[row.name] - row.regret["prediction"] for row in rows]
    itself = name == "prediction"
    table.add_row(
        f"{name} ({len(rows)})",
        number(mean(list(spearman.values()))),
        number(mean(list(regret.values()))),
        number(max(regret.values())),
        "-" if itself else _interval(ahead),
        "-" if itself else _interval(lost),
    )


def gains(rows: list[Judged]) -> Table:
    names = ("full", "pick 0.25", "middle", "LoRA")
    table = markdown("Gain in reward of the whole run, equal steps", ("environment", *names))
    for row in rows:
        table.add_row(row.name, *(number(row.gain.get(name), 3) for name in names))
    if full := [row for row in rows if all(name in row.gain for name in names)]:
        table.add_row(f"mean of {len(full)}", *(number(mean([row.gain[name] for row in full]), 3) for name in names))
    behind = []
    for name in names:
        both = [row.gain["pick 0.25"] > row.gain[name] for row in rows if {name, "pick 0.25"} <= row.gain.keys()]
        behind.append("-" if name == "pick 0.25" else f"{sum(both)} of {len(both)}")
    table.add_row("behind pick", *behind)
    return table


def sentences(rows: list[Judged]) -> list[str]:
    """The numbers that the tables leave out."""
    share = np.mean([(row.spearman["prediction"] or 0) / row.ceiling for row in rows if row.ceiling])
    found = [f"Spearman of the prediction as a share of the ceiling: {share:.2f}"]
    for name in ("prediction", "position", LEVEL):
        cover, score = (np.mean([getattr(row, what)[name] for row in rows]) for what in ("coverage", "winkler"))
        found.append(f"80% intervals of {name}: hold {cover:.0%} of the layers, Winkler score {score:.2f}")
    for name in ("pick 0.25", "pick 1"):
        judged = [row for row in rows if name in row.log_loss]
        if judged:
            ours, none = (np.mean([row.log_loss[which] for row in judged]) for which in (name, "uninformed"))
            named = [layer == row.best for row in judged for layer in row.picked[name]]
            steps = [step for row in judged for step in row.steps[name]]
            found.append(
                f"{name}: the longest arms have {min(steps)} to {max(steps)} steps; names the best layer in "
                f"{sum(named)} of {len(named)} runs; log loss of probability_best, all layers: {ours:.3f}, "
                f"uninformed {none:.3f}"
            )
    return found


def markdown(title: str | None, heads: Sequence[str]) -> Table:
    """An empty table that prints as Markdown."""
    table = Table(title=title, box=MARKDOWN)
    for head in heads:
        table.add_column(head, justify="left" if head in TEXTS else "right")
    return table


def _interval(difference: list[float]) -> str:
    """The mean of paired differences with its 95% bootstrap interval over environments (B. Efron 1979)."""
    if len(difference) < 3:
        return "-"
    value_E = np.array(difference)
    drawn_D_E = np.random.default_rng(0).integers(len(value_E), size=(10_000, len(value_E)))
    low, high = np.quantile(value_E[drawn_D_E].mean(axis=1), [0.025, 0.975])
    return f"{value_E.mean():+.2f} [{low:+.2f}, {high:+.2f}]"


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="PART", help="of the names of the environments to judge")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sealed", action="store_true", help="with the sealed environments: once, at the end")
    options = parser.parse_args()
    done = [e for e in ENVIRONMENTS.values() if "probings" in (load(e) or {}) and (options.sealed or not e.sealed)]
    learned = [known(environment) for environment in done if not environment.sealed]
    wanted = [e for e in done if any(part in e.name for part in options.names or [""])]
    rows = [judge(environment, learned) for environment in wanted]
    if options.json:
        print(json.dumps([vars(row) for row in rows], indent=1))
        return
    console = Console(width=200)
    console.print(per_environment(rows))
    for sealed, title in ((False, "Means, sealed ones apart"), (True, "Means of the sealed environments")):
        if part := [row for row in rows if row.sealed is sealed]:
            console.print(means(part, title))
            console.print(*sentences(part), sep="\n")
    console.print(per_probe(rows))
    console.print(gains(rows))


if __name__ == "__main__":
    main()
