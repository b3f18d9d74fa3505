"""Are two photos of the same class? Pairs of photos, scores of pairs from embeddings, and figures of the scores."""

METHODS = ("cosine", "l2", "svm", "joint_bayes")
