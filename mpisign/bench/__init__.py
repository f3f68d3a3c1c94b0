"""The command that measures: every method exchanges the same gradients."""
