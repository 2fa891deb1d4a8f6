"""Reinforcement learning of a model on problems whose answers can be checked: T-PPO, PPO, GRPO."""
