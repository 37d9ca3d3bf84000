"""A run as other tools load it: open_clip, transformers, ONNX, torch.export, timm."""
