"""A plugin of stock vLLM: `vllm serve` answers for `adapter@alias` of a Graft registry.

Nothing here is part of the inference service; docs/vllm-plugin.md says who needs which.
"""
