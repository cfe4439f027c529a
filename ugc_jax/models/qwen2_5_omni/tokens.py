"""The special tokens and the chat template of Qwen2.5-Omni (spec 3.1, 5.1)."""

DEFAULT_SYSTEM = "You are a helpful assistant."

# In the order of their ids, which follow each other.
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_bos|>", "<|vision_eos|>",
    "<|vision_pad|>", "<|IMAGE|>", "<|VIDEO|>",
)  # fmt: skip
PLAIN_TOKENS = (  # added tokens that decoding keeps
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
    "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip

# How the special tokens of config.tokens are spelled in the tokenizer (spec 3.1).
SPELLINGS = {
    "pad_token_id": "<|endoftext|>",
    "bos_token_id": "<|im_start|>",
    "eos_token_id": "<|im_end|>",
    "audio_token_id": "<|AUDIO|>",
    "audio_start_token_id": "<|audio_bos|>",
    "audio_end_token_id": "<|audio_eos|>",
    "vision_start_token_id": "<|vision_bos|>",
    "vision_end_token_id": "<|vision_eos|>",
    "image_token_id": "<|IMAGE|>",
    "video_token_id": "<|VIDEO|>",
}


def token_ids(first: int) -> dict[str, int]:
    """{field of config.TokenIds: id}, for special tokens whose first one has the id `first`."""
    order = (*SPECIAL_TOKENS, *PLAIN_TOKENS)
    return {field: first + order.index(spelling) for field, spelling in SPELLINGS.items()}


CHAT_TEMPLATE = r"""
{%- set seen = namespace(image=0, audio=0, video=0) -%}
{%- for message in messages -%}
  {%- if loop.first and message['role'] != 'system' -%}
    {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}
  {%- endif -%}
  {{- '<|im_start|>' + message['role'] + '\n' -}}
  {%- if message['content'] is string -%}
    {{- message['content'] -}}
  {%- else -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
        {%- set seen.image = seen.image + 1 -%}
        {{- 'Picture ' ~ seen.image ~ ': ' if add_vision_id -}}
        {{- '<|vision_bos|><|IMAGE|><|vision_eos|>' -}}
      {%- elif part['type'] == 'audio' or 'audio' in part or 'audio_url' in part -%}
        {%- set seen.audio = seen.audio + 1 -%}
        {{- 'Audio ' ~ seen.audio ~ ': ' if add_audio_id -}}
        {{- '<|audio_bos|><|AUDIO|><|audio_eos|>' -}}
      {%- elif part['type'] == 'video' or 'video' in part -%}
        {%- set seen.video = seen.video + 1 -%}
        {{- 'Video ' ~ seen.video ~ ': ' if add_vision_id -}}
        {{- '<|vision_bos|><|VIDEO|><|vision_eos|>' -}}
      {%- elif 'text' in part -%}
        {{- part['text'] -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{- '<|im_end|>\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\n' if add_generation_prompt -}}
""".strip()
