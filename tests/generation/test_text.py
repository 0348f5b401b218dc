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


def streamed(tokenizer, tokens):
    """The text in pieces, and the most tokens that waited."""
    text, pieces, waited = TokenizerText(tokenizer), [], 0
    for token in tokens:
        pieces.append(text.push(token))
        waited = max(waited, len(text.held))
    return [*pieces, text.flush()], waited


PIECES = (b"\xf0", b"\x9f", b"\x80", b"\xef\xbf\xbd", "€".encode(), b"a")
"""Bytes of which some make characters, some might, and some can't."""


@given(content=st.one_of(st.binary(max_size=40), st.lists(st.sampled_from(PIECES)).map(b"".join)))
def test_any_bytes_come_out_as_when_they_are_decoded_whole(tokenizer, content):
    alphabet = [tokenizer.built.token_to_id(character) for character in byte_characters()]
    pieces, waited = streamed(tokenizer, [alphabet[byte] for byte in content])
    assert "".join(pieces) == content.decode("utf-8", errors="replace")
    assert waited < 4


def byte_characters():
    """The characters that byte-level tokenizers write the bytes as: printable ones as they are, others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def test_tokens_that_begin_and_end_within_characters_come_out(tokenizer):
    """Each ends a character and begins the next, so that no text is ever complete."""
    tokenizers = pytest.importorskip("tokenizers")
    spelled = byte_characters()
    words = {"a" + spelled[0xF0]: 0, "".join(spelled[b] for b in (0x9F, 0x98, 0x80, 0xF0)): 1}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
    made.decoder = tokenizers.decoders.ByteLevel()
    pieces, waited = streamed(Tokenizer(made.to_str()), [0, *[1] * 20])
    assert "".join(pieces) == "a" + "😀" * 20 + "\ufffd"
    assert waited < 4
    assert "".join(pieces[:8]).count("😀") >= 4


@pytest.fixture(scope="module")
def falling_back():
    """A tokenizer that spells what it has no token for in bytes, and takes a run of them for text only as a whole."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra [hf]")
    words = {"<unk>": 0, "▁a": 1, "b": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=words, merges=[], unk_token="<unk>", byte_fallback=True))
    made.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(made.to_str())


@given(content=st.text(max_size=12), lost=st.integers(0, 60))
def test_bytes_that_are_no_character_do_not_hold_up_the_rest(falling_back, content, lost):
    after = [1, *(3 + byte for byte in content.encode()), 1, 2]
    pieces, waited = streamed(falling_back, [2, *[3 + 0x80] * lost, *after])
    assert "".join(pieces) == "b" + "\ufffd" * lost + " a" + content + " ab"
    assert waited < 4


def test_a_bad_byte_leaves_the_characters_before_it_as_they_are(falling_back):
    pieces, _ = streamed(falling_back, [*(3 + byte for byte in "€".encode()), 3 + 0x80, 1])
    assert pieces == ["", "", "€", "", "\ufffd a", ""]


def test_vocabularies_must_fit(tokenizer):
    assert isinstance(text_of(None, 256), ByteText)
    assert isinstance(text_of(tokenizer, 4096), TokenizerText)  # models often round their vocabulary up
    with pytest.raises(InputError, match="isn't bytes"):
        text_of(None, 300)
    with pytest.raises(InputError, match="vocabulary of"):
        text_of(tokenizer, 256)
