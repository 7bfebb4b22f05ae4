"""Hidden states in two dimensions: PCA, t-SNE and, where umap-learn is installed, UMAP; a seed fixes the picture."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

import numpy as np

from sftlab.analysis.map.separation import is_constant
from sftlab.plan.pool import seed_from

_EXACT = 1000  # up to this many points, exact t-SNE takes seconds


class Projection(NamedTuple):
    """A map: name of the method, coordinates [N, 2], and a remark."""

    method: str
    map_N2: np.ndarray
    note: str


def methods() -> list[str]:
    """Return the methods available here."""
    return ["t-SNE", "PCA", *(["UMAP"] if find_spec("umap") else [])]


def project(states_ND: np.ndarray, method: str, seed: int = 0) -> Projection:
    """Project hidden states; no coordinate is scaled before.

    Args:
        states_ND: Hidden states of queries.
        method: One of ``methods()``.
        seed: Seed of t-SNE (van der Maaten & Hinton 2008) and UMAP (McInnes et al. 2018, arXiv 1802.03426).

    Raises:
        ValueError: All states are the same.
    """
    states_ND = np.asarray(states_ND, dtype=np.float64)
    if is_constant(states_ND):
        raise ValueError(
            "--layer: there all queries have the same state: at layer 0 the last token of a prompt knows nothing of "
            "the rest. Draw a later layer, or use --pooling mean"
        )
    state = seed_from("projection", seed) % 2**32
    return {"PCA": _pca, "t-SNE": _tsne, "UMAP": _umap}[method](states_ND, state)


def _pca(states_ND: np.ndarray, state: int) -> Projection:
    from sklearn.decomposition import PCA

    pca = PCA(2, svd_solver="full")
    map_N2 = pca.fit_transform(states_ND)
    first, second = pca.explained_variance_ratio_
    return Projection("PCA", map_N2, f"{first:.0%} and {second:.0%} of the variance")


def _tsne(states_ND: np.ndarray, state: int) -> Projection:
    from sklearn.manifold import TSNE

    count = len(states_ND)
    perplexity = min(30, (count - 1) // 3)
    method = "exact" if count <= _EXACT else "barnes_hut"
    tsne = TSNE(perplexity=perplexity, init="pca", method=method, random_state=state)
    return Projection("t-SNE", tsne.fit_transform(states_ND), f"perplexity {perplexity}, from PCA")


def _umap(states_ND: np.ndarray, state: int) -> Projection:
    from umap import UMAP

    neighbours = min(15, len(states_ND) - 1)
    umap = UMAP(n_neighbors=neighbours, random_state=state, n_jobs=1)
    return Projection("UMAP", umap.fit_transform(states_ND), f"{neighbours} neighbours")
