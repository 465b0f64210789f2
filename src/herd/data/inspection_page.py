"""An inspection as one page of HTML that needs nothing else: every token of the examples, and the loss that it carries."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from herd.data.inspection import Inspection, kinds
from herd.data.tokenising import Example, Tokenising

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c; background: #fff }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #ccc; border-radius: 6px; padding: .75rem; line-height: 1.8 }
pre span { border-radius: 3px; box-shadow: inset 0 0 0 1px #0001 }
.read { color: #666 } .frame { color: #2251a8 } .picture { color: #8a2c8a }
.learned { background: #cfeccd } .ends { background: #6cc46a }
table { border-collapse: collapse } td, th { padding: .1rem .75rem .1rem 0; text-align: left; vertical-align: top }
.bar { background: #6cc46a; height: .8rem; display: inline-block }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #eee } pre { border-color: #444 } .read { color: #999 }
  .frame { color: #8fb3ff } .picture { color: #e39be3 } .learned { background: #1f4a1e } .ends { background: #2f8a2d } }
"""


def page(found: Inspection, tokenising: Tokenising, model: str) -> str:
    """The whole page."""
    return "".join(_page(found, tokenising, model))


def _page(found: Inspection, tokenising: Tokenising, model: str) -> Iterator[str]:
    name = "none" if tokenising.chat_format is None else tokenising.chat_format.name
    yield "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>What would be learned"
    yield f"</title><style>{_STYLE}</style><h1>What would be learned</h1><table>"
    rows = {
        "Model": model,
        "Chat format": name,
        "Data": ", ".join(map(str, found.account.files)),
        "SHA-256": found.sha256,
        "Examples": f"{len(found.lengths):,}",
        "Tokens": f"{found.num_tokens:,}, of which {found.num_learned:,} carry loss",
        "Duplicates": f"{found.exact:,} exactly" + ("" if found.near is None else f", {found.near:,} nearly"),
    }
    yield "".join(f"<tr><th>{escape(title)}<td>{escape(text)}" for title, text in rows.items())
    yield f"</table><h2>Records</h2><ul>{''.join(f'<li>{escape(line)}' for line in found.account.lines())}</ul>"
    yield "<h2>Lengths</h2><table>"
    most = max((count for _, _, count in found.histogram()), default=1)
    for begin, end, count in found.histogram():
        yield f"<tr><td>{begin:,} to {end - 1:,} tokens<td><span class=bar style='width:{20 * count / most:.2f}rem'></span> {count:,}"
    yield "</table><h2>Examples</h2><p>Green carries loss, dark green is a control token that does; point at a token for its id.</p>"
    for group in found.shown:
        for example in group:
            yield f"<h3>{escape(str(example.place))}</h3><p>{len(example.tokens):,} tokens, {example.num_learned:,} with loss</p><pre>"
            yield from _tokens(example, tokenising)
            yield "</pre>"


def _tokens(example: Example, tokenising: Tokenising) -> Iterator[str]:
    for token, kind, weight in zip(example.tokens, kinds(example, tokenising), example.weights, strict=True):
        text = tokenising.tokenizer.token_bytes(token).decode("utf-8", "replace")
        shown = "▨" if kind == "picture" else escape(text).replace("\n", "↵\n")
        yield f"<span class={kind} title='id {token}, weight {weight:g}'>{shown}</span>"
