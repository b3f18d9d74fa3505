"""Networks: normalised images -> {head: logits}. Plain torch and timm."""
