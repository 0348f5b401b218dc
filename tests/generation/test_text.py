import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.generation.text import ByteText, TokenizerText, text_of
from lengthwise.models.tokenizer import Tokenizer


@given(st.binary(max_size=40))
def test_bytes_come_out_as_their_text_however_they_are_cut(content):
    text = ByteText()
    pieces = [text.push(token) for token in text.encode(content)]
    assert "".join(pieces) + text.flush() == content.decode("utf-8", errors="replace")


def test_a_character_waits_for_its_last_byte():
    text = ByteText()
    assert [text.push(b) for b in "a€".encode()] == ["a", "", "", "€"]
    assert text.push(0xE2) == ""
    assert text.flush() == "\ufffd"


@pytest.fixture(scope="module")
def tokenizer():
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra [hf]")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(["the quick brown fox the lazy dog"] * 20, trainer)
    return Tokenizer(made.to_str())


@given(words=st.text(max_size=30))
def test_tokens_of_a_tokenizer_come_out_as_the_whole_text(tokenizer, words):
    text = TokenizerText(tokenizer)
    pieces = [text.push(token) for token in text.encode(words.encode())]
    assert "".join(pieces) + text.flush() == words


def test_a_character_of_several_tokens_waits(tokenizer):
    text = TokenizerText(tokenizer)
    tokens = text.encode("🦊".encode())
    assert len(tokens) > 1
    assert [text.push(t) for t in tokens] == [""] * (len(tokens) - 1) + ["🦊"]


def test_vocabularies_must_fit(tokenizer):
    assert isinstance(text_of(None, 256), ByteText)
    assert isinstance(text_of(tokenizer, 4096), TokenizerText)  # models often round their vocabulary up
    with pytest.raises(InputError, match="isn't bytes"):
        text_of(None, 300)
    with pytest.raises(InputError, match="vocabulary of"):
        text_of(tokenizer, 256)
