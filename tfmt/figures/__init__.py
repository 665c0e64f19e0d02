"""The papers' figures. Each function returns a matplotlib Figure and, as a DataFrame, the numbers that it shows.

The DataFrame's `attrs["notes"]` are lines on what the figure leaves out and why. Nothing here touches matplotlib's
global state or pyplot; in a notebook `%matplotlib inline` shows a Figure that is a cell's last value.
"""

from tfmt.figures.change import plot_change
from tfmt.figures.curves import plot_curves
from tfmt.figures.fisher import plot_fisher
from tfmt.figures.frontier import plot_frontier
from tfmt.figures.layers import plot_layers
from tfmt.figures.outliers import plot_outliers
from tfmt.figures.rates import plot_rates
from tfmt.figures.style import save_figure
from tfmt.figures.weights import plot_weights
from tfmt.figures.where import plot_where

__all__ = [
    "plot_change",
    "plot_curves",
    "plot_fisher",
    "plot_frontier",
    "plot_layers",
    "plot_outliers",
    "plot_rates",
    "plot_weights",
    "plot_where",
    "save_figure",
]
