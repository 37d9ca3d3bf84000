"""Models for other programs: graphs for ONNX Runtime and torch.export, folders for open_clip, names for timm."""
