"""Writing: greedy, sampled, by beams, guided, streamed, filled in, reranked. `Decoding` says how, `write` writes."""

from mmfm.generate.decoding import Decoding, Finish, check_guidance
from mmfm.generate.filling import fill
from mmfm.generate.int8 import int8
from mmfm.generate.loop import Judge, Piece, Written, stream, write
from mmfm.generate.rerank import embed_items, nearness, source_embeddings
from mmfm.generate.words import Words

__all__ = [
    "Decoding",
    "Finish",
    "Judge",
    "Piece",
    "Words",
    "Written",
    "check_guidance",
    "embed_items",
    "fill",
    "int8",
    "nearness",
    "source_embeddings",
    "stream",
    "write",
]
