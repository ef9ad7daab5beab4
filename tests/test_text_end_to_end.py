"""A language model all the way: a corpus, a little training, a bundle, a server, a text; and what padding changes."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from served import served
from small_corpus import small_corpus
from test_promises import fingerprint, make_engine, run

from benchmarks import language
from ctm.checkpoint import CheckpointError, load_model
from ctm.families import load_trained
from ctm.training.cli import main as train
from export.cli import main as export
from protos.ctm_bundle_pb2 import Manifest
from serving.backends.load import load_backend
from serving.bundle import Bundle, load_bundle
from serving.client import AsyncClient, InvalidRequest
from serving.engine import StepReport
from serving.request import Request, StreamPolicy
from serving.settings import BackendConfig, EngineConfig

WINDOW, TICKS = 24, 3
CONFIG = f"""
name = "small"
updates = 6
batch_size = 4
threads = 1
[task]
name = "text"
text = {{ length = {WINDOW}, stride = {WINDOW // 2} }}
[language]
vocabulary = 300
context = {WINDOW}
layers = 1
width = 16
heads = 2
[model]
ticks = {TICKS}
width = 24
memory = 3
attention_width = 8
heads = 2
out_neurons = 12
action_neurons = 8
out_dims = 16
in_channels = 16
input_shape = [16, {WINDOW}]
synapse_depth = 2
nlm_hidden = 2
[report]
every = 2
evaluate_every = 3
checkpoint_every = 3
"""


@dataclass
class Small:
    """A trained model of text, and where it was published."""

    run: Path
    corpus: Path
    store: Path

    @property
    def bundle(self) -> Path:
        return self.store / "small" / "1"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("text")
    corpus = small_corpus(folder / "corpus")
    config = folder / "small.toml"
    config.write_text(CONFIG)
    assert train([str(config), "--data-dir", str(corpus), "--output-dir", str(folder / "runs")]) == 0
    made = Small(folder / "runs" / "small", corpus, folder / "store")
    options = ["--name", "small", "--threshold", "0.2", "--agreement-rows", "40"]
    assert export([str(made.run), "--store", str(made.store), *options]) == 0
    return made


@pytest.fixture(scope="module")
def bundle(small: Small) -> Bundle:
    return load_bundle(small.bundle)


def ask(bundle: Bundle, tokens: np.ndarray, length: int) -> Request:
    padded = np.zeros((1, WINDOW), np.int64)
    padded[0, :length] = tokens[:length]
    inputs = {"tokens": padded, "length": np.array([length])}
    stream = StreamPolicy(predictions=True, top_k=2)
    return Request(request_id="", inputs=inputs, rows=1, stop=bundle.stop, stream=stream)


def test_the_checkpoint_carries_its_tokenizer_and_knows_its_family(small: Small) -> None:
    trained = load_trained(small.run)
    assert trained.family == "language"
    assert trained.files["tokenizer.json"] == (small.corpus / "tokenizer.json").read_text()
    with pytest.raises(CheckpointError, match="family must be 'ctm', got 'language'"):
        load_model(small.run)


def test_the_bundle_says_what_it_takes_to_talk_to_it(small: Small, bundle: Bundle) -> None:
    manifest: Manifest = bundle.manifest
    assert (manifest.family, manifest.chain, manifest.text.tokenizer) == ("language", "text", "tokenizer.json")
    assert list(manifest.inputs[0].buckets) == [16, WINDOW]
    quality = manifest.quality
    assert quality.metric == "bits_per_byte"
    assert len(quality.bits_per_byte) == TICKS
    assert 1 < quality.bits_per_byte_most_certain < 8
    assert [artefact.backend for artefact in manifest.artefacts] == ["onnx", "torchscript"]
    assert max(manifest.artefacts[0].agreement.one_tick) < 1e-4
    assert "bits a byte" in (small.bundle / "README.md").read_text()


@pytest.mark.parametrize("kind", ["torchscript", "eager"])
def test_every_backend_thinks_the_same(bundle: Bundle, kind: str) -> None:
    rng = np.random.default_rng(0)
    inputs = {"tokens": rng.integers(0, 300, (5, WINDOW)), "length": np.array([1, 9, 16, 17, 24])}
    config, found = EngineConfig(num_slots=5, encode_rows_per_step=5), []
    for backend in ("onnx", kind):
        slots = load_backend(bundle, BackendConfig(kind=backend, allow_torchscript=True), config)
        slots.admit(range(5), inputs)
        slots.tick(5)
        output = slots.tick(5)
        found.append((output.prediction.copy(), output.certainty.copy()))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_thought_about_a_text_is_the_same_alone_or_among_texts_of_other_lengths(bundle: Bundle, seed: int) -> None:
    rng = np.random.default_rng(seed)
    texts = [(rng.integers(0, 300, WINDOW), int(length)) for length in rng.integers(1, WINDOW + 1, 12)]
    together = [ask(bundle, *text) for text in texts]
    events = run(make_engine(bundle, 5), together)
    for text, asked in zip(texts, together, strict=True):
        (alone,) = run(make_engine(bundle, 1), [ask(bundle, *text)]).values()
        assert fingerprint(events[asked]) == fingerprint(alone)


def test_what_stands_in_the_padding_reaches_no_answer(bundle: Bundle) -> None:
    tokens = np.random.default_rng(3).integers(0, 300, WINDOW)
    asked, noisy = ask(bundle, tokens, 10), ask(bundle, tokens, 10)
    noisy.inputs["tokens"][0, 10:] = 299
    (clean,) = run(make_engine(bundle, 2), [asked]).values()
    (padded,) = run(make_engine(bundle, 2), [noisy]).values()
    assert fingerprint(padded) == fingerprint(clean)


def test_an_idle_engine_holds_nothing_of_a_text(bundle: Bundle) -> None:
    engine = make_engine(bundle, 2)
    asked = ask(bundle, np.arange(WINDOW), 5)
    engine.submit(asked)
    engine.step(StepReport())
    engine.cancel(asked, StepReport())
    assert engine.idle


async def test_a_text_is_written_by_a_real_server(small: Small) -> None:
    async with served(small.store) as server, AsyncClient(server.address) as client:
        wanted = {"max_links": 12, "temperature": 0.9, "seed": 5}
        first = await client.generate("small", "the cat sees", **wanted).result()
        again = await client.generate("small", ["une fée", "the cat sees"], **wanted).result()
        assert first.text
        (links,) = first.links
        assert [answer.link for answer in links] == list(range(len(links)))
        assert all(1 <= answer.ticks_used <= TICKS for answer in links)
        assert again.summary.seed == 5
        greedy = [await client.generate("small", "the cat", max_links=9, temperature=0).result() for _ in range(2)]
        assert greedy[0].text == greedy[1].text
        with pytest.raises(InvalidRequest, match=f"{WINDOW}"):
            await client.generate("small", "the cat eats it. " * 40, max_links=2).result()


def test_the_benchmark_tells_what_a_thought_is_worth(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "bits.png"
    assert language.main([str(small.run), "--data-dir", str(small.corpus), "--plot", str(picture)]) == 0
    (found,) = json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]
    manifest = load_bundle(small.bundle).manifest
    assert found["test_bits"] == pytest.approx(manifest.quality.bits_per_byte_most_certain)
    assert found["test_bits_by_tick"] == pytest.approx(list(manifest.quality.bits_per_byte))
    for stopping in found["stopping"]:
        allowed = found["held_out_bits"] * (1 + stopping["most_loss"])
        assert stopping["held_out"]["bits_per_byte"] <= allowed or stopping["held_out"]["threshold"] == 0.99
    assert picture.stat().st_size > 1000


def test_another_corpus_is_refused(small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = small_corpus(tmp_path / "other", text="Some other words entirely, said again and again.\n" * 300)
    arguments = [str(small.run), "--store", str(tmp_path / "store"), "--data-dir", str(other)]
    assert export(arguments) == 2
    assert "another corpus than the model's" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--language.vocabulary", "301"], "the corpus needs language.vocabulary = 300, got 301"),
        (["--task.text.length", "25"], "task.text.length must be at most language.context, 24, got 25"),
        (["--model.out-dims", "8"], "needs model.out_dims = 16, got 8"),
    ],
    ids=["vocabulary", "window", "core"],
)
def test_a_model_that_cannot_learn_the_corpus_is_refused(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    config = tmp_path / "small.toml"
    config.write_text(CONFIG)
    arguments = [str(config), "--data-dir", str(small.corpus), "--output-dir", str(tmp_path), *options]
    assert train(arguments) == 2
    assert words in " ".join(capsys.readouterr().err.split())
