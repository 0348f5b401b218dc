"""Numeric kernels: pure functions of tensors, without parameters, shared by all mixers."""
