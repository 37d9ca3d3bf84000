"""Writing: greedy, sampled, by beams, guided, streamed, filled in, reranked. `Decoding` says how, `write` writes."""

from mmfm.generation.best_of import embed_items, nearness, source_embeddings
from mmfm.generation.detokenizer import Words
from mmfm.generation.generate import Judge, Piece, Written, stream, write
from mmfm.generation.generation_config import Decoding, Finish, check_guidance
from mmfm.generation.int8 import int8
from mmfm.generation.masked_decoding import fill

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
