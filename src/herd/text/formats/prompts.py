"""The words with which Llama models were taught that functions are offered. They are data: models know them to the letter.

Two notations: as the published templates ask (a JSON object for a call), and as Meta's own pages on prompts ask (Python's notation
from Llama 3.2 on; JSON in 3.1). Descriptions and schemas are content wherever they stand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from herd.text.tools import Tool

JSON_CALLS = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best answers the"
    ' given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
    "Do not use variables.\n\n"
)
_META_JSON = (
    "Answer the user's question by making use of the following functions if needed.\nIf none of the function can be used, please say"
    " so.\nHere is a list of functions in JSON format:\n{functions}\n\nReturn function calls in JSON format."
)
_META_PYTHON = """\
You are an expert in composing functions. You are given a question and a set of possible functions.
Based on the question, you will need to make one or more function/tool calls to achieve the purpose.
If none of the function can be used, point it out. If the given question lacks the parameters required by the function,
also point it out. You should only return the function call in tools call sections.

If you decide to invoke any of the function(s), you MUST put it in the format of \
[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]
You SHOULD NOT include any other text in the response.

Here is a list of functions in JSON format that you can invoke.

{functions}"""
_META_LLAMA4 = """\
You are a helpful assistant and an expert in function composition. You can answer general questions using your internal knowledge OR \
invoke functions when necessary. Follow these strict guidelines:

1. FUNCTION CALLS:
- ONLY use functions that are EXPLICITLY listed in the function list below
- If NO functions are listed (empty function list []), respond ONLY with internal knowledge or "I don't have access to \
[Unavailable service] information"
- If a function is not in the list, respond ONLY with internal knowledge or "I don't have access to [Unavailable service] information"
- If ALL required parameters are present AND the query EXACTLY matches a listed function's purpose: output ONLY the function call(s)
- Use exact format: [func_name1(param1=value1, param2=value2), func_name2(...)]
Examples:
CORRECT: [get_weather(location="Vancouver"), calculate_route(start="Boston", end="New York")] <- Only if get_weather and \
calculate_route are in function list
INCORRECT: get_weather(location="New York")
INCORRECT: Let me check the weather: [get_weather(location="New York")]
INCORRECT: [get_events(location="Singapore")] <- If function not in list

2. RESPONSE RULES:
- For pure function requests matching a listed function: ONLY output the function call(s)
- For knowledge questions: ONLY output text
- For missing parameters: ONLY request the specific missing parameters
- For unavailable services (not in function list): output ONLY with internal knowledge or "I don't have access to \
[Unavailable service] information". Do NOT execute a function call.
- If the query asks for information beyond what a listed function provides: output ONLY with internal knowledge about your limitations
- NEVER combine text and function calls in the same response
- NEVER suggest alternative functions when the requested service is unavailable
- NEVER create or invent new functions not listed below

3. STRICT BOUNDARIES:
- ONLY use functions from the list below - no exceptions
- NEVER use a function as an alternative to unavailable information
- NEVER call functions not present in the function list
- NEVER add explanatory text to function calls
- NEVER respond with empty brackets
- Use proper Python/JSON syntax for function calls
- Check the function list carefully before responding

4. TOOL RESPONSE HANDLING:
- When receiving tool responses: provide concise, natural language responses
- Don't repeat tool response verbatim
- Don't add supplementary information

Here is a list of functions in JSON format that you can invoke:
{functions}"""


def json_functions(tools: Iterable[Tool]) -> str:
    """What the published templates of Llama 3.1 to 4 write before the first user message."""
    return JSON_CALLS + "".join(f"{json.dumps(tool.written, ensure_ascii=False, indent=4)}\n\n" for tool in tools)


def meta_json_functions(tools: Sequence[Tool]) -> str:
    """A user message that offers functions to Llama 3.1, from Meta's page on it."""
    shown = [{"type": "function", "function": tool.function} for tool in tools]
    return _META_JSON.replace("{functions}", "\n".join(json.dumps(value, ensure_ascii=False, indent=4) for value in shown))


def meta_python_functions(tools: Sequence[Tool], *, llama4: bool) -> str:
    """A system message that offers functions to Llama 3.2 and 3.3, or to Llama 4, from Meta's pages on them."""
    listed = json.dumps([tool.function for tool in tools], ensure_ascii=False, indent=4)
    return (_META_LLAMA4 if llama4 else _META_PYTHON).replace("{functions}", listed)
