"""Our compressors as a model of lm-evaluation-harness, so that any of its tasks runs with a compressed cache.

    python -m forward_influence.lm_eval run --model forward_influence \
        --model_args pretrained=smollm2-135m,compressor=infokv,budget=0.25 --tasks fi_needle arc_easy --limit 20

The harness loads no outside models by itself: this registers ours and hands over to the harness's own command line.
"""

from __future__ import annotations

from pathlib import Path

from forward_influence.errors import UsageError

MODEL = "forward_influence"


def register() -> None:
    """Make the harness know our model; it is imported when it is asked for.

    Raises:
        UsageError: the harness is not installed.
    """
    try:
        import lm_eval.models  # noqa: F401  its own: it looks for them only as long as it knows none
        from lm_eval.api.registry import model_registry
    except ImportError as error:
        raise UsageError('lm-eval is missing; install the extra: pip install "forward-influence[evaluate]"') from error
    if MODEL not in model_registry:
        model_registry.register(MODEL, target="forward_influence.integrations.lm_eval.model:CompressedModel")


def task_folder() -> Path:
    """Where our task files are, for the harness's `--include_path`."""
    return Path(__file__).parent / "tasks"
