"""Third-party libraries that talk beside our own progress."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Have transformers and PEFT report errors alone; as it was before afterwards.

    What they warn each other of (PEFT uses names that transformers has deprecated) is for them to mend;
    a warning about a model's call is raised where torch.nn makes that call.
    """
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            for category in (FutureWarning, DeprecationWarning):
                warnings.filterwarnings(
                    "ignore", category=category, module=r"(transformers|peft|accelerate|torch\.nn)\."
                )
            # PEFT 0.21 looks for the layers of AdaLoRA's ranks by LoRA's rule, and finds none.
            warnings.filterwarnings("ignore", r"The following rank_pattern keys .*lora_E'\]", RuntimeWarning)
            # A head or embedding that an adapter has whole is meant to part from its twin.
            warnings.filterwarnings("ignore", r"Model has `tie_word_embeddings=True` and a tied layer")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
