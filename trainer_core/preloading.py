"""Imports and look-ups that every run needs, done ahead in a process from which runs are forked. Computes nothing.

Libraries import much of this on first use; `tests/integration/test_warm_start.py` finds what the list lacks.
"""

import gc
from contextlib import suppress
from importlib import import_module

# Other versions of a library may lack some of them, and then need them not.
_OF_LIBRARIES = (
    "encodings.idna",
    "numpy.ctypeslib",
    "peft.utils.transformers_weight_conversion",
    "torch.profiler._cupti_monitor",
    "torch.utils.serialization.config",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen2.tokenization_qwen2",
    "transformers.models.qwen3.modeling_qwen3",
)


def preload() -> None:
    """Imports what a run on a Qwen model needs, and fills the caches that do not depend on the job."""
    # Imports stay in memory, and collecting garbage in them would take a tenth of the time.
    gc.disable()
    try:
        import_module("trainer_core.preference_trainer")
        for name in _OF_LIBRARIES:
            with suppress(ModuleNotFoundError):
                import_module(name)
    finally:
        gc.enable()
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    # The first call compiles a thousand regular expressions, for all models together.
    get_checkpoint_conversion_mapping("qwen2")
