"""Fused operations, one per file beside its plain definition. Installed as `lorac.kernels`."""
