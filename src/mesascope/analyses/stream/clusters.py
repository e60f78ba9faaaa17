"""Clusters of representations: k-means on the residual stream, compared with the labels of the sequences."""

import warnings
from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float
from threadpoolctl import threadpool_limits
from torch import Tensor, cat

from mesascope.activations import Capture, Reduction
from mesascope.analyses.base import analysis
from mesascope.analyses.nulls import Null, with_null
from mesascope.analyses.stream.clustering_scores import Partition, score_clustering
from mesascope.analyses.stream.probes import depth_names
from mesascope.axes import to_data_array

NUM_LAST_POSITIONS = (
    2  # positions stored during the forward pass: the last one, and the last one with a known next token
)
MAX_ITERATIONS = 100  # maximum iterations of Lloyd's algorithm; 1024 vectors of width 64 converge in 20 or fewer
SCORE_DESCRIPTIONS = {
    "pairwise_f1": "F1 over pairs of sequences: same cluster as a predictor of same label",
    "bcubed_f1": "B-cubed F1 of the clusters with respect to the labels",
    "v_measure": "V-measure of the clusters with respect to the labels",
    "adjusted_mutual_information": "mutual information of clusters and labels, adjusted for chance",
    "adjusted_rand_index": "Rand index of clusters and labels, adjusted for chance",
    "purity": "fraction of sequences with the most frequent label of their cluster",
}
SCORE_TITLES = {
    "pairwise_f1": "pairwise F1",
    "bcubed_f1": "B-cubed F1",
    "v_measure": "V-measure",
    "adjusted_rand_index": "adjusted Rand index",
}  # the others are titled by their names
HEADLINE_SCORES = ("pairwise_f1", "adjusted_rand_index")


def take_last_positions(stream: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch last d_model"]:
    """Return the residual stream at the last two positions.

    Args:
        stream: the residual stream (batch, pos, d_model).

    Returns:
        its last two positions.
    """
    return stream[:, -NUM_LAST_POSITIONS:]


LAST_POSITION_REDUCTIONS = {
    f"{site}_ending": Reduction(site=site, fn=take_last_positions, axes=("batch", "pos", "d_model"))
    for site in ("resid_pre", "resid_post")
}


@analysis(
    title="Clusters of representations",
    description="""k-means on the residual stream of one position per sequence (neither centred nor scaled), at the
    embedding and after each layer, with as many clusters as labels and the best of several initialisations. The
    clusters are compared with each of the batch's labels by pairwise F1, B-cubed F1 (Bagga and Baldwin 1998), V-measure
    (Rosenberg and Hirschberg 2007), adjusted mutual information (Vinh et al. 2010), the adjusted Rand index (Hubert and
    Arabie 1985) and purity; all are 1 for perfect agreement. The adjusted scores are 0 by chance; the others are not
    corrected for chance. Control: the same clusters compared with permuted labels.""",
    reductions=LAST_POSITION_REDUCTIONS,
)
def clusters(
    acts: Capture,
    labels: Sequence[str] = (),
    position: int = -1,
    starts: int = 4,
    draws: int = 2,
    seed: int = 0,
) -> xr.Dataset:
    """Cluster one position's residual stream by k-means at every depth, and compare the clusters with labels.

    There are as many clusters as labels.

    Args:
        acts: a capture of a batch with labels (:attr:`~mesascope.tasks.base.Batch.categorical_latents`).
        labels: names of the labels to compare with; all by default.
        position: the position that is clustered, counted from the end if negative. Before the last two positions, the
            capture must contain ``resid_pre`` and ``resid_post``.
        starts: runs of k-means with different initial centroids; the run with the smallest squared distances is used.
        draws: number of label permutations.
        seed: seed of the centroids and the permutations.

    Returns:
        six agreement scores (layer, stat), 1 if clusters and labels agree, each with its null of permuted labels
        (draw, layer, stat); and ``clusters`` (stat), the number of clusters.

    Raises:
        ValueError: there are no labels, no such label or position, or fewer than two sequences per label.
    """
    labels_true = _labels_at_position(acts, labels, resolve_position(acts, position))
    num_clusters = {name: len(np.unique(truth)) for name, truth in labels_true.items()}
    vectors = stream_at_position(acts, position).double().cpu().numpy()
    random = np.random.default_rng(seed)
    orders = [random.permutation(vectors.shape[1]) for _ in range(draws)]
    observed = np.empty((len(vectors), len(labels_true), len(SCORE_DESCRIPTIONS)))
    permuted = np.empty((draws, *observed.shape))
    with threadpool_limits(1):  # many such computations run at once, and each is small
        for layer, layer_vectors in enumerate(vectors):
            clusterings = {k: k_means(layer_vectors, k, starts, seed) for k in set(num_clusters.values())}
            for stat, (name, truth) in enumerate(labels_true.items()):
                observed[layer, stat] = _score_row(truth, clusterings[num_clusters[name]])
                for draw, order in enumerate(orders):
                    permuted[draw, layer, stat] = _score_row(truth[order], clusterings[num_clusters[name]])
    return _label_scores(acts, observed, permuted, num_clusters)


def k_means(vectors: Float[np.ndarray, "batch d_model"], k: int, starts: int = 4, seed: int = 0) -> Partition:
    """Assign each vector to a cluster by Lloyd's algorithm, with the best of several k-means++ initialisations.

    Equal vectors are in the same cluster, so there can be fewer than ``k`` clusters.

    Args:
        vectors: the vectors (batch, d_model).
        k: number of clusters.
        starts: number of initialisations.
        seed: seed of the initialisations.

    Returns:
        the cluster of each vector.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Number of distinct clusters", ConvergenceWarning)
        model = KMeans(k, max_iter=MAX_ITERATIONS, random_state=seed).set_params(n_init=starts)
        return model.fit_predict(vectors)


def stream_at_position(acts: Capture, position: int) -> Float[Tensor, "depth batch d_model"]:
    """Return the residual stream at one position, at the embedding and after each layer.

    Args:
        acts: a capture of the reductions of :data:`clusters`, or of ``resid_pre`` and ``resid_post``.
        position: the position, counted from the end if negative.

    Raises:
        ValueError: there is no such position, or only the last two were captured.
    """
    position_index, length = resolve_position(acts, position), acts.inputs.shape[1]
    parts = []
    for site, reduction_name in zip(("resid_pre", "resid_post"), LAST_POSITION_REDUCTIONS, strict=True):
        if site in acts:
            parts.append(acts[site][:, :, position_index])
            continue
        if position_index < length - NUM_LAST_POSITIONS:
            raise ValueError(
                f"the stream at position {position} must have been recorded, but only the last "
                f"{NUM_LAST_POSITIONS} positions were;"
                " capture resid_pre and resid_post too, or add them to the sites of the analysis with replace()"
            )
        parts.append(acts[reduction_name][:, :, position_index - length])
    return cat([parts[0][:1], parts[1]])


def resolve_position(acts: Capture, position: int) -> int:
    """Return a position counted from the start.

    Args:
        acts: a capture.
        position: the position, counted from the end if negative.

    Returns:
        the position, 0 or more.

    Raises:
        ValueError: the sequences are too short.
    """
    length = acts.inputs.shape[1]
    if not -length <= position < length:
        raise ValueError(f"position must lie within {length} positions, but got {position}")
    return position % length


def _labels_at_position(acts: Capture, labels: Sequence[str], position: int) -> dict[str, Partition]:
    available = {} if acts.batch is None else acts.batch.categorical_latents
    if not available:
        reason = "no batch" if acts.batch is None else "no such latents"
        raise ValueError(
            f"clusters needs a capture of a Batch with labels (integer latents at every position), but got {reason}"
        )
    labels = (labels,) if isinstance(labels, str) else labels
    unknown = [name for name in labels if name not in available]
    if unknown:
        raise ValueError(
            f"labels must be among those of the batch ({', '.join(available)}), but got {', '.join(unknown)}"
        )
    labels_true = {name: available[name][:, position].cpu().numpy() for name in (labels or available)}
    for name, truth in labels_true.items():
        num_labels = len(np.unique(truth))
        if len(truth) < 2 * num_labels:
            raise ValueError(
                f"there must be at least two sequences per label, but {len(truth)} have {num_labels} labels of "
                f"{name!r}; "
                "capture more sequences, or choose other labels with labels="
            )
    return labels_true


def _score_row(labels_true: Partition, labels_pred: Partition) -> list[float]:
    by_name = score_clustering(labels_true, labels_pred)
    return [by_name[name] for name in SCORE_DESCRIPTIONS]


def _label_scores(
    acts: Capture,
    observed: Float[np.ndarray, "layer stat score"],
    permuted: Float[np.ndarray, "draw layer stat score"],
    num_clusters: dict[str, int],
) -> xr.Dataset:
    coords = {"layer": depth_names(acts.layers), "stat": list(num_clusters)}

    def label_score(values: np.ndarray, *dims: str, about: str) -> xr.DataArray:
        return to_data_array(values, *dims, units="1", description=about, coords=coords)

    data: dict[str, xr.DataArray] = {}
    for k, (name, about) in enumerate(SCORE_DESCRIPTIONS.items()):
        display_attrs = {"headline": int(name in HEADLINE_SCORES), "over_training": int(name in HEADLINE_SCORES[:1])}
        display_attrs = {"title": SCORE_TITLES.get(name, name.replace("_", " ")), **display_attrs}
        score = label_score(observed[..., k], "layer", "stat", about=about).assign_attrs(display_attrs)
        null = label_score(permuted[..., k], "draw", "layer", "stat", about=f"{about}, with labels permuted")
        data |= with_null(name, score, Null(name="labels permuted", value=null))
    counts, about = list(num_clusters.values()), "number of clusters, which is the number of distinct labels"
    stats = {"stat": list(num_clusters)}
    data["clusters"] = to_data_array(counts, "stat", units="clusters", description=about, coords=stats)
    return xr.Dataset(data)
