"""The model card says what others wrote as they wrote it: none of it is Markdown or HTML."""

import pytest

from export.card import render_card
from export.markdown import columns_table
from protos.ctm_bundle_pb2 import Agreement, Artefact, Manifest, Provenance, StopDefaults, TensorSpec


def _card(labels: tuple[str, ...] = ("one", "two"), stop: StopDefaults | None = None, **changes: str) -> list[str]:
    """The lines of the card of a model that was not measured."""
    manifest = Manifest(
        name="tiny",
        version=1,
        ticks=3,
        tick_cap=6,
        task=changes.pop("task", ""),
        labels=labels,
        stop=stop,
        inputs=[TensorSpec(name="x", datatype="FP32", shape=[4])],
        outputs=[TensorSpec(name="prediction", datatype="FP32", shape=[len(labels)], role=TensorSpec.PREDICTION)],
        artefacts=[Artefact(backend="onnx", agreement=Agreement(one_tick=[0.0], free_running=[0.0]))],
        provenance=Provenance(**changes),
    )
    return render_card(manifest, None).splitlines()


@pytest.mark.parametrize(
    ("label", "written"),
    [
        pytest.param("tabby cat", "tabby cat", id="plain"),
        pytest.param("T-shirt/top", "T-shirt/top", id="punctuation"),
        pytest.param("red_fox *", r"red\_fox \*", id="emphasis"),
        pytest.param("[here](https://x)", r"\[here\](https://x)", id="link"),
        pytest.param("![](a.png)", r"!\[\](a.png)", id="picture"),
        pytest.param("<script>", r"\<script\>", id="HTML"),
        pytest.param("a &lt; b", r"a \&lt; b", id="entity"),
        pytest.param("`code` $x$ ~~y~~ |", r"\`code\` \$x\$ \~\~y\~\~ \|", id="code, formula, table"),
        pytest.param(r"back\slash", r"back\\slash", id="backslash"),
        pytest.param("two\n\n# lines", "two # lines", id="lines"),
    ],
)
def test_labels_are_text(label: str, written: str) -> None:
    assert f"Classes: {written}, two." in _card(labels=(label, "two"))


def test_the_task_and_the_data_are_text() -> None:
    card = _card(task="a*b", data="<b>rows</b>")
    assert any(r"for the task *a\*b*, exported" in line for line in card)
    assert r"- data: \<b\>rows\</b\>" in card


def test_nothing_in_a_command_ends_its_block() -> None:
    card = _card(command="ctm-train '```", export_command="ctm-export x")
    begin = card.index("````sh")
    assert card[begin : begin + 4] == ["````sh", "ctm-train '```", "ctm-export x", "````"]


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        pytest.param({"energy_delta": 0.25}, "on the tick at which its energy changes by less than 0.25", id="delta"),
        pytest.param({"patience": 3}, "has stayed the same over 3 ticks. The numbers below are without", id="patience"),
        pytest.param({"abstain_below": 0.3}, "Answers less certain than 0.3 are marked as abstained.", id="abstain"),
    ],
)
def test_every_default_that_ships_is_told(stop: dict[str, float], said: str) -> None:
    assert said in "\n".join(_card(stop=StopDefaults(**stop)))
    assert said not in "\n".join(_card(stop=StopDefaults(patience=1)))


def test_a_table_leaves_out_columns_without_cells() -> None:
    assert columns_table({"tick": ["1", "2"], "whole": [], "accuracy": ["50%", "60%"]}).splitlines() == [
        "| tick | accuracy |",
        "| --- | --- |",
        "| 1 | 50% |",
        "| 2 | 60% |",
    ]
