"""MIME types of our own, for what E2B calls the chart and the data of a result. Jupyter's clients do not get them."""

from __future__ import annotations

CHART, DATA = "e2b/chart", "e2b/data"
