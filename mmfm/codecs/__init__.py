"""Codecs: pictures and sounds as codes of the shared vocabulary. Small ones are trained here, known ones imported."""

from torch import nn

from mmfm.codecs.audio import AudioAutoencoder
from mmfm.codecs.codec import Codec, Trainable
from mmfm.codecs.image import ImageAutoencoder
from mmfm.config import AudioCodec, ImageCodec, KnownCodec


def make_codec(cfg: ImageCodec | AudioCodec | KnownCodec) -> nn.Module:
    """A `Codec`, freshly initialised."""
    match cfg:
        case ImageCodec():
            return ImageAutoencoder(cfg)
        case AudioCodec():
            return AudioAutoencoder(cfg)
        case KnownCodec():
            from mmfm.codecs import known  # transformers is imported only where it is asked for

            return known.build(cfg)


__all__ = ["AudioAutoencoder", "Codec", "ImageAutoencoder", "Trainable", "make_codec"]
