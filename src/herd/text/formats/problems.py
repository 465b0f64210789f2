"""What a template's failures become: one clear error that names the template."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jinja2 import TemplateError

from herd.errors import FileProblem, HerdError
from herd.text.formats.budget import OverBudget


@contextmanager
def template_problems(label: str) -> Iterator[None]:
    """Whatever a template raises becomes a `FileProblem`; our own errors pass."""
    try:
        yield
    except HerdError:
        raise
    except OverBudget as error:
        raise FileProblem(f"the chat template of this model ({label}) wants {error}. It is not run; nothing was lost.") from None
    except (RecursionError, MemoryError):
        raise FileProblem(f"the chat template of this model ({label}) is nested too deeply. It is not run.") from None
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        raise FileProblem(f"the chat template of this model ({label}{where}) cannot be used: {str(error.message)[:300]}.") from None
    except (SyntaxError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise FileProblem(f"the chat template of this model ({label}) fails: {type(error).__name__}: {str(error)[:300]}.") from None
