"""Lists the public data sets of mathematics: those for training, and those for evaluation only.

The evaluation is the one of arXiv 2607.01232: MATH500, GSM8K, OlympiadBench (English competitions, text only, open
answers) and AMC, with one sample per problem (32 for the few of AMC), a lower temperature than in training and more
tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autolayer.tasks.math import formats
from autolayer.tasks.suites import Decoding


@dataclass(frozen=True, kw_only=True)
class Source:
    """One public split."""

    title: str
    """Name to show."""
    repository: str
    """Name on the Hugging Face Hub."""
    configurations: tuple[str | None, ...] = (None,)
    """All of these are read, one after the other."""
    split: str = "train"
    question: str
    """Column that identifies a problem."""
    answer: str
    """Column with the answer, for `read`."""
    read: Callable[[Mapping[str, Any]], formats.Found]
    """Takes a row of the split."""


MATH_SUBJECTS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip

TRAINING: dict[str, Source] = {
    "gsm8k": Source(
        title="GSM8K, grade-school word problems",
        repository="openai/gsm8k",
        configurations=("main",),
        question="question",
        answer="answer",
        read=formats.gsm8k,
    ),
    "math": Source(
        title="MATH, competition problems",
        repository="EleutherAI/hendrycks_math",
        configurations=MATH_SUBJECTS,
        question="problem",
        answer="solution",
        read=formats.solved,
    ),
    "numina": Source(
        title="NuminaMath-CoT, problems from school to olympiad",
        repository="AI-MO/NuminaMath-CoT",
        question="problem",
        answer="solution",
        read=formats.numina,
    ),
    "deepscaler": Source(
        title="DeepScaleR-Preview, competition problems",
        repository="agentica-org/DeepScaleR-Preview-Dataset",
        question="problem",
        answer="answer",
        read=formats.answered,
    ),
    "skywork": Source(
        title="Skywork-OR1, competition problems",
        repository="Skywork/Skywork-OR1-RL-Data",
        split="math",
        question="prompt",
        answer="reward_model",
        read=formats.skywork,
    ),
}

SUITES: dict[str, Source] = {
    "math500": Source(
        title="MATH500",
        repository="HuggingFaceH4/MATH-500",
        split="test",
        question="problem",
        answer="answer",
        read=formats.answered,
    ),
    "gsm8k": Source(
        title="GSM8K",
        repository="openai/gsm8k",
        configurations=("main",),
        split="test",
        question="question",
        answer="answer",
        read=formats.gsm8k,
    ),
    "olympiad": Source(
        title="OlympiadBench",
        repository="Hothan/OlympiadBench",
        configurations=("OE_TO_maths_en_COMP",),
        question="question",
        answer="final_answer",
        read=formats.olympiad,
    ),
    "amc": Source(
        title="AMC",
        repository="math-ai/amc23",
        split="test",
        question="question",
        answer="answer",
        read=formats.answered,
    ),
}

SAMPLES = {"amc": 32}
"""Completions of each problem, if more than one."""

MAX_NEW_TOKENS = 3072
"""Limit of a completion in training."""
EVAL_DECODING = Decoding(temperature=0.6, top_p=0.95, top_k=20, max_new_tokens=8192)
