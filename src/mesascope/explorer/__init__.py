"""Live explorer: a local page that shows the forward pass of one model on a prompt, and what edits change."""

from mesascope.explorer.server import create_app, serve_explorer
from mesascope.explorer.subject import (
    ExploredModel,
    explore_model,
    explore_task_model,
    open_explored_model,
    open_explored_run,
)
from mesascope.explorer.vector_views import (
    view_objective,
    view_term_ablation,
    view_term_attribution,
    view_term_lens,
    view_term_patching,
    view_terms,
)
from mesascope.explorer.views import (
    view_ablation,
    view_attribution,
    view_lens,
    view_patching,
    view_pattern,
    view_tokens,
)

__all__ = [
    "ExploredModel",
    "create_app",
    "explore_model",
    "explore_task_model",
    "open_explored_model",
    "open_explored_run",
    "serve_explorer",
    "view_ablation",
    "view_attribution",
    "view_lens",
    "view_objective",
    "view_patching",
    "view_pattern",
    "view_term_ablation",
    "view_term_attribution",
    "view_term_lens",
    "view_term_patching",
    "view_terms",
    "view_tokens",
]
