"""A plain PyTorch loop with the structure-aware loss."""

from __future__ import annotations

import torch
from tiny_student import make_model, make_rows, make_tokenizer
from torch.utils.data import DataLoader

from structloss import StructureAwareLoss, VisitCache
from structloss.integrations import RowCollator, model_loss


def main(steps: int = 24) -> list[dict[str, float]]:
    rows, tokenizer = make_rows(), make_tokenizer()
    model = make_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = []

    # --- the user's own ---
    loss = StructureAwareLoss(alpha=1.0)
    loader = DataLoader(rows, batch_size=8, shuffle=True, collate_fn=RowCollator(tokenizer))
    with VisitCache.for_loss(loss, tokenizer, workers=1) as visits:
        step = 0
        while step < steps:
            for inputs in loader:
                inputs["structure"] = visits.attach(inputs["structure"], inputs["examples"])
                output = model_loss(model, loss, inputs, progress=min(step / steps, 1.0))
                visits.update(inputs["examples"], output.argmax)
                output.loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                # --- end ---
                history.append({name: float(value) for name, value in (output.terms | output.metrics).items()})
    return history


if __name__ == "__main__":
    for row in main():
        print({name: round(value, 3) for name, value in row.items()})
