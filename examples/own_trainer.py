"""Train one layer inside your own TRL trainer: `train_only` around code you already have.

    python examples/own_trainer.py            # about 20 seconds on a laptop, no GPU

Expect: one line that says that 1 of 8 layers is trained, a training reward that rises, and no complaint at the end:
leaving `train_only` has checked that the layer got a gradient and that no other weight moved by a single bit.
"""

import argparse
import tempfile

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]

import autolayer
from autolayer.models.loading import load_model
from autolayer.tasks.generated import exact_reward
from autolayer.tasks.math import arith


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()

    loaded = load_model("tiny", "cpu")
    with tempfile.TemporaryDirectory() as scratch, autolayer.train_only(loaded.model, options.layer):
        trainer = GRPOTrainer(
            model=loaded.model,
            processing_class=loaded.tokenizer,
            reward_funcs=exact_reward,  # pyright: ignore[reportArgumentType]
            train_dataset=Dataset.from_list(arith.arith_problems("train", 2048)),
            args=GRPOConfig(
                output_dir=scratch,
                learning_rate=1e-3,
                lr_scheduler_type="constant",
                max_steps=options.steps,
                per_device_train_batch_size=128,
                num_generations=8,
                max_completion_length=8,
                # Off: checkpointing makes the embedding's output require gradients, and the backward pass would
                # then walk down through every frozen layer.
                gradient_checkpointing=False,
                use_cpu=True,
                bf16=False,
                logging_steps=10,
                save_strategy="no",
                report_to=[],
            ),
        )
        trainer.train()


if __name__ == "__main__":
    main()
