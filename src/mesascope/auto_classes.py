"""Registration of the package's models with the Auto classes of transformers, which neither of them imports early."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

AUTO_MODULE = "transformers.models.auto.modeling_auto"  # defines AutoModel and AutoModelForCausalLM
MODELS = (  # module and name of a configuration, then of its model
    ("mesascope.models.config", "DecoderConfig", "mesascope.models.transformer", "Decoder"),
    (
        "mesascope.models.recurrent.config",
        "RecurrentConfig",
        "mesascope.models.recurrent.model",
        "RecurrentTransformer",
    ),
    (
        "mesascope.models.encoder_decoder.config",
        "EncoderDecoderConfig",
        "mesascope.models.encoder_decoder.model",
        "EncoderDecoder",
    ),
)


def register_auto_classes() -> None:
    """Register the models with AutoConfig, AutoModel and AutoModelForCausalLM: now, or when transformers defines them.

    Only configurations are imported. A model class is imported when a model is built or loaded.
    """
    if AUTO_MODULE in sys.modules:
        _register_models()
    elif not any(isinstance(finder, _RegisteringFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegisteringFinder())


def _register_models() -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    for config_module, config_name, model_module, model_name in MODELS:
        if model_module in sys.modules:
            continue  # it has registered its class itself
        config = getattr(import_module(config_module), config_name)
        model: Any = _DeferredModel(model_name, (), {"config_class": config, "_module": model_module})
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)


class _DeferredModel(type):
    """A class that stands for a model class and has all of its attributes; the first access imports it."""

    _module: str

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(getattr(import_module(cls._module), cls.__name__), name)


class _RegisteringFinder(MetaPathFinder):
    """Registers the models right after transformers has defined the Auto classes."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != AUTO_MODULE:
            return None
        sys.meta_path.remove(self)  # once, and so that the search below finds the module itself
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(Loader):
    """Loads a module as its own loader does, then registers the models."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register_models()
