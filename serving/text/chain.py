"""A chain of text: each thought's prediction draws a token, which joins what the row's next thought reads.

answer -> draw -> token -> window -> inputs of the next link
                    └----> reader -> text
"""

# Shapes: R rows, W tokens of the window.

from collections.abc import Mapping

import numpy as np

from serving.chance import Chance
from serving.events import Answer, Summary
from serving.request import Array, ChainEnd, StopReason
from serving.text.model import TextModel
from serving.text.options import TextOptions
from serving.text.reader import Reader
from serving.text.sampling import draw


class TextChain:
    """Writes the texts of one request. A row's text depends on its prompt, the seed and the row's number alone.

    Args:
        inputs: of the first links, as `prompts` gives them.
        seed: what the tokens are drawn by, in [0, 2^64).
        predictions: whether answers keep the predictions that their tokens were drawn from.
    """

    def __init__(
        self, model: TextModel, options: TextOptions, inputs: Mapping[str, Array], *, seed: int, predictions: bool
    ) -> None:
        self._model, self._options, self._seed = model, options, seed
        self._chance = Chance(seed)
        self._predictions = predictions or options.max_links == 1
        self._tokens_RW = inputs[model.tokens].copy()
        self._lengths_R = inputs[model.length].copy()
        self._readers = [Reader(options.stops) for _ in self._lengths_R]

    def follow(self, answer: Answer) -> Mapping[str, Array] | None:
        """Draw the row's next token; see `Chain`."""
        prediction, reader = answer.prediction, self._readers[answer.row]
        if not self._predictions:
            answer.prediction = None
        if prediction is None or answer.stop_reason == StopReason.DIVERGED:
            answer.text = reader.finish()
            return None
        chance = float(self._chance.uniform(answer.row, answer.link)[0])
        token = draw(prediction, self._options.sampling, chance)
        answer.outputs["token"] = np.array(token, np.int64)
        if token != self._model.end_token:
            answer.text = reader.feed(self._model.tokenizer.pieces[token])
        answer.chain_end = self._end(answer, token)
        if answer.chain_end:
            answer.text += reader.finish()
            return None
        return self._append(answer.row, token)

    def finish(self, summary: Summary) -> None:
        """Tell all texts, also of rows that ended while a link of theirs waited, and the seed."""
        for reader in self._readers:
            reader.finish()
        summary.seed = self._seed
        summary.texts = [reader.text for reader in self._readers]

    def _end(self, answer: Answer, token: int) -> ChainEnd:
        if token == self._model.end_token:
            return ChainEnd.END_TOKEN
        if self._readers[answer.row].stopped:
            return ChainEnd.STOP_TEXT
        if answer.link + 1 >= self._options.max_links:
            return ChainEnd.MAX_LINKS
        return answer.chain_end  # INTERRUPTED by whoever handed it over, or nothing

    def _append(self, row: int, token: int) -> Mapping[str, Array]:
        """What the row's next thought reads: the newest tokens that the window holds."""
        model, tokens_W, length = self._model, self._tokens_RW[row], int(self._lengths_R[row])
        if length == model.window:
            tokens_W[:-1] = tokens_W[1:].copy()
            length -= 1
        tokens_W[length] = token
        self._lengths_R[row] = length + 1
        return {model.tokens: tokens_W[None].copy(), model.length: np.array([length + 1], np.int64)}
