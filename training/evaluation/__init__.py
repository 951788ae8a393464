"""Samples from anywhere to numbers that can be compared: generation, extraction, verdicts, summaries."""
