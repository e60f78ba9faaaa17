"""The hook function of edited forward passes: it knows the columns of a pass, also those in a key-value cache."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from mesascope.activations._model_structure import ModelStructure
from mesascope.activations.edits import Edit, block_index, replace_block
from mesascope.activations.forward import first_position_id
from mesascope.activations.generation._validate_edits import check_independence, select_columns
from mesascope.activations.padding.masks import POSITION_AXES, find_real_entries
from mesascope.activations.sites import UnsupportedModel, get_site
from mesascope.activations.validation.hook_points import validate_hook_points

CACHED_SITES = ("key", "value")  # the attention function receives those of all columns
CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params")  # the first since transformers 5.24


@dataclass(frozen=True, kw_only=True)
class PassColumns:
    """The columns of one forward pass.

    Attributes:
        past: the number of columns in the cache.
        new: the number of columns that are computed.
        mask: 1 where a column, of all, is not padding; ``None`` without padding.
    """

    past: int
    new: int
    mask: Int[Tensor, "batch pos"] | None

    @property
    def total(self) -> int:
        """The number of all columns."""
        return self.past + self.new

    def range_of(self, site: str, axis: str) -> range:
        """Return the columns along an axis of positions of a site.

        Args:
            site: the name of the site.
            axis: the axis.
        """
        return range(self.total) if site in CACHED_SITES or axis == "key" else range(self.past, self.total)


class PassEdits:
    """Hook function that applies edits in every forward pass.

    Args:
        model: the model.
        structure: its structure.
        edits: the edits, applied in order.
        edited_layers: for each edit, the layers that it edits.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        structure: ModelStructure,
        edits: Sequence[Edit],
        edited_layers: Sequence[Sequence[int]],
    ) -> None:
        self._model, self._structure, self._edits, self._edited_layers = model, structure, edits, edited_layers
        self._columns: PassColumns | None = None
        self._caches: WeakSet[Any] = WeakSet()  # whose columns have all been edited
        self._is_attached = self._is_validating = False
        self._checked: set[int] = set()
        self._had_effect: set[int] = set()

    @property
    def layers_by_site(self) -> dict[str, list[int]]:
        """The layers of every edited site."""
        layers: dict[str, set[int]] = {}
        for edit, chosen in zip(self._edits, self._edited_layers, strict=True):
            layers.setdefault(edit.site, set()).update(chosen)
        return {site: sorted(chosen) for site, chosen in layers.items()}

    @property
    def edits_without_effect(self) -> list[Edit]:
        """The edits that have changed no bit in any pass."""
        return [edit for number, edit in enumerate(self._edits) if number not in self._had_effect]

    def start_pass(self, attach: Callable[[], None], model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Find the columns of a forward pass; a pre-forward hook of the model.

        Args:
            attach: attaches the hooks within the model; it is called in the first pass, after the checks.
            model: the model.
            args: positional arguments.
            kwargs: keyword arguments.

        Raises:
            UnsupportedModel: the columns are not known, or capturing changes the output.
            ValueError: an edit reaches columns that were computed before.
        """
        if self._is_validating:
            return
        inputs = args[0] if args else kwargs.get(self._model.main_input_name)
        inputs = kwargs.get("inputs_embeds") if inputs is None else inputs
        if not isinstance(inputs, Tensor):
            raise UnsupportedModel(
                f"a forward pass must have inputs, but got {', '.join(kwargs) or 'none'}; pass input_ids"
            )
        cache = _find_cache(args, kwargs)
        past = 0 if cache is None else int(cache.get_seq_length())
        self._columns = PassColumns(past=past, new=inputs.shape[1], mask=_read_mask(kwargs, past + inputs.shape[1]))
        if past == 0 and cache is not None:
            self._caches.add(cache)
        if past and cache not in self._caches:
            self._check_past_not_edited(past)
        if not self._is_attached:
            if past == 0 and not inputs.is_floating_point():
                self._validate(inputs)
            attach()
            self._is_attached = True

    def end_pass(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """Remember the cache that a pass over the first columns has made; a forward hook of the model.

        Args:
            model: the model.
            args: positional arguments.
            kwargs: keyword arguments.
            output: the output of the model.
        """
        made = [value for value in output.values() if isinstance(value, Cache)] if isinstance(output, Mapping) else []
        if self._columns is not None and self._columns.past == 0 and not self._is_validating:
            self._caches.update(made)

    def __call__(self, site: str, layer: int, value: Float[Tensor, "batch *rest"]) -> Float[Tensor, "..."] | None:
        """Return the activation after its edits, or ``None`` if none has an effect; this is the hook function."""
        if self._columns is None:
            return None
        replacement = None
        for number, edit in enumerate(self._edits):
            if edit.site == site and layer in self._edited_layers[number]:
                changed = self._apply(number, edit, value, layer, self._columns)
                if changed is not None:
                    value = replacement = changed
                    self._had_effect.add(number)
        return replacement

    def _apply(
        self, number: int, edit: Edit, value: Float[Tensor, "..."], layer: int, columns: PassColumns
    ) -> Float[Tensor, "..."] | None:
        """Return an activation after one edit; ``None`` if the edit changes no bit."""
        axes = get_site(edit.site).axes_within_layer
        index, local = [], []
        for axis, size in zip(axes, value.shape, strict=True):
            if axis in POSITION_AXES:
                available = columns.range_of(edit.site, axis)
                self._check_size(edit.site, axis, size, len(available))
                chosen = [column for column in select_columns(edit, axis, columns.total) if column in available]
                start = available.start
            else:
                chosen, start = edit.edited_indices(axis, size), 0
            if not chosen:
                return None
            index.append(torch.tensor(chosen, device=value.device))
            local.append(index[-1] - start)
        block = block_index(local)
        old = value[block].clone()
        compute = partial(edit.compute_replacement, layer=layer, index=index)
        if number not in self._checked:
            check_independence(edit, old, columns.total, compute)
            self._checked.add(number)
        new = compute(old)
        if columns.mask is not None:
            real = find_real_entries(axes, index, columns.mask)
            new = torch.where(real.to(old.device), new, old)
        return replace_block(value, block, old, new)

    def _check_size(self, site: str, axis: str, size: int, expected: int) -> None:
        if size != expected:
            raise UnsupportedModel(
                f"the {axis} axis of {site} must have all {expected} columns so far, but has {size} in "
                f"{type(self._model).__name__}; its cache may be static or a sliding window: edit another site, or "
                "pass use_cache=False"
            )

    def _check_past_not_edited(self, past: int) -> None:
        for edit in self._edits:
            axes = [axis for axis in POSITION_AXES[:2] if axis in get_site(edit.site).axes]
            reached = [column for axis in axes for column in select_columns(edit, axis, past)]
            if reached:
                raise ValueError(
                    f"an edit must not reach positions that were computed before, but the cache has {past} and the "
                    f"edit of {edit.site} selects column {reached[0]}; compute the cache inside the block, or select "
                    f"columns from {past} on with where={{{axes[0]!r}: slice({past}, None)}}"
                )

    def _validate(self, inputs: Tensor) -> None:
        """Check on the prompt that hooks do not change the output, as `capture` does."""
        assert self._columns is not None
        mask = self._columns.mask
        self._is_validating = True
        try:
            with torch.no_grad():
                if mask is not None:
                    first_position_id(self._model, inputs[mask.bool()][0])
                validate_hook_points(self._model, self._structure, self.layers_by_site, inputs, mask)
        finally:
            self._is_validating = False


def _find_cache(args: tuple, kwargs: Mapping[str, Any]) -> Cache | None:
    """Return the cache among the arguments of a pass, under any name: versions of transformers differ in it.

    A cache that is missed would shift the columns of every edit.
    """
    for name in CACHE_ARGUMENTS:
        given = kwargs.get(name)
        if not isinstance(given, Cache | None):
            raise UnsupportedModel(
                f"{name} must be a Cache of transformers, but got a {type(given).__name__}; use the default cache"
            )
    caches = [value for value in (*args, *kwargs.values()) if isinstance(value, Cache)]
    if len(caches) > 1:
        raise UnsupportedModel(f"a forward pass must have one cache, but got {len(caches)}; pass one")
    return caches[0] if caches else None


def _read_mask(kwargs: Mapping[str, Any], total: int) -> Int[Tensor, "batch pos"] | None:
    """Return the attention mask over all columns; ``None`` without padding."""
    mask = kwargs.get("attention_mask")
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] != total:
        given = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise UnsupportedModel(
            f"attention_mask must be (batch, pos) over all {total} columns, cached ones included, but got {given}; use "
            "the default dynamic cache"
        )
    return None if bool(mask.bool().all()) else mask.long()
