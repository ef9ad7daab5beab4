"""What the server must know of a model of text besides its program."""

from dataclasses import dataclass, field

from protos.ctm_bundle_pb2 import Manifest
from serving.mismatch import Mismatch, quote
from serving.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TextModel:
    """How its thoughts read a prompt and write a token."""

    tokenizer: Tokenizer = field(repr=False)
    tokens: str
    """The input that holds the tokens so far, [window]."""
    length: str
    """The input that says how many of them count."""
    window: int
    """Tokens that a thought can see."""
    end_token: int | None
    """Ends a chain when it is drawn."""
    padding_token: int


def text_model(manifest: Manifest, tokenizer: bytes) -> TextModel:
    """The text part of a manifest that was checked, with the tokenizer's file.

    Raises:
        Mismatch: the file is no tokenizer, or one of another vocabulary than the model's.
    """
    text = manifest.text
    try:
        read = Tokenizer(tokenizer)
    except Mismatch as error:
        raise Mismatch(quote(text.tokenizer), str(error), "the tokenizer of this model") from error
    inputs = {spec.name: spec for spec in manifest.inputs}
    vocabulary = int(inputs[text.tokens].maximum) + 1
    if read.size != vocabulary:
        raise Mismatch(f"{text.tokenizer}, vocabulary", f"{read.size} tokens", f"{vocabulary}, as the model has")
    return TextModel(
        tokenizer=read,
        tokens=text.tokens,
        length=next(name for name, spec in inputs.items() if spec.length_of == text.tokens),
        window=inputs[text.tokens].shape[0],
        end_token=text.end_token if text.HasField("end_token") else None,
        padding_token=text.padding_token,
    )
