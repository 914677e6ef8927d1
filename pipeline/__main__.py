"""The door: ``python -m pipeline key=value …`` → a stage.

Exit codes: 0 done, 2 the user can mend it, 1 our fault, 130 interrupted, 141 nobody reads.
"""

from __future__ import annotations

import shlex
import sys
import traceback

from pipeline import startup
from pipeline.errors import Elsewhere, NobodyReads, OutOfTime, UserError


def main(words: list[str]) -> int:
    """Run one command and return its exit code."""
    try:
        return command(words)
    except UserError as problem:
        if "debug=true" in words:
            traceback.print_exc()
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted; all finished work is kept. Go on with: {_again(words)}", file=sys.stderr)
        return 130
    except NobodyReads:
        return 141
    except OutOfTime as end:
        print(f"\n{end}; all finished work is kept. Go on with: {_again(words)}")
        return 0
    except Exception as fault:
        if isinstance(fault, Elsewhere):
            print(f"error: {fault}", file=sys.stderr)
        else:
            traceback.print_exc()
        print("\nthis is a fault of the pipeline, not of your input; the lines above say where", file=sys.stderr)
        return 1


def _again(words: list[str]) -> str:
    """The command that goes on."""
    return shlex.join(["./run.sh", *(word for word in words if word != "overwrite=true")])


def command(words: list[str]) -> int:
    """Parse the words, settle the config and run the stage."""
    if words and words[0].lstrip("-") in ("help", "h"):
        from pipeline.stages.help import show

        show(" ".join(words[1:]))
        return 0
    from pipeline.config import parse_arguments
    from pipeline.stages import perform

    perform(parse_arguments(words))
    return 0


if __name__ == "__main__":
    startup.importing()
    sys.exit(main(sys.argv[1:]))
