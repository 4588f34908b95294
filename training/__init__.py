"""Losses and loops of everything that Inlay trains. Pure torch."""
