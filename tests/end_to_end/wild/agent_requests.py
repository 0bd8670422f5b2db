"""What coding agents and tools send, written from the documentation of their formats: target, headers and body."""

import json
from typing import Any

MODEL = "tiny"
_CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_SHELL = {"type": "object", "properties": {"command": {"type": "array", "items": {"type": "string"}}}}
_STAINLESS = {
    "x-stainless-lang": "js",
    "x-stainless-package-version": "0.60.0",
    "x-stainless-os": "Linux",
    "x-stainless-arch": "x64",
    "x-stainless-runtime": "node",
    "x-stainless-runtime-version": "v22.17.0",
    "x-stainless-retry-count": "0",
    "x-stainless-timeout": "600",
}
_EPHEMERAL = {"type": "ephemeral"}

AGENTS: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "claude code": (
        "/v1/messages?beta=true",
        {
            **_STAINLESS,
            "anthropic-version": "2023-06-01",
            "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27",
            "anthropic-dangerous-direct-browser-access": "true",
            "user-agent": "claude-cli/2.0.30 (external, cli)",
            "x-app": "cli",
            "x-api-key": "sk-local",
        },
        {
            "model": MODEL,
            "max_tokens": 32000,
            "system": [
                {"type": "text", "text": "You are Claude Code.", "cache_control": _EPHEMERAL},
                {"type": "text", "text": "<env>\nWorking directory: /src\n</env>", "cache_control": _EPHEMERAL},
            ],
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "<system-reminder>\nBe brief.\n</system-reminder>"},
                        {"type": "text", "text": "list files", "cache_control": _EPHEMERAL},
                    ],
                },
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "I should call ls.", "signature": "EqQBCgIYAhIM"},
                        {"type": "tool_use", "id": "toolu_01", "name": "Bash", "input": {"command": "ls"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "toolu_01",
                            "content": [{"type": "text", "text": "a.py\nb.py"}],
                            "is_error": False,
                            "cache_control": _EPHEMERAL,
                        }
                    ],
                },
            ],
            "tools": [
                {"name": "Bash", "description": "Runs a command.", "input_schema": _SHELL},
                {"name": "Weather", "description": "Weather.", "input_schema": _CITY, "cache_control": _EPHEMERAL},
            ],
            "thinking": {"type": "enabled", "budget_tokens": 31999},
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "metadata": {"user_id": json.dumps({"device_id": "d" * 64, "session_id": "0b1c2d3e"})},
            "stream": True,
        },
    ),
    "claude code, counting": (
        "/v1/messages/count_tokens?beta=true",
        {"anthropic-version": "2023-06-01", "anthropic-beta": "token-counting-2024-11-01"},
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": "foo"}],
            "tools": [{"name": "Bash", "description": "Runs a command.", "input_schema": _SHELL}],
        },
    ),
    "codex": (
        "/v1/responses",
        {
            "accept": "text/event-stream",
            "openai-beta": "responses=experimental",
            "originator": "codex_cli_rs",
            "conversation_id": "0199f3c4-7d1b-7a50-9f06-aaaaaaaaaaaa",
            "session_id": "0199f3c4-7d1b-7a50-9f06-aaaaaaaaaaaa",
            "user-agent": "codex_cli_rs/0.63.0 (Debian 12.0.0; x86_64) xterm-256color",
            "authorization": "Bearer sk-local",
        },
        {
            "model": MODEL,
            "instructions": "You are Codex, based on GPT-5.",
            "input": [
                {
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_text", "text": "<environment_context>\n  <cwd>/src</cwd>\n"}],
                },
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "list files"}]},
                {"type": "reasoning", "summary": [], "content": None, "encrypted_content": "gAAAAA"},
                {"type": "function_call", "name": "shell", "arguments": '{"command":["ls"]}', "call_id": "call_1"},
                {"type": "function_call_output", "call_id": "call_1", "output": '{"output":"a.py\\n"}'},
            ],
            "tools": [
                {"type": "function", "name": "shell", "description": "d", "strict": False, "parameters": _SHELL},
                {
                    "type": "custom",
                    "name": "apply_patch",
                    "description": "d",
                    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"},
                },
                {"type": "web_search"},
            ],
            "tool_choice": "auto",
            "parallel_tool_calls": False,
            "reasoning": {"effort": "medium", "summary": "auto"},
            "store": False,
            "stream": True,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": "0199f3c4-7d1b-7a50-9f06-aaaaaaaaaaaa",
        },
    ),
    "cline": (
        "/v1/chat/completions",
        {**_STAINLESS, "authorization": "Bearer noop", "user-agent": "OpenAI/JS 4.96.0"},
        {
            "model": MODEL,
            "messages": [
                {"role": "system", "content": "You are Cline."},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "<task>\nlist files\n</task>"},
                        {"type": "text", "text": "<environment_details>\n# VSCode\n</environment_details>"},
                    ],
                },
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "list_files", "arguments": "{}"}}
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "a.py"},
            ],
            "tools": [{"type": "function", "function": {"name": "list_files", "parameters": _CITY}}],
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ),
    "continue, chat": (
        "/v1/chat/completions",
        {"authorization": "Bearer none", "api-key": "", "accept": "*/*", "user-agent": "node-fetch"},
        {
            "messages": [
                {"role": "system", "content": "<important_rules>\n  You are in chat mode.\n</important_rules>"},
                {"role": "user", "content": [{"type": "text", "text": "explain"}]},
            ],
            "model": MODEL,
            "max_tokens": 4096,
            "stream": True,
        },
    ),
    "continue, completion": (
        "/v1/completions",
        {"authorization": "Bearer none"},
        {
            "model": MODEL,
            "max_tokens": 4096,
            "temperature": 0.01,
            "stop": ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "\n\n", "/src/"],
            "stream": True,
            "prompt": "<fim_prefix>def f(x):\n    <fim_suffix>\n<fim_middle>",
        },
    ),
    "aider": (
        "/v1/chat/completions",
        {
            "authorization": "Bearer x",
            "user-agent": "OpenAI/Python 1.99.1",
            "x-stainless-lang": "python",
            "x-stainless-async": "false",
            "x-stainless-raw-response": "true",
            "accept-encoding": "gzip, deflate, zstd",
        },
        {
            "messages": [
                {"role": "system", "content": "Act as an expert software developer."},
                {"role": "user", "content": "I switched to a new code base."},
                {"role": "assistant", "content": "Ok."},
                {"role": "user", "content": "add a test"},
            ],
            "model": MODEL,
            "stream": True,
            "temperature": 0,
        },
    ),
    "vllm bench serve": (
        "/v1/completions",
        {"authorization": "Bearer None", "x-request-id": "bench-5f2a-0"},
        {
            "model": MODEL,
            "prompt": "the quick brown fox",
            "repetition_penalty": 1.0,
            "max_tokens": 8,
            "logprobs": None,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
            "temperature": 0.0,
        },
    ),
    "guidellm": (
        "/v1/chat/completions",
        {"content-type": "application/json"},
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": [{"type": "text", "text": "the quick brown fox"}]}],
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "max_completion_tokens": 8,
            "stop": None,
            "ignore_eos": True,
        },
    ),
}
