"""A bundle's tokenizer: texts to tokens, and each token to the bytes that it stands for.

Byte-level tokenizers alone: their tokens are bytes whatever stands beside them, so that text can be sent as it comes.
"""

import codecs
from collections.abc import Iterator
from contextlib import contextmanager

import tokenizers
from tokenizers import decoders, models

from serving.errors import BackendFailed
from serving.mismatch import Mismatch, quote

_SAMPLE = "In the beginning, 123: d\u00e9j\u00e0 vu \u65e5\u672c\u8a9e \U0001f600\n\t\0"
"""Letters, digits, signs, and characters of one to four bytes: whoever cuts these cuts any text."""


class Tokenizer:
    """What the `tokenizers` library made of a file.

    Args:
        data: the file's content, as the library writes it.

    Raises:
        Mismatch: it cannot be read, is not byte-level, leaves numbers without a token, or cannot cut every text.
    """

    def __init__(self, data: bytes) -> None:
        try:
            with _failures():
                self._library = tokenizers.Tokenizer.from_buffer(data)
        except BackendFailed as error:
            raise Mismatch("tokenizer", quote(str(error.__cause__), 200), "a file of the tokenizers library") from error
        if not isinstance(self._library.decoder, decoders.ByteLevel):
            raise Mismatch("tokenizer, decoder", quote(str(self._library.decoder)), "ByteLevel")
        # These belong to training: they would cut a prompt that is too long, and say nothing, or cut it by chance.
        self._library.no_truncation()
        self._library.no_padding()
        if isinstance(self._library.model, models.BPE):
            self._library.model.dropout = None
        self.pieces = self._pieces()
        """The bytes of every token; a special token has none. Pieces need not be whole characters."""
        try:
            self.encode(_SAMPLE)
        except BackendFailed as error:
            raise Mismatch(
                "tokenizer", quote(str(error.__cause__), 200), "one that can cut every text into tokens"
            ) from error

    @property
    def size(self) -> int:
        """Tokens of the vocabulary."""
        return len(self.pieces)

    def encode(self, text: str) -> list[int]:
        """A text's tokens; none are added around it. A special token's name in the text stands for that token.

        Raises:
            BackendFailed: the library could not.
        """
        with _failures():
            tokens: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return tokens

    def labels(self) -> tuple[str, ...]:
        """How each token reads: its text, `\\xe2` for bytes that are no whole character, or a special token's name."""
        return tuple(
            piece.decode("utf-8", "backslashreplace") or str(self._library.id_to_token(token))
            for token, piece in enumerate(self.pieces)
        )

    def _pieces(self) -> tuple[bytes, ...]:
        special = {token for token, added in self._library.get_added_tokens_decoder().items() if added.special}
        pieces: list[bytes] = []
        for token in range(self._library.get_vocab_size()):
            written = self._library.id_to_token(token)
            if written is None:
                raise Mismatch("tokenizer, vocabulary", f"none of number {token}", "a token for every number")
            pieces.append(b"" if token in special else _bytes(written))
        return tuple(pieces)


@contextmanager
def _failures() -> Iterator[None]:
    """Whatever the library throws, as ours: also its panics, which are no `Exception` and would end the process."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise BackendFailed(f"the tokenizer failed: {error}") from error


def _alphabet() -> dict[str, int]:
    """The character that byte-level tokenizers write for each byte.

    A printable byte stands for itself, as in Latin-1; the others follow from U+0100 on, in their order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_ALPHABET = _alphabet()


def _bytes(written: str) -> bytes:
    """A token's bytes; one that is written in other characters, as added tokens are, means itself."""
    if all(character in _ALPHABET for character in written):
        return bytes(_ALPHABET[character] for character in written)
    return codecs.encode(written, "utf-8")
