"""Decide whether two photos show the same class: pairs of photos, scores of pairs from embeddings, metrics of the
scores."""

METHODS = ("cosine", "l2", "svm", "joint_bayes")
