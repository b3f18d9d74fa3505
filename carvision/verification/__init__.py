"""Decide whether two photos show the same class: pairs, their scores from embeddings, metrics of the scores."""

METHODS = ("cosine", "l2", "svm", "joint_bayes")
