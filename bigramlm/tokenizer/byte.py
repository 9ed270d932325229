"""The byte tokenizer."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from bigramlm.errors import UserError
from bigramlm.tokenizer.base import END_OF_TEXT


class ByteTokenizer:
    """A tokenizer whose tokens are the UTF-8 bytes of a text.

    The id of a token is the value of its byte. end_of_text: if True, there is also an end-of-text token, with id 256.
    """

    lossless = True

    def __init__(self, *, end_of_text: bool = False, saved: str | None = None) -> None:
        """Build the tokenizer.

        saved: the content of the file that the tokenizer is restored from; `to_json` returns this content unchanged.
        """
        self._saved = saved
        self.end_of_text = 256 if end_of_text else None
        self._tokens = [bytes([value]) for value in range(256)] + ([END_OF_TEXT.encode()] if end_of_text else [])

    @property
    def vocab_size(self) -> int:
        return len(self._tokens)

    def encode(self, text: str) -> NDArray[np.int32]:
        """Encode a text as its bytes (N,).

        Raises UserError if the text contains a character that UTF-8 cannot encode.
        """
        try:
            return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)
        except UnicodeEncodeError as error:
            raise UserError(f"{text[error.start]!a} cannot be encoded as UTF-8; remove this character") from None

    def decode(self, ids: Iterable[int]) -> str:
        """Decode token ids; bytes that are not valid UTF-8 become U+FFFD."""
        return b"".join([self._tokens[i] for i in ids]).decode("utf-8", "replace")

    def to_json(self) -> str:
        """Return a byte-level BPE without merges, in the file format of `tokenizers`."""
        if self._saved is not None:
            return self._saved
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        backend = Tokenizer(models.BPE({char: value for value, char in enumerate(byte_characters())}, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        if self.end_of_text is not None:
            backend.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
        return str(backend.to_str())


def byte_characters() -> list[str]:
    """Return the character that represents each byte in a byte-level vocabulary.

    A byte that is a visible Latin-1 character is represented by this character. The other bytes are represented by the
    characters from U+0100 on, in order. The mapping is that of GPT-2's code (Radford et al. 2019).
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(value if value in visible else next(others)) for value in range(256)]
