"""Trained models of other libraries, and what becomes of them."""

from lengthwise.conversion.huggingface import load, load_transformers, save_transformers

__all__ = ["load", "load_transformers", "save_transformers"]
