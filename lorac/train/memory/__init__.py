"""How much memory a training run takes, and which plan fits a budget: arithmetic, without torch.

`shapes` are the sizes of a base and what stands in it one after the other, `operations` what each of these keeps and
needs, `predict` adds up one step, `choose` compares plans. `benchmarks/memory.py` measures the truth.
"""
