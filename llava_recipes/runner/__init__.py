"""Run a Plan stage by stage and own every artifact."""
