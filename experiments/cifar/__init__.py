"""Trainings on CIFAR-10, one after the other, the most valuable first."""
