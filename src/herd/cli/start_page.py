"""What `herd serve` shows when it is ready: where it is, what it has, how far it goes, and lines to try it with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from herd.server.house import House


def start_page(house: House, url: str, model: str) -> str:
    """The page for a server at `url` whose first model is `model`."""
    lines = [f"herd serves {model} at {url}", ""]
    lines += [f"  {title.ljust(8)} {text}" for title, text in _rows(house, url, model)]
    lines += ["", *(f"  {line}" for line in _examples(url, model, house.settings.need_key))]
    return "\n".join([*lines, "", "Ctrl-C lets running answers finish and ends; twice ends at once."])


def _rows(house: House, url: str, model: str) -> Iterator[tuple[str, str]]:
    from herd.engine.page_files import LIMIT_BYTES
    from herd.planner.units import size
    from herd.server.page.routes import badges

    settings = house.settings
    for offer in house.pool.offers():
        facts = offer.facts
        if facts is None:
            yield "model", f"{offer.name}, loaded when it is asked for"
        elif offer.parent is None:
            seen = ", sees pictures" if facts.sees_pictures else ""
            yield "model", f"{offer.name}: {facts.num_parameters:,} parameters, {facts.context_length:,} tokens of context{seen}"
        else:
            yield "adapter", offer.name
    measured = house.pool.gauges()
    for name, gauges in measured.items():
        uses = ", ".join(f"{use} {size(num_bytes)}" for use, num_bytes in gauges.memory_bytes.items() if num_bytes) or "unknown"
        yield "memory", uses if len(measured) == 1 else f"{name}: {uses}"
    if settings.cache_folder is not None:
        yield "disk", f"keys and values in {settings.cache_folder}, up to {size(settings.cache_disk_bytes or LIMIT_BYTES)}"
    bounds = f"{settings.max_requests:,} requests at a time, {settings.deadline_s:g} s for each, {size(settings.max_body_bytes)} of body"
    yield "limits", bounds
    where = "this computer only" if settings.is_loopback else f"whoever reaches {settings.host}"
    yield "open to", f"{where}, {'with a key of `herd keys`' if settings.need_key else 'without a key'}"
    yield "docs", f"{url}/docs"
    for badge in badges(house.pool.offers()):
        yield "licence", f"{badge}. Whoever lets others use this shows that; the page at {url} does. `herd licence` says what else."


def _examples(url: str, model: str, need_key: bool) -> Iterator[str]:
    """Lines to copy: a shell, Python, JavaScript."""
    key = "YOUR-KEY" if need_key else "none"
    header = " -H 'authorization: Bearer YOUR-KEY'" if need_key else ""
    yield f"curl {url}/v1/chat/completions{header} -H 'content-type: application/json' \\"
    yield f"""  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'"""
    yield ""
    yield "from openai import OpenAI                                       # Python: pip install openai"
    yield f'client = OpenAI(base_url="{url}/v1", api_key="{key}")'
    yield f'print(client.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "Hello!"}}]))'
    yield ""
    yield 'import OpenAI from "openai";                                    // JavaScript: npm install openai'
    yield f'const client = new OpenAI({{ baseURL: "{url}/v1", apiKey: "{key}" }});'
    yield f'console.log(await client.chat.completions.create({{ model: "{model}", messages: [{{ role: "user", content: "Hello!" }}] }}));'
