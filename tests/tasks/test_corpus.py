"""Laws of cutting a corpus, and of reading whatever lies on the disk."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.models.tokenizer import Tokenizer
from lengthwise.tasks import corpus as module
from lengthwise.tasks import reading
from lengthwise.tasks.corpus import Corpus, Document, read, standard_library
from lengthwise.training.packing import PACKERS

quick = settings(max_examples=50, deadline=None)
sizes = st.lists(st.integers(1, 40), min_size=1, max_size=15)
packers = st.sampled_from(sorted(PACKERS))


def numbered(sizes):
    """A corpus in which every token is its own place, so that a cut can be checked by its content."""
    ends = np.cumsum(sizes)
    documents = (Document(f"{i}", np.arange(end - n, end)) for i, (n, end) in enumerate(zip(sizes, ends, strict=True)))
    return Corpus(tuple(documents), vocab_size=int(ends[-1]))


@quick
@given(sizes=sizes, data=st.data())
def test_a_cut_is_a_slice_of_the_documents_end_to_end(sizes, data):
    corpus = numbered(sizes)
    assert len(corpus) == sum(sizes)
    begin = data.draw(st.integers(0, len(corpus)))
    end = data.draw(st.integers(begin, len(corpus)))
    assert corpus.cut(begin, end).tolist() == list(range(begin, end))


@quick
@given(sizes=sizes.filter(lambda s: sum(s) > 1), every=st.integers(2, 12))
def test_split_shares_nothing_and_loses_nothing(sizes, every):
    corpus = numbered(sizes)
    train, held_out = corpus.split(every)
    tokens = [set(part.cut(0, len(part)).tolist()) for part in (train, held_out)]
    assert tokens[0] | tokens[1] == set(range(len(corpus)))
    assert not tokens[0] & tokens[1]
    assert tokens[1]
    if len(sizes) > 1:
        assert {d.name for d in train.documents}.isdisjoint(d.name for d in held_out.documents)


def test_split_holds_out_every_nth_file_or_the_one_of_fitting_size():
    _, held_out = numbered([5] * 25).split(10)
    assert [d.name for d in held_out.documents] == ["9", "19"]
    _, held_out = numbered([1000, 100, 1, 1]).split(10)
    assert [d.name for d in held_out.documents] == ["1"]
    train, held_out = numbered([50]).split(10)
    assert (len(train), len(held_out)) == (45, 5)


@quick
@given(sizes=sizes, length=st.integers(1, 20), batch=st.integers(1, 4), seed=st.integers(0, 99))
def test_batches_are_stretches_and_go_on_at_any_step(sizes, length, batch, seed):
    corpus = numbered(sizes)
    if len(corpus) <= length:
        with pytest.raises(InputError, match="one context"):
            corpus.batches(length, batch)
        return
    whole = corpus.batches(length, batch, seed)
    first, second = next(whole), next(whole)
    assert first.shape == (batch, length + 1)
    assert (first.diff(dim=1) == 1).all()
    assert torch.equal(second, next(corpus.batches(length, batch, seed, start=1)))


def test_batches_reach_both_ends():
    corpus = numbered([3, 4])
    seen = torch.cat([next(corpus.batches(2, 200, seed=s)) for s in range(2)])
    assert set(seen[:, 0].tolist()) == set(range(5))


@quick
@given(sizes=sizes, length=st.integers(1, 10), batch=st.integers(1, 3))
def test_streams_go_on_where_they_stopped_and_forget_at_documents(sizes, length, batch):
    corpus = numbered(sizes)
    each = len(corpus) // batch
    if each < length + 1 or max(sizes) < 2:
        with pytest.raises(InputError):
            corpus.streams(length, batch)
        return
    chunks = (each - 1) // length
    stream = corpus.streams(length, batch)
    steps = [next(stream) for _ in range(2 * chunks)]
    opened = set(np.cumsum([0, *sizes]).tolist()) | {r * each for r in range(batch)}
    for k, (one, two) in enumerate(pairwise(steps), start=1):
        if k % chunks:
            assert torch.equal(one.tokens[:, -1], two.tokens[:, 0])
        else:
            assert torch.equal(two.tokens, steps[0].tokens)
            assert two.layout.starts[:, 0].all()
    for step in steps:
        begins = torch.tensor([[int(t) in opened for t in row] for row in step.tokens])
        assert torch.equal(step.layout.starts, begins[:, :-1])
        assert torch.equal(step.mask, ~begins[:, 1:])
    assert torch.equal(next(corpus.streams(length, batch, start=1)).tokens, steps[1].tokens)


@quick
@given(sizes=sizes, length=st.integers(1, 20), batch=st.integers(1, 3), seed=st.integers(0, 99))
def test_packed_rows_hold_each_document_in_pieces_that_start_anew(sizes, length, batch, seed):
    corpus = numbered(sizes)
    if len(corpus) < length + 1 or max(sizes) < 2:
        with pytest.raises(InputError):
            corpus.packed(length, batch)
        return
    packed = next(corpus.packed(length, batch, seed))
    ends = np.cumsum(sizes)
    for row in range(batch):
        tokens, documents = packed.tokens[row].tolist(), packed.layout.documents[row].tolist()
        owner = np.searchsorted(ends, tokens, side="right")
        for t in range(length):
            same = bool(owner[t] == owner[t + 1]) and tokens[t + 1] == tokens[t] + 1
            assert bool(packed.mask[row, t]) == same
            begins = t == 0 or owner[t] != owner[t - 1]
            assert bool(packed.layout.starts[row, t]) == begins
            assert begins or documents[t] == documents[t - 1]
    assert torch.equal(packed.inputs, packed.tokens[:, :-1])
    assert torch.equal(packed.targets, packed.tokens[:, 1:])


@quick
@given(sizes=sizes, length=st.integers(1, 20), batch=st.integers(1, 3), seed=st.integers(0, 99), packing=packers)
def test_whole_packing_shows_every_pair_of_a_piece_once_an_epoch(sizes, length, batch, seed, packing):
    corpus = numbered(sizes)
    if len(corpus) < length + 1 or max(sizes) < 2:
        with pytest.raises(InputError):
            corpus.packed(length, batch, seed, packing=packing)
        return
    ends = np.cumsum(sizes)
    wanted = {
        t
        for end, size in zip(ends, sizes, strict=True)
        for t in range(end - size, end - 1)
        if (t - (end - size) + 1) % (length + 1)  # the last of a piece has no successor
    }
    rows, seen = corpus.packed(length, 1, seed, packing=packing), []
    while len(seen) < len(wanted):
        one = next(rows)
        assert one.tokens.shape == (1, length + 1)
        assert (one.targets - one.inputs)[one.mask].eq(1).all()
        assert torch.equal(one.mask[:, :-1], one.layout.positions[:, 1:] > 0)
        seen += one.inputs[one.mask].tolist()
    assert sorted(seen) == sorted(wanted)
    steps = corpus.packed(length, batch, seed, packing=packing)
    first, second = next(steps), next(steps)
    assert torch.equal(second.tokens, next(corpus.packed(length, batch, seed, packing=packing, start=1)).tokens)
    assert torch.equal(first.tokens[:1], next(corpus.packed(length, 1, seed, packing=packing)).tokens)


def test_files_that_fit_into_a_row_stay_whole():
    corpus = numbered([5, 9, 1, 3, 8])
    packed = [next(corpus.packed(8, 3, seed=0, packing=name)) for name in ("arrival", "greedy")]
    for batch in packed:
        whole = [t.tolist() for row, layout in zip(batch.tokens, batch.layout.documents, strict=True)
                 for t in (row[:-1][layout == d] for d in layout[layout >= 0].unique())]  # fmt: skip
        opened = {piece[0] for piece in whole}
        assert opened == {0, 5, 15, 18}


def test_packed_shows_every_document_once_an_epoch():
    corpus = numbered([4] * 10)
    rows = corpus.packed(7, 1, seed=3)
    epochs = [torch.cat([next(rows).tokens for _ in range(5)]).flatten() for _ in range(2)]
    assert all(sorted(epoch.tolist()) == list(range(40)) for epoch in epochs)
    assert not torch.equal(*epochs)


@quick
@given(sizes=sizes, count=st.integers(1, 10), length=st.integers(1, 20))
def test_windows_are_evenly_spaced_and_share_at_most_one_token(sizes, count, length):
    corpus = numbered(sizes)
    if len(corpus) <= length:
        return
    windows = corpus.windows(count, length)
    assert 1 <= len(windows) <= count
    assert (windows.diff(dim=1) == 1).all()
    assert (windows[1:, 0] >= windows[:-1, -1]).all()
    assert windows[0, 0] == 0
    assert len(windows) == 1 or windows[-1, -1] == len(corpus) - 1


contents = st.dictionaries(
    st.text("abcxyz.", min_size=1, max_size=6).filter(lambda s: s.strip(".")), st.binary(max_size=50), max_size=6
)


@quick
@given(contents=contents)
def test_a_folder_is_read_as_the_bytes_of_its_files(tmp_path_factory, contents):
    folder = tmp_path_factory.mktemp("data")
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    visible = {name: c for name, c in contents.items() if c and not name.startswith(".")}
    if not visible:
        with pytest.raises(InputError, match="no data"):
            read([folder])
        return
    corpus = read([folder])
    assert [d.name for d in corpus.documents] == [str(folder / name) for name in sorted(visible)]
    assert [bytes(d.tokens) for d in corpus.documents] == [visible[name] for name in sorted(visible)]
    assert corpus.vocab_size == 256
    assert corpus.bytes_per_token == 1.0
    empty = [name for name, c in contents.items() if not c and not name.startswith(".")]
    assert len(corpus.notes) == len(empty)


def test_files_folders_and_globs_each_file_once(tmp_path):
    (tmp_path / "b" / ".hidden").mkdir(parents=True)
    for name in ["a.txt", "b/c.txt", "b/d.md", "b/.hidden/e.txt"]:
        (tmp_path / name).write_text(name)
    names = [d.name for d in read([tmp_path / "b", str(tmp_path / "**/*.txt"), tmp_path / "a.txt"]).documents]
    assert names == [str(tmp_path / n) for n in ["b/c.txt", "b/d.md", "a.txt"]]
    assert len(read(tmp_path / "a.txt")) == 5


def test_what_cannot_be_read_is_one_clear_sentence(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "short").write_bytes(b"abc")
    for paths, message in [
        ([], "no data given"),
        ([""], "is empty"),
        ([tmp_path / "missing"], "no file or folder"),
        ([str(tmp_path / "*.nothing")], "no file matches"),
        ([tmp_path / "empty"], "is empty"),
        ([tmp_path / "folder"], "no data"),
        (["x" * 5000], "no file or folder"),
        (["nul\0byte"], "no file or folder"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            read(paths)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="3 tokens, but one context of length 8 needs 9"):
        read([tmp_path / "short"]).windows(4, 8)


def test_an_unreadable_file_in_a_folder_is_noted_and_left_out(tmp_path, monkeypatch):
    (tmp_path / "good").write_bytes(b"good")
    (tmp_path / "locked").write_bytes(b"locked")
    load = reading.load_bytes

    def refuse(path):
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        return load(path)

    monkeypatch.setattr(module, "load_bytes", refuse)
    corpus = read([tmp_path])
    assert len(corpus) == 4
    assert corpus.notes == (f"{tmp_path / 'locked'} can't be read (Permission denied)",)


def test_a_big_file_is_mapped_and_equal(tmp_path, monkeypatch):
    content = np.random.default_rng(0).bytes(5000)
    (tmp_path / "big").write_bytes(content)
    monkeypatch.setattr(reading, "MAPPED", 1000)
    corpus = read([tmp_path])
    assert isinstance(corpus.documents[0].tokens, np.memmap)
    assert bytes(corpus.cut(0, 5000).to(torch.uint8).numpy()) == content


def test_standard_library_is_this_pythons_source():
    corpus = standard_library()
    names = [d.name for d in corpus.documents]
    assert names == sorted(names)
    assert "ast.py" in names
    assert len(corpus) > 2**20
    packages = {d.name for d in standard_library(packages=True).documents}
    assert set(names) < packages
    assert "json/decoder.py" in packages
    assert not any("site-packages" in name for name in packages)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    tokenizers = pytest.importorskip("tokenizers", reason="a tokenizer needs the package tokenizers")
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    built = tokenizers.Tokenizer(tokenizers.models.BPE())
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    built.train_from_iterator(["def read(self): return self.value\n" * 20], trainer)
    built.save(str(path))
    return path


@quick
@given(text=st.text("def read(self):\n\n  ü", min_size=1, max_size=200), piece=st.integers(1, 300))
def test_a_tokenised_text_decodes_to_itself_and_pieces_change_nothing(tokenizer, text, piece):
    loaded = Tokenizer.read(tokenizer)
    content = np.frombuffer(text.encode(), dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "PIECE", piece)
        tokens = reading.tokenise(loaded, content)
    assert loaded.decode(tokens.tolist()) == text
    assert tokens.tolist() == loaded.encode(text)


def test_a_tokenised_corpus_knows_its_vocabulary_and_bytes_per_token(tokenizer, tmp_path):
    text = "def read(self): return self.value\n" * 30
    (tmp_path / "text").write_text(text)
    corpus = read([tmp_path / "text"], tokenizer=tokenizer)
    assert corpus.vocab_size >= 256
    assert corpus.bytes_per_token == len(text) / len(corpus) > 1.5
    for bad, message in [(tmp_path / "missing", "no tokenizer file"), (tmp_path / "text", "not a Hugging Face")]:
        with pytest.raises(InputError, match=message):
            read([tmp_path / "text"], tokenizer=bad)


def test_impossible_sizes_are_refused():
    corpus = numbered([20])
    for call in [
        lambda: corpus.batches(0, 1),
        lambda: corpus.batches(4, 0),
        lambda: corpus.streams(4, 5),
        lambda: corpus.packed(0, 1, packing="greedy"),
        lambda: corpus.packed(4, 0, packing="greedy"),
        lambda: corpus.packed(4, 1, packing="gredy"),
        lambda: numbered([1] * 9).packed(4, 1),
        lambda: numbered([1] * 9).packed(4, 1, packing="arrival"),
        lambda: numbered([1] * 9).streams(4, 1),
        lambda: corpus.windows(0, 4),
        lambda: corpus.split(1),
        lambda: corpus.cut(5, 21),
    ]:
        with pytest.raises(InputError):
            call()
