"""TRL's SFTTrainer with the structure-aware loss and a LoRA adapter."""

from __future__ import annotations

from datasets import Dataset
from peft import LoraConfig
from tiny_student import make_model, make_rows, make_tokenizer
from trl import SFTConfig, SFTTrainer

from structloss import StructureAwareLoss
from structloss.integrations import StructureLossMixin


def main(out: str, **config: object) -> SFTTrainer:
    rows, tokenizer = make_rows(), make_tokenizer()
    model = make_model(tokenizer)

    # --- the user's own ---
    class StructureTrainer(StructureLossMixin, SFTTrainer):
        pass

    trainer = StructureTrainer(
        model,
        args=SFTConfig(out, **config),
        train_dataset=Dataset.from_list(rows),  # columns prompt, reasoning, code
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, target_modules="all-linear"),
        structure_loss=StructureAwareLoss(alpha=1.0),
    )
    trainer.train()
    # --- end ---
    return trainer


if __name__ == "__main__":
    main("out", report_to="none", logging_steps=2, learning_rate=1e-2, use_cpu=True)
