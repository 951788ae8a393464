"""The application: distill a teacher's traces into a small code model and measure it."""
