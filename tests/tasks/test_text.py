"""Text is read once, held out by documents, got back byte for byte, and its oracles are counts."""

import json
import random
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder
from mesascope.tasks import corpora, text
from mesascope.tasks._text.documents import split_text
from mesascope.tasks.base import training_loss
from mesascope.tasks.text import TextTask, train_byte_pair_tokenizer
from mesascope.testing import check_task

CONFIG = "wikitext-103-raw-v1"
UNREACHABLE = "hub:Salesforce/wikitext:" + CONFIG


def draw(task, n=64, seed=0):
    return task.sample(n, torch.Generator().manual_seed(seed))


def story(seed, characters=8_000):
    """Paragraphs of words that nobody wrote."""
    random_ = random.Random(seed)
    words = ["".join(random_.choices("abcdefgh", k=random_.randint(2, 7))) for _ in range(60)]
    paragraphs = [" ".join(random_.choices(words, k=25)) + "." for _ in range(characters // 130)]
    return "\n\n".join(paragraphs)


@pytest.fixture
def small(tmp_path) -> Path:
    file = tmp_path / "small.txt"
    file.write_text(story(0), encoding="utf-8")
    return file


@pytest.fixture
def wikitext(tmp_path, monkeypatch) -> Path:
    """A dataset of Wikitext's schema, as it lies on the Hub, in two files."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "wikitext"
    (folder / CONFIG).mkdir(parents=True)
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {CONFIG}\n  "
        f"data_files: [{{split: train, path: {CONFIG}/train-*.parquet}}]\n---\n"
    )
    for part in range(2):
        rows = []
        for number in range(6 * part, 6 * part + 6):
            paragraphs = [f" {line} \n" for line in story(number, 1_000).split("\n\n")]
            rows += [
                "",
                f" = Article {number} = \n",
                "",
                *paragraphs,
                "",
                " = = Its history = = \n",
                "",
                *paragraphs[:1],
            ]
        pq.write_table(pa.table({"text": rows}), folder / CONFIG / f"train-0000{part}-of-00002.parquet")
    return folder


@pytest.mark.parametrize("length", [8, 64])
def test_prose_is_a_sound_task(length):
    check_task(TextTask(length=length))
    check_task(TextTask(length=length).validation_task())


def test_a_small_file_is_a_sound_task(small):
    task = TextTask(source=str(small), length=16, vocab_size=300)
    check_task(task)
    assert len(task.corpus.documents) >= 15
    joined = "".join("".join(document.split()) for document in task.corpus.documents)
    assert joined == "".join(small.read_text().split())


def test_a_model_learns_from_it(small):
    task, generator = TextTask(source=str(small), length=16, vocab_size=300), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(vocab_size=300, hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        batch = task.sample(16, generator)
        loss = training_loss(task, model(batch.inputs).logits, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(torch.tensor(300.0).log().item(), rel=0.1)  # in nats
    assert losses[-1] < 0.7 * losses[0]


def test_windows_are_pieces_of_the_split_and_say_where_they_begin():
    task = TextTask(length=32)
    batch, stream = draw(task), task.token_stream
    for row in range(len(batch)):
        start = int(batch.latents["start"][row])
        assert torch.equal(batch.inputs[row], stream.tokens[start : start + 32].long())
        assert torch.equal(batch.targets[row], stream.tokens[start + 1 : start + 33].long())
        assert torch.equal(batch.categorical_latents["document"][row], stream.document[start + 1 : start + 33].long())
    assert torch.equal(batch.categorical_latents["next token"], batch.targets)
    assert torch.equal(batch.weight, torch.ones(64, 32))


def test_the_last_window_reaches_the_last_token(small):
    task = TextTask(source=str(small), vocab_size=300)
    task = replace(task, length=len(task.validation_task().token_stream.tokens) - 2).validation_task()
    assert set(draw(task).latents["start"].tolist()) == {0, 1}


def test_no_document_is_both_learnt_and_held_out(small):
    small.write_text("\n\n".join([small.read_text()] * 2))  # all of it twice
    for task in (TextTask(), TextTask(source=str(small))):
        train, validation = task.token_stream.document.unique(), task.validation_task().token_stream.document.unique()
        count = len(task.corpus.documents)
        assert not set(train.tolist()) & set(validation.tolist())
        assert len(train) + len(validation) == count == len(set(task.corpus.documents))
        assert len(validation) == max(1, round(0.1 * count))
        assert set(draw(task.validation_task(), 500).categorical_latents["document"].unique().tolist()) <= set(
            validation.tolist()
        )


def test_documents_follow_one_another_with_an_empty_line_between(small):
    task = TextTask(source=str(small), vocab_size=300)
    tokenizer, stream = task._tokenized_text.tokenizer, task.token_stream
    for number in stream.document.unique()[:5]:
        ids = stream.tokens[stream.document == number].tolist()
        assert tokenizer.decode(ids) == task.corpus.documents[number] + "\n\n"


def test_oracles_are_probabilities_and_the_bigram_knows_more():
    task = TextTask()
    batch = draw(task.validation_task(), 200)
    losses = {}
    for name, prediction in task.baselines(batch).items():
        assert prediction.shape == (200, 64, 512)
        assert prediction.dtype == torch.float32
        assert torch.allclose(prediction.exp().sum(-1), torch.ones(200, 64), atol=1e-4)
        losses[name] = float(training_loss(task, prediction, batch))
    assert losses["bigram"] < losses["unigram"] - 0.5
    assert losses["unigram"] < 6.24 - 0.3  # log 512, which knows nothing
    both = task.baselines(batch), task.validation_task().baselines(batch)
    assert torch.equal(both[0]["bigram"], both[1]["bigram"])  # counted on the training split by either


def test_oracles_are_the_counts_of_the_training_split(small):
    task = TextTask(source=str(small), vocab_size=300, length=16)
    tokens = task.token_stream.tokens.tolist()
    single, pairs = Counter(tokens), Counter(pairwise(tokens))
    before, kinds = Counter(tokens[:-1]), Counter(first for first, _ in pairs)
    batch = draw(task, 2)
    found = {name: prediction.exp() for name, prediction in task.baselines(batch).items()}

    def unigram(b):
        return (single[b] + 0.1) / (len(tokens) + 0.1 * 300)

    for pos in range(16):
        a = int(batch.inputs[1, pos])
        for b in range(300):
            assert found["unigram"][1, pos, b] == pytest.approx(unigram(b), rel=1e-4)
            by_hand = (max(pairs[a, b] - 0.75, 0) + 0.75 * kinds[a] * unigram(b)) / before[a]
            assert found["bigram"][1, pos, b] == pytest.approx(by_hand, rel=1e-4)


def test_a_token_that_was_never_followed_by_anything_is_followed_as_any(small):
    task = TextTask(source=str(small), vocab_size=400, length=4)
    never = next(token for token in range(400) if token not in task.token_stream.tokens)
    batch = draw(task, 1)
    found = task.baselines(replace(batch, inputs=torch.full_like(batch.inputs, never)))
    assert torch.equal(found["bigram"], found["unigram"])


def test_every_text_is_got_back_byte_for_byte(small):
    strange = "naïve\r\n\r\n\t日本語 🧑‍🚀  \0\x7f \u2028 <|endoftext|> ﬁ\n\n  x" + "".join(map(chr, range(0x250)))
    for documents in ([story(0)], ["only these"]):
        tokenizer = train_byte_pair_tokenizer(documents, 400)
        assert tokenizer.decode(tokenizer.encode(strange).ids, skip_special_tokens=False) == strange
    small.write_bytes(b"\xef\xbb\xbf" + (strange + "\r\n\r\nand more. " * 40).encode())
    task = TextTask(source=str(small))
    assert "naïve\r\n\r\n\t日本語 🧑‍🚀" in "".join(task.corpus.documents)  # line ends stay, the mark of UTF-8 goes
    assert task.decode_token(int(draw(task).inputs[0, 0]))


def test_the_vocabulary_is_full_where_there_is_text_enough_and_spelled():
    task = TextTask()
    assert task._tokenized_text.tokenizer.get_vocab_size() == 512
    spelled = [task.decode_token(token) for token in range(512)]
    assert {" the", "a", "ing"} <= set(spelled)
    assert "␀" in spelled
    assert "\0" not in "".join(spelled)


def test_a_long_file_is_cut_at_paragraphs_a_text_without_them_at_lines_or_words(tmp_path):
    words = story(1, 100_000)
    for separator, end in (("\n\n", "."), ("\n", "."), (" ", "")):
        file = tmp_path / "long.txt"
        file.write_text(words.replace("\n\n", separator))
        documents = corpora.load_corpus(str(file), 2_000_000).documents
        assert 50 <= len(documents) <= 60
        assert all(1_990 <= len(document) <= 4_200 for document in documents)
        assert all(document.endswith(end) for document in documents)
        assert separator.join(documents) == file.read_text()
    file.write_text("x" * 10_000 + "yz")
    assert sum(map(len, split_text(file.read_text()))) == 10_002


def test_reading_stops_at_so_many_characters(small):
    for source, characters in ((str(small), 3_000), ("prose", 3_000)):
        assert 2_900 <= sum(map(len, corpora.load_corpus(source, characters).documents)) <= 3_000


def test_a_folder_is_its_texts_by_name(tmp_path):
    for name in ("b.txt", "a/c.txt", "a/b.txt", "a/readme.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{name} {story(len(name), 600)}")
    documents = corpora.load_corpus(str(tmp_path), 10_000).documents
    assert [document.split()[0] for document in documents] == ["a/b.txt", "a/c.txt", "b.txt"]
    check_task(TextTask(source=str(tmp_path), length=8))


def test_wikitext_is_streamed_and_its_articles_are_documents(wikitext):
    task = TextTask(source=f"hub:{wikitext}:{CONFIG}", length=8, vocab_size=300)
    documents = task.corpus.documents
    assert [document.splitlines()[0] for document in documents] == [f"= Article {number} = " for number in range(12)]
    assert all(" = = Its history = = \n" in document for document in documents)
    assert task.corpus.fallback_notice is None
    check_task(task)
    some = TextTask(source=f"hub:{wikitext}:{CONFIG}", max_characters=3_000).corpus.documents
    assert len(some) < 6
    assert some[0] == documents[0]


def test_a_dataset_without_headings_has_a_document_a_row(tmp_path, wikitext):
    folder = tmp_path / "stories"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": story(n, 400)}) + "\n" for n in range(5)))
    assert corpora.load_corpus(f"hub:{folder}", 10_000).documents == tuple(story(n, 400) for n in range(5))
    (folder / "train.jsonl").write_text('{"question": "why?", "answer": "so"}\n')
    with pytest.raises(
        ValueError, match=r'must have a column "text", but .*stories has answer, question; give another'
    ):
        corpora.load_corpus(f"hub:{folder}", 10_000, fallback="prose")


@pytest.mark.parametrize("why", ["Couldn't reach 'Salesforce/wikitext' on the Hub", "datasets is not installed"])
def test_another_text_stands_in_for_the_hubs_and_says_so(why, tmp_path, monkeypatch):
    if "installed" in why:
        monkeypatch.setitem(sys.modules, "datasets", None)
    said = []
    task = TextTask(source=UNREACHABLE, fallback="prose", vocab_size=300, max_characters=20_000).prepare(
        tmp_path, said.append
    )
    assert len(said) == 1
    assert said[0].startswith(f"the Hub's Salesforce/wikitext ({CONFIG}) could not be read: {why}")
    assert said[0].endswith("; using Python's reference manual instead")
    told = json.loads((tmp_path / "source.json").read_text())
    assert (told["source"], told["instead of"]) == ("prose", UNREACHABLE)
    assert why in told["why"]
    assert told["characters"] == sum(map(len, task.corpus.documents))
    check_task(task)
    task.prepare(tmp_path, said.append)
    assert said[1] == said[0]


def test_without_a_stand_in_the_hub_must_be_reached(tmp_path):
    with pytest.raises(
        ValueError, match=r"^the Hub's Salesforce/wikitext .* must be reachable, but .* fallback="
    ) as info:
        TextTask(source=UNREACHABLE).prepare(tmp_path, print)
    assert "\n" not in str(info.value)
    assert not list(tmp_path.iterdir())


def test_a_stand_in_that_nobody_was_told_of_is_warned_of():
    task = TextTask(source=UNREACHABLE, fallback="prose", vocab_size=300, max_characters=20_001)
    with pytest.warns(UserWarning, match="could not be read: .*; using .* instead"):
        draw(task)


def test_a_prepared_text_needs_its_source_no_more(small, tmp_path):
    task, folder = TextTask(source=str(small), vocab_size=300), tmp_path / "run" / "text"
    first = task.prepare(folder, pytest.fail)
    before = draw(first)
    assert torch.equal(before.inputs, draw(task).inputs)  # prepared or not
    small.unlink()
    moved = folder.rename(tmp_path / "moved")
    again = task.prepare(moved, pytest.fail)
    assert repr(again) == repr(first) == repr(task)
    assert again == first == task
    assert torch.equal(draw(again).inputs, before.inputs)
    assert torch.equal(draw(again.validation_task()).inputs, draw(task.validation_task()).inputs)
    assert {file.name for file in moved.iterdir()} == {"corpus.jsonl", "tokenizer.json", "source.json"}
    assert again.corpus == task.corpus


def test_what_a_killed_process_left_is_written_anew(small, tmp_path):
    task, folder = TextTask(source=str(small), vocab_size=300), tmp_path / "text"
    folder.mkdir()
    (folder / "corpus.jsonl").write_text('"half of a docu')
    (folder / ".tmp-tokenizer.json").write_text("{")
    batch = draw(task.prepare(folder, pytest.fail))
    assert torch.equal(batch.inputs, draw(task).inputs)
    assert len(list(folder.iterdir())) == 3


def test_a_folder_prepared_anew_is_read_anew(small, tmp_path):
    folder = tmp_path / "text"
    before = TextTask(source=str(small), vocab_size=300).prepare(folder, pytest.fail).corpus
    (folder / "source.json").unlink()
    small.write_text(story(5))
    assert TextTask(source=str(small), vocab_size=300).prepare(folder, pytest.fail).corpus != before


@pytest.mark.parametrize(
    "other",
    [{"max_characters": 5_000}, {"vocab_size": 301}, {"held_out": 0.2}, {"source": "prose"}, {"fallback": "prose"}],
)
def test_a_folder_of_another_recipe_is_refused(other, small, tmp_path):
    task = TextTask(source=str(small), vocab_size=300)
    task.prepare(tmp_path / "text", pytest.fail)
    name = next(iter(other))
    with pytest.raises(
        ValueError, match=f"must have the recipe of its task, but .* has {name}=.*, not {name}=.*; choose"
    ):
        replace(task, **other).prepare(tmp_path / "text", pytest.fail)
    replace(task, length=9).validation_task().prepare(tmp_path / "text", pytest.fail)


def test_a_prepared_text_that_was_changed_or_lost_is_refused(small, tmp_path):
    task = TextTask(source=str(small), vocab_size=300)
    for spoil, message in (
        (lambda folder: (folder / "corpus.jsonl").write_text('"other words"\n'), "complete and unchanged, but is not"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "complete and unchanged, but cannot be read"),
        (lambda folder: (folder / "source.json").write_text("[]"), "complete and unchanged, but cannot be read"),
        (lambda folder: (folder / "source.json").unlink(), "must contain a prepared text"),
    ):
        folder = tmp_path / str(abs(hash(message)) + len(list(tmp_path.iterdir())))
        there = task.prepare(folder, pytest.fail)
        spoil(folder)
        text._load_tokenized.cache_clear()  # as in another process
        with pytest.raises(ValueError, match=message):
            draw(there)


def test_a_tokenizer_that_is_there_already_is_used_and_kept(small, tmp_path):
    made = train_byte_pair_tokenizer([story(3)], 290)
    made.enable_truncation(5)
    (tmp_path / "tokenizer").mkdir()
    file = tmp_path / "tokenizer" / "tokenizer.json"
    made.save(str(file))
    by_file = TextTask(source=str(small), tokenizer=str(file), vocab_size=300)
    by_folder = replace(by_file, tokenizer=str(file.parent), vocab_size=290)
    assert torch.equal(draw(by_file).inputs, draw(by_folder).inputs)
    assert len(by_file.token_stream.tokens) > 20 * 5
    before = draw(by_file)
    task = by_file.prepare(tmp_path / "text", pytest.fail)
    file.unlink()
    assert torch.equal(draw(task).inputs, before.inputs)
    check_task(task)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TextTask(vocab_size=256), r"vocab_size must be at least 257 \(all bytes and one merge\), but got 256"),
        (lambda: TextTask(length=1), "length must be at least 2, but got 1"),
        (lambda: TextTask(max_characters=0), "max_characters must be at least 1"),
        (lambda: TextTask(held_out=0.0), r"held_out must lie between 0 and 1, but got 0.0"),
        (lambda: TextTask(held_out=1.0), r"held_out must lie between 0 and 1"),
        (lambda: TextTask(fallback="hub:any"), "fallback must be a local source"),
        (lambda: draw(TextTask(source="no/such.txt")), "source must be .* but no/such.txt does not exist"),
        (lambda: draw(TextTask(max_characters=50)), "at least two documents"),
        (
            lambda: draw(TextTask(length=300_000)),
            "split must have at least 300002 tokens for length=300000, but Python's",
        ),
        (
            lambda: draw(TextTask(tokenizer="no/such/tokenizer")),
            "a tokenizer must be .* but no/such/tokenizer cannot be opened",
        ),
    ],
)
def test_what_cannot_be_sampled_is_refused(make, message):
    with pytest.raises(ValueError, match=message) as info:
        make()
    assert "\n" not in str(info.value)


def test_texts_that_cannot_be_read_are_refused(tmp_path, small):
    file = tmp_path / "new" / "text.txt"
    file.parent.mkdir()
    with pytest.raises(ValueError, match=r"must contain \.txt files, but .*new has none"):
        draw(TextTask(source=str(file.parent)))
    for content, message in ((b"  \n\n", "must not be empty, but .* is"), (b"caf\xe9 noir", "must be UTF-8, but")):
        file.write_bytes(content)
        for source in (file, file.parent):
            with pytest.raises(ValueError, match=message):
                draw(TextTask(source=str(source)))
    file.write_text(story(0))
    with pytest.raises(ValueError, match=r"at least two documents, .* or a file instead of a folder"):
        draw(TextTask(source=str(file.parent)))
    made = train_byte_pair_tokenizer([story(3)], 290)
    made.save(str(file))
    with pytest.raises(
        ValueError, match=r"vocab_size must be at least 290, the vocabulary size of .*, but is 280; set vocab_size=290"
    ):
        draw(TextTask(source=str(small), tokenizer=str(file), vocab_size=280))
    with pytest.raises(ValueError, match=r"must be writable, but .*text.txt"):
        TextTask(source=str(small)).prepare(file / "folder", pytest.fail)
