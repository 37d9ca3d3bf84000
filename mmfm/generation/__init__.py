"""Writing: greedy, sampled, beams, guided, streamed, masked, best of n. `GenerationConfig` says how, `write` writes."""

from mmfm.generation.best_of import embed_items, nearness, source_embeddings
from mmfm.generation.detokenizer import Detokenizer
from mmfm.generation.generate import Begun, Judge, Piece, Written, stream, stream_on, write, write_on
from mmfm.generation.generation_config import Finish, GenerationConfig, check_guidance
from mmfm.generation.int8 import int8
from mmfm.generation.masked_decoding import fill

__all__ = [
    "Begun",
    "Detokenizer",
    "Finish",
    "GenerationConfig",
    "Judge",
    "Piece",
    "Written",
    "check_guidance",
    "embed_items",
    "fill",
    "int8",
    "nearness",
    "source_embeddings",
    "stream",
    "stream_on",
    "write",
    "write_on",
]
