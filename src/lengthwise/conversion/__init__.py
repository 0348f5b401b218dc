"""Trained models of other libraries, and what becomes of them."""

from lengthwise.conversion.huggingface import load, load_transformers, save_transformers
from lengthwise.conversion.perspectives import add_perspectives, train_only
from lengthwise.conversion.rebuild import rebuild

__all__ = ["add_perspectives", "load", "load_transformers", "rebuild", "save_transformers", "train_only"]
