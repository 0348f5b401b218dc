"""Blocks and whole models, and the language that they are written in."""

from lengthwise.models.build import build
from lengthwise.models.encoder import Classifier, Encoder
from lengthwise.models.language_model import LanguageModel, LanguageModelState
from lengthwise.models.loading import MODELS, load
from lengthwise.models.states import load_state, save_state

__all__ = [
    "MODELS",
    "Classifier",
    "Encoder",
    "LanguageModel",
    "LanguageModelState",
    "build",
    "load",
    "load_state",
    "save_state",
]
