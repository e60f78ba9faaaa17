"""Scores of a clustering against labels."""

import numpy as np
from jaxtyping import Int

Partition = Int[np.ndarray, " batch"]


def score_clustering(labels_true: Partition, labels_pred: Partition) -> dict[str, float]:
    """Compare clusters with labels by six scores; all are 1 if the two partitions are equal.

    With n_ij members of label i in cluster j, a_i of label i, b_j of cluster j, and C(n) = n (n - 1) / 2 pairs of n:
    pairwise F1 is 2 sum C(n_ij) / (sum C(a_i) + sum C(b_j)), and 1 if no pair is together in either; B-cubed
    precision and recall are the sums of n_ij² / b_j and of n_ij² / a_i over n, and purity is the sum of max_i n_ij
    over n.

    Args:
        labels_true: the label of each member.
        labels_pred: the cluster of each member.

    Returns:
        the scores by name.

    >>> score_clustering(np.array([0, 0, 1, 1]), np.array([7, 7, 7, 3]))["purity"]
    0.75
    """
    # imported here because it takes a second
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, v_measure_score

    table = _contingency_table(labels_true, labels_pred)
    of_label, of_cluster = table.sum(1), table.sum(0)
    pairs_in_both, pairs_in_either = _count_pairs(table), _count_pairs(of_label) + _count_pairs(of_cluster)
    precision, recall = (
        (table**2 / of_cluster).sum() / len(labels_true),
        (table**2 / of_label[:, None]).sum() / len(labels_true),
    )
    return {
        "pairwise_f1": 2 * pairs_in_both / pairs_in_either if pairs_in_either else 1.0,
        "bcubed_f1": float(2 * precision * recall / (precision + recall)),
        "v_measure": float(v_measure_score(labels_true, labels_pred)),
        "adjusted_mutual_information": float(adjusted_mutual_info_score(labels_true, labels_pred)),
        "adjusted_rand_index": float(adjusted_rand_score(labels_true, labels_pred)),
        "purity": float(table.max(0).sum() / len(labels_true)),
    }


def _contingency_table(labels_true: Partition, labels_pred: Partition) -> Int[np.ndarray, "label cluster"]:
    (labels, row), (names, column) = (np.unique(one, return_inverse=True) for one in (labels_true, labels_pred))
    return np.bincount(row * len(names) + column, minlength=len(labels) * len(names)).reshape(len(labels), len(names))


def _count_pairs(sizes: Int[np.ndarray, "..."]) -> int:
    return int((sizes * (sizes - 1)).sum()) // 2
