"""Measurements of fastbert beside its peers; they run from a checkout and are not installed."""
