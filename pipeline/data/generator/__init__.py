"""Bilingual cockpit commands from a grammar of template families."""
