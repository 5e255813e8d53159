"""Where `python -m forward_influence.lm_eval` begins; what it starts is in `forward_influence.integrations.lm_eval`."""
