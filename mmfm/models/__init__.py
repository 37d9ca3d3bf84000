"""Networks: layers, towers, the transformer that all modalities share, codecs, weights on disk."""
