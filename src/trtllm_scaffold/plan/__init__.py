"""How TensorRT-LLM says what a model is: modules, arguments, weight map, refusals."""

from trtllm_scaffold.plan.names import PortNames, port_names
from trtllm_scaffold.plan.port import PortPlan, plan_port
from trtllm_scaffold.plan.support import Support, support

__all__ = ["PortNames", "PortPlan", "Support", "plan_port", "port_names", "support"]
