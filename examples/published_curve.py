"""Draws the published contribution of every layer of Qwen3-1.7B (arXiv 2607.01232), the picture of the README.

    python examples/published_curve.py      # a second on any machine; writes docs/images/qwen3-1.7b.svg

Expected: layer 10 is the best one at 1.15, and five of the 28 layers reach full-parameter RL (contribution 1 or more).
Left out on purpose: error bars, since the source has one training run per layer.
"""

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from autolayer.comparison.published import published

OUT = Path(__file__).resolve().parents[1] / "docs" / "images" / "qwen3-1.7b.svg"
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#777777"  # Okabe and Ito: distinct in every common colour blindness


def main() -> None:
    contribution_L = list(published("qwen3-1.7b").values.values())
    best = max(range(len(contribution_L)), key=contribution_L.__getitem__)
    with mpl.rc_context({"svg.hashsalt": "autolayer", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(8, 3), layout="constrained")
        axes = figure.subplots()
        colors = [ORANGE if layer == best else BLUE for layer in range(len(contribution_L))]
        axes.bar(range(len(contribution_L)), contribution_L, color=colors, width=0.75)
        axes.axhline(1, color=GREY, linewidth=1, linestyle="--")
        axes.text(len(contribution_L) - 0.4, 1.02, "full-parameter RL", color=GREY, ha="right", va="bottom")
        axes.set_xlabel("the one layer that is trained")
        axes.set_ylabel("share of the full RL gain")
        axes.set_xticks(range(0, len(contribution_L), 3))
        axes.spines[["top", "right"]].set_visible(False)
        OUT.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(OUT, metadata={"Date": None})
    above = sum(value >= 1 for value in contribution_L)
    print(f"layer {best}: {contribution_L[best]:.2f}; {above} of {len(contribution_L)} layers reach 1")
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
