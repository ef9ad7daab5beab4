"""A chain of text, driven by hand: which tokens it draws, what the next thought reads, how it ends."""

import numpy as np
import pytest
from scripted_text import BUNDLE, END, VOCABULARY, WINDOW, library_tokenizer, table, tokens_of

from serving.events import Answer, Summary
from serving.request import ChainEnd, StopReason
from serving.text.chain import TextChain
from serving.text.options import TextOptions
from serving.text.sampling import Sampling

MODEL = BUNDLE.text
GREEDY = Sampling(temperature=0.0)
BOOK = tokens_of("In the beginning God")


def inputs(*rows: list[int]) -> dict[str, np.ndarray]:
    tokens = np.full((len(rows), WINDOW), MODEL.padding_token, np.int64)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row
    return {"tokens": tokens, "length": np.array([len(row) for row in rows], np.int64)}


def answer(row: int, link: int, prediction: np.ndarray | None, **fields: object) -> Answer:
    plain = {"ticks_used": 1, "answer_tick": 1, "certainty": 0.5, "stop_reason": StopReason.CERTAIN, "abstained": False}
    return Answer(row=row, link=link, prediction=prediction, **{**plain, **fields})


def chain_of(*prompts: list[int], seed: int = 7, predictions: bool = False, **options: object) -> TextChain:
    made = TextOptions(**{"max_links": 8, "sampling": GREEDY, **options})
    return TextChain(MODEL, made, inputs(*prompts), seed=seed, predictions=predictions)


def run(chain: TextChain, prompt: list[int], logits: np.ndarray, row: int = 0) -> list[Answer]:
    """All answers of a row whose model reads the last token alone."""
    answers, last = [], prompt[-1]
    for link in range(1000):
        answers.append(answer(row, link, logits[last]))
        following = chain.follow(answers[-1])
        if following is None:
            return answers
        last = following["tokens"][0, following["length"][0] - 1]
    raise AssertionError("the chain has no end")


def finished(chain: TextChain, rows: int = 1) -> Summary:
    summary = Summary([False] * rows, [0] * rows, 1, 0.0, 0.0)
    chain.finish(summary)
    return summary


def test_it_writes_what_the_model_predicts():
    chain = chain_of(BOOK[:2], max_links=len(BOOK) - 2)
    answers = run(chain, BOOK[:2], table(*BOOK))
    assert [int(one.outputs["token"]) for one in answers] == BOOK[2:]
    assert "".join(one.text for one in answers) == library_tokenizer().decode(BOOK[2:])
    assert [one.chain_end for one in answers] == [ChainEnd.GOES_ON] * (len(answers) - 1) + [ChainEnd.MAX_LINKS]
    assert finished(chain).texts == [library_tokenizer().decode(BOOK[2:])]


def test_the_next_thought_reads_the_token_that_was_drawn():
    chain = chain_of([5, 6], [7])
    following = chain.follow(answer(1, 0, np.eye(VOCABULARY, dtype=np.float32)[9]))
    assert following["tokens"].tolist() == [[7, 9] + [MODEL.padding_token] * (WINDOW - 2)]
    assert (following["length"].tolist(), following["length"].dtype) == ([2], np.int64)


def test_a_full_window_slides():
    prompt = list(range(1, WINDOW + 1))
    chain = chain_of(prompt)
    for link, token in enumerate((50, 51)):
        following = chain.follow(answer(0, link, np.eye(VOCABULARY, dtype=np.float32)[token]))
    assert following["tokens"].tolist() == [[*prompt[2:], 50, 51]]
    assert following["length"].tolist() == [WINDOW]


def test_what_a_thought_reads_is_not_written_to_by_the_links_that_follow():
    asked = inputs([5, 6])
    chain = TextChain(MODEL, TextOptions(max_links=9), asked, seed=0, predictions=False)
    first = chain.follow(answer(0, 0, np.eye(VOCABULARY, dtype=np.float32)[9]))
    before = first["tokens"].copy()
    chain.follow(answer(0, 1, np.eye(VOCABULARY, dtype=np.float32)[10]))
    np.testing.assert_array_equal(first["tokens"], before)
    np.testing.assert_array_equal(asked["tokens"], inputs([5, 6])["tokens"])


@pytest.mark.parametrize(
    ("book", "options", "end", "text"),
    [
        pytest.param(tokens_of("In the beginning"), {"max_links": 1}, ChainEnd.MAX_LINKS, None, id="one token"),
        pytest.param([*tokens_of("In the"), END], {}, ChainEnd.END_TOKEN, " the", id="the end token has no text"),
        pytest.param(tokens_of("In the beginning"), {"stops": (" begin",)}, ChainEnd.STOP_TEXT, " the", id="stop text"),
        pytest.param(tokens_of(b"In an"), {"stops": ("an",)}, ChainEnd.STOP_TEXT, "n ", id="across tokens"),
        pytest.param(tokens_of(b"Ix\xf0\x9f\x98"), {"max_links": 3}, ChainEnd.MAX_LINKS, "x\ufffd", id="half an emoji"),
        pytest.param(
            tokens_of(b"Ixan"), {"stops": ("any",), "max_links": 3}, ChainEnd.MAX_LINKS, "xan", id="half a stop text"
        ),
        pytest.param(
            [*tokens_of(b"Ixa"), END],
            {"stops": ("any",)},
            ChainEnd.END_TOKEN,
            "xa",
            id="half a stop text, then the end",
        ),
        pytest.param(
            tokens_of(b"Ixan"), {"stops": ("an",), "max_links": 3}, ChainEnd.STOP_TEXT, "x", id="stopped at the last"
        ),
    ],
)
def test_how_it_ends(book, options, end, text):
    chain = chain_of(book[:1], **options)
    answers = run(chain, book[:1], table(*book))
    assert answers[-1].chain_end == end
    assert all(one.chain_end == ChainEnd.GOES_ON for one in answers[:-1])
    if text is None:
        text = library_tokenizer().decode(book[1:2])
    assert finished(chain).texts == ["".join(one.text for one in answers)] == [text]


def test_a_character_of_several_tokens_comes_whole():
    book = tokens_of("I😀".encode())
    answers = run(chain_of(book[:1], max_links=4), book[:1], table(*book))
    assert [one.text for one in answers] == ["", "", "", "😀"]


@pytest.mark.parametrize(
    ("fields", "text", "outputs"),
    [
        pytest.param({"stop_reason": StopReason.DEADLINE}, "ax", ["token"], id="its time was up: the answer so far"),
        pytest.param({"stop_reason": StopReason.DIVERGED}, "a", [], id="it diverged: no token"),
        pytest.param({"stop_reason": StopReason.DEADLINE, "prediction": None}, "a", [], id="it never ticked"),
    ],
)
def test_an_interrupted_chain_gives_out_what_it_held_back(fields, text, outputs):
    one_hot = np.eye(VOCABULARY, dtype=np.float32)
    chain = chain_of([5], stops=("axy",))
    chain.follow(answer(0, 0, one_hot[tokens_of(b"a")[0]]))
    last = answer(0, 1, fields.pop("prediction", one_hot[tokens_of(b"x")[0]]), **fields)
    last.chain_end = ChainEnd.INTERRUPTED
    assert chain.follow(last) is None
    assert (last.text, list(last.outputs), last.chain_end) == (text, outputs, ChainEnd.INTERRUPTED)
    assert finished(chain).texts == [text]


def test_a_row_that_ended_while_its_link_waited_tells_what_it_held_back():
    chain = chain_of([5], stops=("axy",))
    first = answer(0, 0, np.eye(VOCABULARY, dtype=np.float32)[tokens_of(b"a")[0]])
    assert chain.follow(first) is not None
    assert (first.text, finished(chain).texts) == ("", ["a"])


def test_an_interrupted_link_that_ends_the_text_says_so():
    chain = chain_of([5])
    last = answer(0, 0, np.eye(VOCABULARY, dtype=np.float32)[END], stop_reason=StopReason.DEADLINE)
    last.chain_end = ChainEnd.INTERRUPTED
    chain.follow(last)
    assert last.chain_end == ChainEnd.END_TOKEN


def test_an_abstaining_answer_goes_on():
    chain = chain_of([5])
    assert chain.follow(answer(0, 0, np.eye(VOCABULARY, dtype=np.float32)[9], abstained=True)) is not None


@pytest.mark.parametrize(
    ("links", "predictions", "kept"),
    [
        pytest.param(1, False, True, id="a single link"),
        pytest.param(8, False, False, id="of many links"),
        pytest.param(8, True, True, id="asked for"),
    ],
)
def test_which_answers_keep_their_prediction(links, predictions, kept):
    chain = chain_of([5], max_links=links, predictions=predictions)
    first = answer(0, 0, np.eye(VOCABULARY, dtype=np.float32)[9])
    chain.follow(first)
    assert (first.prediction is not None) is kept


def sampled(prompts: list[list[int]], seed: int, order: list[int], links: int = 12) -> list[list[int]]:
    """Tokens by row, the rows' thoughts answered in an order: row numbers, again and again."""
    logits, chain = table(others=2.0), chain_of(*prompts, seed=seed, max_links=links, sampling=Sampling())
    last, drawn = [prompt[-1] for prompt in prompts], [[] for _ in prompts]
    while pending := [row for row in order if len(drawn[row]) < links]:
        for row in pending:
            one = answer(row, len(drawn[row]), logits[last[row]])
            following = chain.follow(one)
            drawn[row].append(int(one.outputs["token"]))
            last[row] = drawn[row][-1]
            if following is None:
                drawn[row] += [-1] * (links - len(drawn[row]))
    assert finished(chain, len(prompts)).seed == seed
    return drawn


def test_the_same_seed_draws_the_same_whatever_the_company():
    alone = sampled([[5]], 7, [0])
    assert alone == sampled([[5]], 7, [0])
    company = sampled([[5], [6], [5]], 7, [2, 0, 1])
    assert company[0] == alone[0]
    assert company == sampled([[5], [6], [5]], 7, [0, 1, 2])
    assert company[2] != alone[0], "each row has numbers of its own"
    assert sampled([[5]], 8, [0]) != alone


def test_tokens_are_drawn_as_often_as_predicted():
    prediction = np.full(VOCABULARY, -1e9, np.float32)
    prediction[[10, 11, 12]] = np.log([0.5, 0.3, 0.2])
    drawn = []
    for seed in range(1000):
        one = answer(0, 0, prediction)
        chain_of([5], seed=seed, sampling=Sampling()).follow(one)
        drawn.append(int(one.outputs["token"]))
    counts = np.bincount(drawn, minlength=VOCABULARY)[[10, 11, 12]]
    assert counts / 1000 == pytest.approx([0.5, 0.3, 0.2], abs=0.05)
