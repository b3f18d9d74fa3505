"""Networks from normalised images to {head: logits}, in plain torch and timm."""
