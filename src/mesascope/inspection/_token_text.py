"""Text of single tokens: the piece that each token adds to the text before it."""

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # decoded for bytes that are only a part of a character
MAX_TOKENS_PER_CHARACTER = 4  # a character of UTF-8 has up to four bytes
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # byte tokens of SentencePiece
_BYTE_OF_LETTER = {letter: byte for byte, letter in bytes_to_unicode().items()}  # letters of byte-level tokens


class TokenDecoder:
    """Decoder of single tokens.

    ``tokenizer.decode([token])`` is not the text that a token adds: decoders of SentencePiece strip the first space,
    and a token of a WordPiece vocabulary begins with a space unless it continues a word. Tokens are therefore decoded
    after another token, whose text is removed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._anchor = list(tokenizer("a", add_special_tokens=False)["input_ids"])[-1:]
        self._anchor_text = self._decode_ids(self._anchor)
        self._pieces: dict[int, str] = {}
        self._incomplete: set[int] = set()

    def decode_token(self, token: int) -> str:
        """Return the text that a token adds; bytes that are a part of a character are written as ``\\xe2``.

        Args:
            token: Any token id, also one without an entry in the vocabulary.
        """
        if token not in self._pieces:
            self._pieces[token] = self._decode_uncached(token)
        return self._pieces[token]

    def decode_row(self, tokens: Sequence[int]) -> list[str]:
        """Return the text of every token of a sequence; joined, they are the decoded sequence.

        Args:
            tokens: Token ids.

        Returns:
            One text per token. A character that consists of several tokens is the text of the last one; the others
            are empty.
        """
        pieces: list[str] = []
        start = 0
        for end in range(1, len(tokens) + 1):
            piece = self._piece_between(tokens, start, end)
            if INCOMPLETE not in piece:
                pieces += [*[""] * (end - start - 1), piece]
                start = end
            elif end - start == MAX_TOKENS_PER_CHARACTER or end == len(tokens):
                pieces += map(self.decode_token, tokens[start:end])
                start = end
        return pieces

    def _piece_between(self, tokens: Sequence[int], start: int, end: int) -> str:
        if start == 0:  # no token before it
            return self.decode_token(tokens[0]) if tokens[0] in self._special else self._decode_ids(tokens[:end])
        if end - start > 1:
            return self._added_text(tokens[start:end])
        piece = self.decode_token(tokens[start])
        return INCOMPLETE if tokens[start] in self._incomplete else piece

    def _decode_uncached(self, token: int) -> str:
        name = self._tokenizer.convert_ids_to_tokens([token])[0]
        if name is None:
            return f"<{token}>"  # a row of the embedding without a token
        if token in self._special:
            return _without_nul(name)
        piece = self._added_text([token])
        if INCOMPLETE in piece:
            self._incomplete.add(token)
            return _escape_bytes(name) or piece
        return piece or name

    def _added_text(self, tokens: Sequence[int]) -> str:
        text = self._decode_ids([*self._anchor, *tokens])
        return text.removeprefix(self._anchor_text) if text.startswith(self._anchor_text) else self._decode_ids(tokens)

    def _decode_ids(self, tokens: Sequence[int]) -> str:
        return _without_nul(str(self._tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)))


def _escape_bytes(name: str) -> str:
    """Return the bytes of a token, those that are no complete character as escapes; empty if they are not known."""
    match = _BYTE_TOKEN.fullmatch(name)
    if match:
        content = bytes([int(match[1], 16)])
    elif all(letter in _BYTE_OF_LETTER for letter in name):
        content = bytes(_BYTE_OF_LETTER[letter] for letter in name)
    else:
        return ""
    return content.decode("utf-8", errors="backslashreplace")


def _without_nul(text: str) -> str:
    return text.replace("\0", "\N{SYMBOL FOR NULL}")  # netCDF text cannot contain NUL
