"""The verb generate."""

from __future__ import annotations

import sys
from pathlib import Path

from lengthwise.conversion import load
from lengthwise.errors import InputError
from lengthwise.generation.sampling import Sampling
from lengthwise.generation.session import Session
from lengthwise.generation.text import text_of
from lengthwise.models import LanguageModel
from lengthwise.models.tokenizer import Tokenizer
from lengthwise.options.training import GenerateOptions
from lengthwise.training.checkpoint import find_checkpoint
from lengthwise.training.device import pick_device
from lengthwise.training.failure import full_disk_explained


def generate(options: GenerateOptions) -> int:
    """Write the continuation to standard output as it comes. 130 when the user stopped it; the state is saved then."""
    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    folder = find_checkpoint(options.checkpoint)
    model = load(folder).to(pick_device(options.device))
    if not isinstance(model, LanguageModel):
        raise InputError(f"{folder} holds a {type(model).__name__}; only a LanguageModel can generate")
    if options.tokenizer is not None:
        model.tokenizer = Tokenizer.read(options.tokenizer)
    text = text_of(model.tokenizer, model.vocab_size)
    if options.load_state is None:
        session = Session(model, seed=options.seed)
    else:
        session = Session.load(options.load_state, model, seed=options.seed)
    prompt = text.encode(read_prompt(options))
    session.read(text.first + prompt if options.load_state is None else prompt)
    stopped = False
    try:
        for token in session.generate(options.max_tokens, sampling):
            if token == text.last:
                break
            put(text.push(token))
    except KeyboardInterrupt:
        stopped = True
    put(text.flush() + "\n")
    if options.save_state is not None:
        with full_disk_explained(
            options.save_state.parent, lambda: "the text is complete, but its state isn't saved; free some space"
        ):
            session.save(options.save_state)
    return 130 if stopped else 0


def put(text: str) -> None:
    """Text to standard output at once, in UTF-8 whatever the terminal's own encoding."""
    sys.stdout.buffer.write(text.encode("utf-8"))
    sys.stdout.buffer.flush()


def read_prompt(options: GenerateOptions) -> bytes:
    """The text to continue, from wherever the user put it."""
    if options.prompt is not None and options.prompt_file is not None:
        raise InputError("give the prompt as --prompt or as --prompt-file, not both")
    if options.prompt is not None:
        return options.prompt.encode("utf-8", errors="surrogateescape")
    if options.prompt_file is not None and options.prompt_file != Path("-"):
        try:
            return options.prompt_file.read_bytes()
        except OSError as error:
            raise InputError(f"the prompt {str(options.prompt_file)!r} can't be read ({error.strerror})") from None
    if options.prompt_file is not None or (options.load_state is None and not sys.stdin.isatty()):
        return sys.stdin.buffer.read()
    if options.load_state is None:
        raise InputError("no prompt given; use --prompt TEXT, --prompt-file FILE, or standard input")
    return b""
