"""Chat templates of the kinds that published tokenizers bring, each as small as can be, and a tokenizer for them."""
# ruff: noqa: E501

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

HEAD = "{% for m in messages %}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"

CHATML = HEAD + "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}" + ASK
TRIMMING = HEAD + "{{ '<|im_start|>' + m.role + '\\n' + m.content | trim + '<|im_end|>\\n' }}{% endfor %}" + ASK
# Ends the last answer with the end of the text, earlier ones with the end of a turn.
TWO_ENDS = (
    HEAD + "{{ '<|im_start|>' + m.role + '\\n' + m.content }}"
    "{% if m.role == 'assistant' and loop.last %}{{ eos_token }}{% else %}{{ '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    + ASK
)
# Closes the whole text after the last turn unless asked to go on.
CLOSING = (
    HEAD + "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# Never says how an answer begins.
SILENT = HEAD + "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
# No system turn, strict alternation, nothing stands between question and answer.
STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{{ bos_token }}"
    + HEAD
    + "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
# The system turn is written into the last question: every earlier text changes when the conversation goes on.
SYSTEM_LAST = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set s = messages[0].content + '\\n\\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}"
    + HEAD
    + "{% if m.role == 'user' %}{% set last = loop.last or (loop.index == loop.length - 1) %}"
    "{{ '[INST] ' + (s if last else '') + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
# Thinking: a block in the last answer alone, reasoning of its own or inside of the content; tools and calls.
THINKING = (
    "{% if tools %}{{ '<|im_start|>system\\n' }}{% if messages[0].role == 'system' %}{{ messages[0].content + '\\n' }}"
    "{% endif %}{{ '# Tools\\n' }}{% for t in tools %}{{ t | tojson + '\\n' }}{% endfor %}{{ '<|im_end|>\\n' }}"
    "{% elif messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{% endif %}"
    "{% set ns = namespace(last=0) %}"
    + HEAD
    + "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    + HEAD
    + "{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% elif m.role == 'tool' %}{{ '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}"
    "{% elif m.role == 'assistant' %}{% set c = m.content %}{% set r = m.reasoning_content or '' %}"
    "{% if '</think>' in c %}{% set r = c.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\\n') %}{% endif %}{{ '<|im_start|>assistant\\n' }}"
    "{% if loop.index0 > ns.last and (loop.last or r) %}{{ '<think>\\n' + r.strip('\\n') + '\\n</think>\\n\\n' + c.lstrip('\\n') }}"
    "{% else %}{{ c }}{% endif %}"
    "{% for t in m.tool_calls or [] %}{{ '\\n' if not loop.first or c else '' }}{{ '<tool_call>\\n' }}"
    "{{ {'name': t.function.name, 'arguments': t.function.arguments} | tojson }}{{ '\\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endif %}{% endfor %}" + ASK
)
# Calls end with a token of their own, reasoning stands between special tokens that earlier answers end with.
CHANNELS = (
    HEAD
    + "{% if m.role == 'assistant' %}{% if m.tool_calls %}{{ '<|im_start|>assistant to=' + m.tool_calls[0].function.name"
    " + '<|msg|>' + m.tool_calls[0].function.arguments | tojson + '<|call|>' }}"
    "{% else %}{% if m.thinking and loop.last %}{{ '<|im_start|>assistant thinks<|msg|>' + m.thinking + '<|im_end|>' }}{% endif %}"
    "{{ '<|im_start|>assistant says<|msg|>' + m.content + ('<|return|>' if loop.last else '<|im_end|>') }}{% endif %}"
    "{% else %}{{ '<|im_start|>' + m.role + '<|msg|>' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)
# Wants the arguments of a call as text.
TEXT_ARGUMENTS = (
    HEAD + "{{ '<|im_start|>' + m.role + '\\n' + m.content }}{% for t in m.tool_calls or [] %}"
    "{{ t.function.name + '(' + t.function.arguments + ')' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}" + ASK
)

TEMPLATES = {
    "chatml": CHATML, "trimming": TRIMMING, "two ends": TWO_ENDS, "closing": CLOSING, "silent": SILENT, "strict": STRICT,
    "system last": SYSTEM_LAST, "thinking": THINKING, "channels": CHANNELS, "text arguments": TEXT_ARGUMENTS,
}  # fmt: skip
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|msg|>", "<|call|>", "<|return|>"]


def byte_tokenizer(chat_template: str, added: tuple[str, ...] = ("<think>", "</think>")) -> PreTrainedTokenizerFast:
    """One token a byte, the special tokens of all these templates, and some added ones that are not special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in added])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = chat_template
    return fast
