"""CLIP's byte-pair tokenizer (Radford et al. 2021), as SD1.x uses it. Imports neither torch nor transformers.

The vocabulary is the file that the `openai-clip` package ships; it is read as data, and the package is never imported.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from lorac.errors import InputError, Problem

BOS, EOS = 49406, 49407
ROW = 77
"""Positions of one text-encoder input: BOS, 75 ids, EOS."""

_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_MERGES = 49152 - 256 - 2
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokenizer:
    """Text to token ids. Cheap to make: the vocabulary is parsed once in a process."""

    def __init__(self) -> None:
        self._bpe = _load()

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without BOS and EOS, not truncated."""
        return self._bpe.encode(text, add_special_tokens=False).ids


def chunk(ids: Sequence[int], max_token_length: int = 75) -> list[list[int]]:
    """`ids` as rows of 77 for the text encoder, each `BOS, 75 ids, EOS`; what is missing is filled with EOS.

    One row for 75, two for 150, three for 225, whatever the length of `ids` (kohya's `max_token_length`; it cuts at 75
    ids, also within a word). Ids beyond `max_token_length` are dropped: compare lengths to report that.
    """
    body = [*ids[:max_token_length], *[EOS] * (max_token_length - len(ids))]
    return [[BOS, *body[start : start + ROW - 2], EOS] for start in range(0, max_token_length, ROW - 2)]


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token → id, and the merges in order of priority, from `openai-clip`'s data file."""
    lines = gzip.decompress(_vocabulary_file().read_bytes()).decode("utf-8").split("\n", _MERGES + 1)
    merges = [(a, b) for a, b in (line.split() for line in lines[1 : _MERGES + 1])]
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), *_SPECIAL]
    return {token: i for i, token in enumerate(tokens)}, merges


@cache
def _load() -> tokenizers.Tokenizer:
    ids, merges = vocabulary()
    bpe = tokenizers.Tokenizer(
        models.BPE(ids, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=_SPECIAL[1])
    )
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.add_special_tokens(list(_SPECIAL))
    return bpe


def _byte_letters() -> list[str]:
    """A printable letter for each byte, printable bytes first: GPT-2's `bytes_to_unicode` in its order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def _vocabulary_file() -> Path:
    try:
        path = Path(str(distribution("openai-clip").locate_file("clip/bpe_simple_vocab_16e6.txt.gz")))
    except PackageNotFoundError:
        path = Path("clip/bpe_simple_vocab_16e6.txt.gz")
    if not path.is_file():
        raise InputError([Problem(str(path), "CLIP's vocabulary is not installed", "pip install openai-clip")])
    return path
