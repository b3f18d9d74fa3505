"""Export a trained network for other software: ONNX, torch.export, timm, a folder for the Hugging Face hub."""
