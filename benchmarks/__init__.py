"""What is measured beside the command: `paper`, the paper's experiments; `speed`, kernels, exchanges, verdicts.

Each file is one question, and runs from the root of the checkout: `python -m benchmarks.paper.noise --help`.
"""
