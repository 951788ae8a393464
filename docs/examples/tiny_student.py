"""What the examples need in place of a published model and data set: a tiny one of each, made on the spot.

A real user has `AutoModelForCausalLM.from_pretrained(...)`, `AutoTokenizer.from_pretrained(...)` and
`datasets.load_dataset(...)` here; nothing else in the examples changes.
"""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def make_rows(count: int = 16) -> list[dict[str, str]]:
    """Prompt, reasoning and code, as a teacher would have written them."""
    signs = [("sum", "+"), ("difference", "-"), ("product", "*")]
    return [
        {
            "prompt": f"Return the {signs[i % 3][0]} of x and {i}.",
            "reasoning": f"Use {signs[i % 3][1]} with {i}.",
            "code": f"def f(x):\n    y = x {signs[i % 3][1]} {i}\n    return y",
        }
        for i in range(count)
    ]


def make_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["\n".join(row.values()) for row in make_rows()], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlamaForCausalLM:
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        initializer_range=0.2,  # with an adapter the head stays as it is, so it has to tell tokens apart
    )
    return LlamaForCausalLM(config)
