"""Codecs: pictures and sounds as codes of the shared vocabulary. Small ones are trained here, known ones imported."""

from torch import nn

from mmfm.config import AudioCodec, ImageCodec, KnownCodec
from mmfm.models.codecs.audio import AudioAutoencoder
from mmfm.models.codecs.codec import Codec, Trainable
from mmfm.models.codecs.image import ImageAutoencoder


def make_codec(cfg: ImageCodec | AudioCodec | KnownCodec) -> nn.Module:
    """A `Codec`, freshly initialised."""
    match cfg:
        case ImageCodec():
            return ImageAutoencoder(cfg)
        case AudioCodec():
            return AudioAutoencoder(cfg)
        case KnownCodec():
            from mmfm.models.codecs import known  # transformers is imported only where it is asked for

            return known.build(cfg)


__all__ = ["AudioAutoencoder", "Codec", "ImageAutoencoder", "Trainable", "make_codec"]
