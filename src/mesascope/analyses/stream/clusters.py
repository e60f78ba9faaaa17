"""Whether representations fall into the clusters that labels name."""

import warnings
from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits
from torch import Tensor, cat

from mesascope.activations import Capture, Reduction
from mesascope.analyses.base import measure
from mesascope.analyses.stream.probes import depth_names
from mesascope.axes import label

ENDING = 2  # positions kept while the model runs: the last, and the last that a next token is known of
ROUNDS = 100  # of Lloyd's algorithm in a start; 1024 vectors of 64 numbers settle in 20 or fewer
ABOUT = {
    "pairwise_f1": "pairs of sequences: F1 of lying in one cluster as a sign of having one label",
    "bcubed_f1": "B-cubed F1 of the clusters against the labels",
    "v_measure": "V-measure of the clusters against the labels",
    "adjusted_mutual_information": "mutual information of clusters and labels, adjusted for chance",
    "adjusted_rand_index": "Rand index of clusters and labels, adjusted for chance",
    "purity": "share of sequences that have the commonest label of their cluster",
}
TITLES = {
    "pairwise_f1": "pairwise F1",
    "bcubed_f1": "B-cubed F1",
    "v_measure": "V-measure",
    "adjusted_rand_index": "adjusted Rand index",
}  # the others are called by their names
HEADLINES = ("pairwise_f1", "adjusted_rand_index")

Sorted = Int[np.ndarray, " batch"]


def ending(stream: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch last d_model"]:
    """The last two positions."""
    return stream[:, -ENDING:]


ENDINGS = {
    f"{site}_ending": Reduction(site=site, fn=ending, axes=("batch", "pos", "d_model"))
    for site in ("resid_pre", "resid_post")
}


@measure(title="Clusters of representations", sites=[], reductions=ENDINGS, order=12)
def clusters(
    recorded: Capture,
    labels: Sequence[str] = (),
    position: int = -1,
    starts: int = 4,
    draws: int = 2,
    seed: int = 0,
) -> xr.Dataset:
    """Whether sequences of one label lie together: k-means, with as many clusters as there are labels and the best of
    several starts, on one position's vector of the residual stream per sequence, as it stands (neither centred nor
    scaled), at the embedding and after each layer. Found clusters are held against each of the batch's labels by
    pairwise F1, B-cubed F1 (Bagga and Baldwin 1998), V-measure (Rosenberg and Hirschberg 2007), adjusted mutual
    information (Vinh et al. 2010), the adjusted Rand index (Hubert and Arabie 1985) and purity; 1 is perfect in all of
    them. The adjusted ones are 0 by chance; the others are not corrected for chance, hence the control: the same
    clusters against permuted labels.

    Args:
        recorded: a capture of a batch with labels (:attr:`~mesascope.tasks.base.Batch.labels`).
        labels: names of those looked at; all by default.
        position: whose vectors are sorted, counted from the end where negative; before the last two, the capture must
            hold resid_pre and resid_post.
        starts: runs of k-means, each from other first centres; the one with the smallest squared distances counts.
        draws: permutations of the labels.
        seed: of first centres and permutations.

    Raises:
        ValueError: no labels, no such label or position, or fewer than two sequences a label.
    """
    if draws < 1 or starts < 1:
        raise ValueError(f"draws and starts must be 1 or more, but got {draws} and {starts}")
    truths = _truths(recorded, labels, place_of(recorded, position))
    counts = {name: len(np.unique(truth)) for name, truth in truths.items()}
    vectors = representations(recorded, position).double().cpu().numpy()
    random = np.random.default_rng(seed)
    orders = [random.permutation(vectors.shape[1]) for _ in range(draws)]
    real = np.empty((len(vectors), len(truths), len(ABOUT)))
    permuted = np.empty((draws, *real.shape))
    with threadpool_limits(1):  # many such computations run at once, and each is small
        for layer, each in enumerate(vectors):
            found = {k: k_means(each, k, starts, seed) for k in set(counts.values())}
            for stat, (name, truth) in enumerate(truths.items()):
                real[layer, stat] = _row(truth, found[counts[name]])
                for draw, order in enumerate(orders):
                    permuted[draw, layer, stat] = _row(truth[order], found[counts[name]])
    return _table(recorded, real, permuted, counts)


def scores(truth: Sorted, found: Sorted) -> dict[str, float]:
    """How well clusters agree with labels, in six ways; all are 1 where they are the same but for their names.

    With n_ij members of label i in cluster j, a_i of label i, b_j of cluster j, and C(n) = n (n - 1) / 2 pairs of n:
    pairwise F1 is 2 sum C(n_ij) / (sum C(a_i) + sum C(b_j)), and 1 where no pair is together in either; B-cubed
    precision and recall are the sums of n_ij² / b_j and of n_ij² / a_i over n, and purity that of max_i n_ij.

    Args:
        truth: the label of each member. found: its cluster.

    >>> scores(np.array([0, 0, 1, 1]), np.array([7, 7, 7, 3]))["purity"]
    0.75
    """
    # imported here: it takes a second, which whatever does not score clusters should not wait for
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, v_measure_score

    table = _contingency(truth, found)
    of_label, of_cluster = table.sum(1), table.sum(0)
    together, apart = _pairs(table), _pairs(of_label) + _pairs(of_cluster)
    precision, recall = (table**2 / of_cluster).sum() / len(truth), (table**2 / of_label[:, None]).sum() / len(truth)
    return {
        "pairwise_f1": 2 * together / apart if apart else 1.0,
        "bcubed_f1": float(2 * precision * recall / (precision + recall)),
        "v_measure": float(v_measure_score(truth, found)),
        "adjusted_mutual_information": float(adjusted_mutual_info_score(truth, found)),
        "adjusted_rand_index": float(adjusted_rand_score(truth, found)),
        "purity": float(table.max(0).sum() / len(truth)),
    }


def k_means(vectors: Float[np.ndarray, "batch d_model"], k: int, starts: int = 4, seed: int = 0) -> Sorted:
    """The cluster of each vector, by Lloyd's algorithm from the best of several starts (k-means++).

    Vectors that are the same fall into one cluster, so that there may be fewer than ``k``.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Number of distinct clusters", ConvergenceWarning)
        model = KMeans(k, max_iter=ROUNDS, random_state=seed).set_params(n_init=starts)
        return model.fit_predict(vectors)


def representations(recorded: Capture, position: int) -> Float[Tensor, "depth batch d_model"]:
    """The residual stream at one position, at the embedding and after each layer.

    Raises:
        ValueError: there is no such position, or the capture holds the last two only.
    """
    place, length = place_of(recorded, position), recorded.inputs.shape[1]
    parts = []
    for site, reduced in zip(("resid_pre", "resid_post"), ENDINGS, strict=True):
        if site in recorded:
            parts.append(recorded[site][:, :, place])
            continue
        if place < length - ENDING:
            raise ValueError(
                f"the stream at position {position} must have been recorded, but only the last {ENDING} positions were;"
                " capture resid_pre and resid_post too, or let the measure ask for them: replace(measure, sites=...)"
            )
        parts.append(recorded[reduced][:, :, place - length])
    return cat([parts[0][:1], parts[1]])


def place_of(recorded: Capture, position: int) -> int:
    """A position counted from the start.

    Raises:
        ValueError: no sequence is as long.
    """
    length = recorded.inputs.shape[1]
    if not -length <= position < length:
        raise ValueError(f"position must lie within {length} positions, but got {position}")
    return position % length


def _truths(recorded: Capture, labels: Sequence[str], place: int) -> dict[str, Sorted]:
    """The label of each sequence at a position, by the label's name."""
    known = {} if recorded.batch is None else recorded.batch.labels
    if not known:
        what = "no batch" if recorded.batch is None else "no such latents"
        raise ValueError(
            "clusters needs a capture of a Batch with labels, which are whole numbers at every position among its "
            f"latents, but there are {what}"
        )
    unknown = [name for name in labels if name not in known]
    if unknown:
        raise ValueError(f"labels must be of the batch ({', '.join(known)}), but got {', '.join(unknown)}")
    truths = {name: known[name][:, place].cpu().numpy() for name in (labels or known)}
    for name, truth in truths.items():
        several = len(np.unique(truth))
        if len(truth) < 2 * several:
            raise ValueError(
                f"there must be two sequences a label or more, but {len(truth)} have {several} labels of {name!r}; "
                "capture more sequences, or choose others by labels="
            )
    return truths


def _row(truth: Sorted, found: Sorted) -> list[float]:
    """The scores in the order of the results."""
    by_name = scores(truth, found)
    return [by_name[name] for name in ABOUT]


def _contingency(truth: Sorted, found: Sorted) -> Int[np.ndarray, "label cluster"]:
    """How many members each label has in each cluster."""
    (labels, row), (names, column) = (np.unique(one, return_inverse=True) for one in (truth, found))
    return np.bincount(row * len(names) + column, minlength=len(labels) * len(names)).reshape(len(labels), len(names))


def _pairs(sizes: Int[np.ndarray, "..."]) -> int:
    """The number of pairs within groups of these sizes."""
    return int((sizes * (sizes - 1)).sum()) // 2


def _table(
    recorded: Capture,
    real: Float[np.ndarray, "layer stat score"],
    permuted: Float[np.ndarray, "draw layer stat score"],
    counts: dict[str, int],
) -> xr.Dataset:
    """The scores with their names, each with its control."""
    stats = {"stat": list(counts)}
    coords = {"layer": depth_names(recorded.layers), **stats}
    data = {}
    for k, (name, about) in enumerate(ABOUT.items()):
        mark = {"headline": int(name in HEADLINES), "over_training": int(name in HEADLINES[:1])}
        mark = {"title": TITLES.get(name, name.replace("_", " ")), **mark}
        data[name] = label(real[..., k], "layer", "stat", units="1", about=about, coords=coords).assign_attrs(mark)
        data[f"{name}_permuted"] = label(
            permuted[..., k], "draw", "layer", "stat", units="1", about=f"{about}, with labels permuted", coords=coords
        ).assign_attrs(control_of=name, control="labels permuted")
    about = "clusters looked for: the number of different labels"
    data["clusters"] = label(list(counts.values()), "stat", units="clusters", about=about, coords=stats)
    return xr.Dataset(data)
