"""`python -m forward_influence.lm_eval run ...`: the harness's command line with our model and our tasks."""

from __future__ import annotations

import os
import sys
from typing import Any

from forward_influence.cli.output import make_writable
from forward_influence.errors import ForwardInfluenceError
from forward_influence.integrations.lm_eval import register, task_folder
from forward_influence.utils import threads


def main() -> None:
    """Hand over to the harness; our errors are one line, exit code 2 for requests that cannot be met, else 1."""
    make_writable()
    threads.prepare()
    try:
        register()
        from lm_eval._cli import HarnessCLI
        from lm_eval.utils import setup_logging

        setup_logging()
        harness = HarnessCLI()
        arguments = harness.parse_args()
        with_own_tasks(arguments)
        harness.execute(arguments)
    except ForwardInfluenceError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(error.exit_code)
    except (ValueError, TypeError) as error:  # how the harness says that a request is wrong
        if os.environ.get("LMEVAL_LOG_LEVEL", "").upper() == "DEBUG":
            raise
        said = " ".join(str(error).split())
        sys.stderr.write(f"error: {said} ({type(error).__name__} in the harness; LMEVAL_LOG_LEVEL=debug shows where)\n")
        sys.exit(2)


def with_own_tasks(arguments: Any) -> None:
    """Add our task folder to the harness's own and to the one that is included on the command line or in YAML."""
    given = getattr(arguments, "include_path", None)
    if given is None and getattr(arguments, "config", None):
        from lm_eval.config.evaluate_config import EvaluatorConfig

        given = EvaluatorConfig.load_yaml_config(arguments.config).get("include_path")
    own = str(task_folder())
    arguments.include_path = [own] if given is None else [own, str(given)]


if __name__ == "__main__":
    main()
