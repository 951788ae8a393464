"""transformers' Trainer with the structure-aware loss, its alignment term, and a capture pass before training."""

from __future__ import annotations

from tiny_student import make_model, make_rows, make_tokenizer
from transformers import Trainer, TrainingArguments

from structloss import StructureAwareLoss
from structloss.integrations import StructureLossMixin, capture
from structloss.trees import num_kinds


def main(out: str, **config: object) -> Trainer:
    rows, tokenizer = make_rows(), make_tokenizer()
    model = make_model(tokenizer)

    # --- the user's own ---
    class StructureTrainer(StructureLossMixin, Trainer):
        pass

    loss = StructureAwareLoss(lambda_align=0.1, hidden_size=model.config.hidden_size, num_kinds=num_kinds("python"))
    trainer = StructureTrainer(
        model,
        args=TrainingArguments(out, **config),
        train_dataset=rows,  # columns prompt, reasoning, code
        processing_class=tokenizer,
        structure_loss=loss,
    )
    capture(model, rows, trainer.visits, trainer.data_collator)  # gaps from the first epoch on
    trainer.train()
    # --- end ---
    return trainer


if __name__ == "__main__":
    main("out", report_to="none", logging_steps=2, learning_rate=1e-2)
