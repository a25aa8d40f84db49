"""Servers that are asked over HTTP: their protocols, and replays against them."""
