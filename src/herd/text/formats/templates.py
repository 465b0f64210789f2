"""Jinja templates of formats that are known by name: what a model's files say that was taught one, for programs that read templates.

Each writes what the format's own class writes; tests hold the two against each other. Source of the syntax: Hugging Face's
documentation of chat templates.
"""

from __future__ import annotations

from herd.text.formats.chatml import ChatML
from herd.text.formats.llama2 import Llama2
from herd.text.formats.llama3 import DATE, Llama3
from herd.text.formats.llama4 import Llama4
from herd.text.formats.parts import ChatFormat
from herd.text.formats.prompts import JSON_CALLS

_CHATML = (
    "{% for message in messages %}@first@{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CHATML_SYSTEM = "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n@system@<|im_end|>\n' }}{% endif %}"
_LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set lead = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set lead = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant speak in turn') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ((lead if loop.first else '') + message['content']) | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_TEXT = "{{ message['content'] | trim }}"
_PARTS = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|image|>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
)
_SIGN_ON = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0] %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = none %}{% set turns = messages %}{% endif %}"
)
_FUNCTIONS = (
    "{% if tools %}{% if not turns or turns[0]['role'] != 'user' %}"
    "{{ raise_exception('functions are described in the first message, which must be a user\\'s') }}{% endif %}"
    "@user@{{ '" + JSON_CALLS.replace("\n", "\\n") + "' }}"
    "{% for tool in tools %}{{ tool | tojson(indent=4) + '\n\n' }}{% endfor %}"
    "{{ turns[0]['content'] | trim + '@end@' }}{% set turns = turns[1:] %}{% endif %}"
)
_TURNS = (
    "{% for message in turns %}{% if message['role'] in ('tool', 'ipython') %}"
    "@ipython@{{ message['content'] | tojson }}{{ '@result_end@' }}"
    "{% elif message['tool_calls'] %}@calls@{% else %}@role@@content@{{ '@end@' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}@assistant@{% endif %}"
)
_ONE_CALL = (
    "{% if message['tool_calls'] | length > 1 %}{{ raise_exception('a message of this model has one call') }}{% endif %}"
    "{% set call = message['tool_calls'][0]['function'] %}@assistant@"
)
_JSON_CALL = """{{ '{"name": "' + call['name'] + '", "parameters": ' + call['arguments'] | tojson + '}' }}"""
_BUILT_IN = (
    "{% if builtin_tools and call['name'] in builtin_tools %}{{ '<|python_tag|>' + call['name'] + '.call(' }}"
    "{% for name, value in call['arguments'].items() %}{{ name + '=\"' + value + '\"' }}{% if not loop.last %}{{ ', ' }}{% endif %}"
    "{% endfor %}{{ ')' }}{% else %}" + _JSON_CALL + "{% endif %}"
    "{% if builtin_tools %}{{ '<|eom_id|>' }}{% else %}{{ '<|eot_id|>' }}{% endif %}"
)


def template_of(chat_format: ChatFormat) -> str | None:
    """The template that writes what this format does; None for formats that have none here."""
    match chat_format:
        case ChatML():
            system = chat_format.default_system
            first = "" if system is None else _CHATML_SYSTEM.replace("@system@", system)
            return None if chat_format.bos or "'" in (system or "") else _CHATML.replace("@first@", first)
        case Llama2():
            return _LLAMA2
        case Llama3(version="llama3"):
            return _filled("{{ bos_token }}{% set turns = messages %}" + _TURNS, _llama3_header, end="<|eot_id|>", content=_TEXT, calls="")
        case Llama3():
            return _llama31(chat_format.version)
        case Llama4():
            return _llama4()
        case _:
            return None


def _llama31(version: str) -> str:
    """Llama 3.1 and what followed: always a system message with dates, but before pictures."""
    has_built_ins, sees = version == "llama3.1", version == "llama3.2-vision"
    lines = "{% if tools or builtin_tools %}{{ 'Environment: ipython\n' }}{% endif %}"
    if has_built_ins:
        lines += (
            "{% if builtin_tools %}{{ 'Tools: ' + builtin_tools | reject('equalto', 'code_interpreter') | join(', ') + '\n\n' }}{% endif %}"
        )
    dates = "{{ 'Cutting Knowledge Date: December 2023\nToday Date: ' + (date_string or '@date@') + '\n\n' }}".replace("@date@", DATE)
    said = "{% filter trim %}" + _PARTS.replace("message[", "system[") + "{% endfilter %}" if sees else "{{ system['content'] | trim }}"
    text = "{% if system %}" + said + "{% endif %}"
    head = "@system@" + lines + dates + text + "{{ '@end@' }}"
    if sees:  # a system message is there unless a picture is
        seen = "{% set seen = namespace(any=false) %}{% for message in messages %}{% if message['content'] is not string %}"
        seen += "{% for part in message['content'] or [] %}{% if part['type'] == 'image' %}{% set seen.any = true %}{% endif %}{% endfor %}"
        head = seen + "{% endif %}{% endfor %}{% if system or not seen.any %}" + head + "{% endif %}"
    whole = "{% if date_string is not defined %}{% set date_string = none %}{% endif %}"
    whole += "{% if builtin_tools is not defined %}{% set builtin_tools = none %}{% endif %}"
    calls = _ONE_CALL + (_BUILT_IN if has_built_ins else _JSON_CALL + "{{ '@end@' }}")
    return _filled(whole + _SIGN_ON + head + _FUNCTIONS + _TURNS, _llama3_header, "<|eot_id|>", _PARTS if sees else _TEXT, calls)


def _llama4() -> str:
    head = (
        "{% if system %}@system@{% if tools %}{{ 'Environment: ipython\n' }}{% endif %}{{ system['content'] | trim + '@end@' }}{% endif %}"
    )
    call = _JSON_CALL.replace("call[", "each['function'][")
    calls = (
        "@assistant@{{ '<|python_start|>' + (message['content'] or '') + '<|python_end|>' }}"
        "{% for each in message['tool_calls'] %}" + call + "{% endfor %}{{ '@end@' }}"
    )
    return _filled(_SIGN_ON + head + _FUNCTIONS + _TURNS, _llama4_header, "<|eot|>", _PARTS, calls)


def _filled(template: str, header: str, end: str, content: str, calls: str) -> str:
    """The frame of a family put into its places. header: of a message by `@`."""
    for name, text in (("calls", calls), ("content", content)):
        template = template.replace(f"@{name}@", text)
    template = template.replace("@role@", header.replace("@", "' + message['role'] + '"))
    for role in ("assistant", "system", "user", "ipython"):
        template = template.replace(f"@{role}@", header.replace("@", role))
    return template.replace("@result_end@", end).replace("@end@", end)


_llama3_header = "{{ '<|start_header_id|>@<|end_header_id|>\n\n' }}"
_llama4_header = "{{ '<|header_start|>@<|header_end|>\n\n' }}"
