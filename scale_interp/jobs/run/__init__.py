"""The main job: locate, fit, evaluate, falsify, report."""
