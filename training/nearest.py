"""A baseline without a model: copy the training solution whose prompt is nearest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np


def words(text: str) -> list[str]:
    return re.findall(r"[a-z_]+|\d|[^\sa-z_\d]", text.lower())


def tfidf(texts: Sequence[str], vocabulary: dict[str, int], idf: np.ndarray) -> np.ndarray:
    """(texts, vocabulary) float32 rows of length 1 (0 for a text without a known word)."""
    rows = np.zeros((len(texts), len(vocabulary)), dtype=np.float32)
    for row, text in enumerate(texts):
        for word, count in Counter(words(text)).items():
            if word in vocabulary:
                rows[row, vocabulary[word]] = count
    rows *= idf
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def nearest_solutions(problems: Sequence[dict[str, Any]], traces: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each problem the trace whose prompt has the largest TF-IDF cosine with the problem's prompt."""
    prompts = [trace["prompt"] for trace in traces]
    documents = Counter(word for prompt in prompts for word in set(words(prompt)))
    vocabulary = {word: column for column, word in enumerate(sorted(documents))}
    counts = np.array([documents[word] for word in vocabulary], dtype=np.float32)
    idf = np.log((1 + len(prompts)) / (1 + counts)) + 1
    known = tfidf(prompts, vocabulary, idf)
    asked = tfidf([problem["prompt"] for problem in problems], vocabulary, idf)
    return [traces[int(best)] for best in (asked @ known.T).argmax(axis=1)]
