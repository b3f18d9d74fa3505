"""A trained network as others' code takes it: ONNX, torch.export, timm, a folder for the Hugging Face hub."""
