"""The configuration attributes the runtime reads."""


def canonicalize(config):
    """Set, in place, every attribute the runtime reads; returns the configuration."""
    if getattr(config, "head_dim", None) is None:
        config.head_dim = config.hidden_size // config.num_attention_heads
    if getattr(config, "num_key_value_heads", None) is None:
        config.num_key_value_heads = config.num_attention_heads
    return config
