"""vLLM as a managed child: started where it is needed, gone when it is not."""

from saeinterp.explain.serving.command import INSTALL, VLLM, find_vllm
from saeinterp.explain.serving.server import Server, served, vllm_server

__all__ = ["INSTALL", "VLLM", "Server", "find_vllm", "served", "vllm_server"]
