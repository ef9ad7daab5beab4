"""Continuous Thought Machines: models, losses, tasks and training. The models need torch alone."""

from ctm.config import CTMConfig
from ctm.model import CTM, Context, RootBeta, State, Thoughts, TickOutput, Track

__all__ = ["CTM", "CTMConfig", "Context", "RootBeta", "State", "Thoughts", "TickOutput", "Track"]
