"""The model that `wrap` returns: a plain module behind the interface of transformers."""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from mesascope.activations.sites import UnsupportedModel
from mesascope.argument_types import CODE_ERRORS, describe_value, summarize_error

ForwardFn = Callable[..., Any]
UntrainedFn = Callable[[int], nn.Module]
MODULE_NAME = "module"  # attribute of the wrapper that holds the module; module names begin with it


class WrappedConfig(PreTrainedConfig):
    """The configuration of a wrapped module, which has none of its own."""

    model_type = "mesascope_wrapped"


class WrappedModule(PreTrainedModel):
    """A plain module as a model; :func:`wrap` makes it.

    Attributes:
        module: the module; its weights are shared, not copied.
        forward_fn: function from the module and inputs to outputs.
        block_names: the names of the blocks, in order; ``None`` to find them.
        attention_name: the name of the attention module within a block; ``None`` to find it.
        context_length: the largest number of positions; ``None`` if it is not known.
        untrained_fn: function from a seed to the same module with random weights; ``None`` without one.
    """

    config_class = WrappedConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_set_attn_implementation_cached_value = True

    def __init__(
        self,
        module: nn.Module,
        forward_fn: ForwardFn,
        *,
        block_names: tuple[str, ...] | None,
        attention_name: str | None,
        context_length: int | None,
        accepts_mask: bool,
        untrained_fn: UntrainedFn | None,
    ) -> None:
        config = WrappedConfig()
        config.name_or_path = type(module).__name__
        config.max_position_embeddings = context_length
        super().__init__(config)
        self.module = module
        self.forward_fn, self.block_names, self.attention_name = forward_fn, block_names, attention_name
        self.untrained_fn, self.context_length, self._accepts_mask = untrained_fn, context_length, accepts_mask
        self.training = module.training

    def forward(
        self, input_ids: Shaped[Tensor, "batch pos *d_in"], attention_mask: Int[Tensor, "batch pos"] | None = None
    ) -> ModelOutput:
        """Run the module.

        Args:
            input_ids: tokens (batch, pos), or vectors (batch, pos, d_in).
            attention_mask: 0 at padding.

        Returns:
            The outputs (batch, pos, d_out) as ``logits``.

        Raises:
            UnsupportedModel: there is padding, and the forward function takes no mask; it fails; or the outputs have
                another shape.
        """
        if attention_mask is not None and not self._accepts_mask:
            raise UnsupportedModel(
                "padding needs a forward function with a parameter attention_mask, but that of the wrapped "
                f"{type(self.module).__name__} has none; pass sequences of one length, or another forward= to wrap"
            )
        given = {} if attention_mask is None else {"attention_mask": attention_mask}
        output = self._call_forward(input_ids, given)
        return ModelOutput(logits=self._validate_output(_read_output(output), input_ids))

    def _call_forward(self, inputs: Tensor, mask: Mapping[str, Tensor]) -> object:
        """Call the forward function; an error of its own code is the cause of the error that is raised."""
        try:
            return self.forward_fn(self.module, inputs, **mask)
        except torch.OutOfMemoryError:
            raise
        except CODE_ERRORS as error:
            if type(error).__module__.startswith("mesascope."):
                raise
            raise UnsupportedModel(
                f"the wrapped {type(self.module).__name__} must accept its inputs, here {describe_value(inputs)}, but "
                f"raised {summarize_error(error)}; pass forward= to wrap, a function from the module and the "
                "inputs to its outputs"
            ) from error

    def _validate_output(self, output: Any, inputs: Tensor) -> Tensor:
        if isinstance(output, Tensor) and output.ndim == 3 and output.shape[:2] == inputs.shape[:2]:
            return output
        given = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else describe_value(output)
        raise UnsupportedModel(
            f"the wrapped {type(self.module).__name__} must return outputs (batch, pos, d_out) at every position, with "
            f"(batch, pos) = {tuple(inputs.shape[:2])}, but returned {given}; pass forward= to wrap, a function from "
            "the module and the inputs to these outputs"
        )

    def get_input_embeddings(self) -> nn.Module:
        """Return the module that embeds tokens: the `nn.Embedding` whose input is the model's.

        It is found on the first call by running two tokens.

        Raises:
            NotImplementedError: there is none, as in a model of vectors.
        """
        if self not in _EMBEDDING_NAMES:
            _EMBEDDING_NAMES[self] = self._find_embedding()
        if not _EMBEDDING_NAMES[self]:
            raise NotImplementedError(f"the wrapped {type(self.module).__name__} has no embedding of tokens")
        return self.get_submodule(_EMBEDDING_NAMES[self])

    def _find_embedding(self) -> str:
        """Return the name of the embedding that reads the tokens; empty if no embedding does."""
        tokens = torch.tensor([[1, 0]], device=self.device)  # not 0, 1, which positions are
        readers: list[str] = []
        handles = []
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding):

                def note(_: nn.Module, args: tuple, name: str = name) -> None:
                    if args and isinstance(args[0], Tensor) and args[0].flatten().tolist() == [1, 0]:
                        readers.append(name)

                handles.append(module.register_forward_pre_hook(note))
        training = [module for module in self.modules() if module.training]
        try:
            self.eval()
            with torch.no_grad():
                self.forward_fn(self.module, tokens)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
            pass  # a model of vectors refuses tokens; the readers before an error count
        finally:
            for module in training:
                module.training = True
            for handle in handles:
                handle.remove()
        return readers[0] if readers else ""

    def build_untrained(self, seed: int) -> "WrappedModule":
        """Return the same model with random weights, by the function ``untrained`` that was given to `wrap`.

        Args:
            seed: the seed of the weights.

        Raises:
            UnsupportedModel: no function was given, or its module has other weights.
        """
        name = type(self.module).__name__
        if self.untrained_fn is None:
            raise UnsupportedModel(
                f"random weights need a function from a seed to an untrained {name}; pass untrained= to wrap"
            )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = self.untrained_fn(seed).to(self.device, self.dtype)
        shapes, expected = ({key: x.shape for key, x in one.state_dict().items()} for one in (module, self.module))
        if shapes != expected:
            raise UnsupportedModel(
                f"untrained= must return a {name} with weights of the same names and shapes, but "
                f"{type(module).__name__} has others; build it with the same arguments"
            )
        return WrappedModule(
            module.eval(),
            self.forward_fn,
            block_names=self.block_names,
            attention_name=self.attention_name,
            context_length=self.context_length,
            accepts_mask=self._accepts_mask,
            untrained_fn=self.untrained_fn,
        )

    def save_pretrained(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse to be saved.

        Raises:
            UnsupportedModel: always: a folder would lack the code of the module.
        """
        raise UnsupportedModel(
            "a wrapped module cannot be saved as a model of transformers, because a folder would lack its code; save "
            "the state_dict of the module with safetensors, and wrap the module again after loading it"
        )


# what was found by running a module is kept outside of it, because attributes are part of its fingerprint
_EMBEDDING_NAMES: WeakKeyDictionary[WrappedModule, str] = WeakKeyDictionary()


def _read_output(output: Any) -> Any:
    """Return the outputs in the result of a forward function: a tensor, ``logits`` of a mapping, or the first."""
    if isinstance(output, Mapping):
        return output.get("logits", output)
    return output[0] if isinstance(output, tuple | list) and output else output
