"""Blocks and whole models, and the language that they are written in."""

from lengthwise.models.build import build
from lengthwise.models.encoder import Classifier, Encoder
from lengthwise.models.encoder_decoder import EncoderDecoder
from lengthwise.models.language_model import LanguageModel, LanguageModelState
from lengthwise.models.loading import MODELS, load
from lengthwise.models.masked_language_model import MaskedLanguageModel
from lengthwise.models.states import load_state, save_state

__all__ = [
    "MODELS",
    "Classifier",
    "Encoder",
    "EncoderDecoder",
    "LanguageModel",
    "LanguageModelState",
    "MaskedLanguageModel",
    "build",
    "load",
    "load_state",
    "save_state",
]
