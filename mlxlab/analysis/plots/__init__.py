"""Figures of results. They draw and compute nothing.

Along an axis of requests ``2 #7`` is request 7, of the second session; ``2b #7`` is its
second sub-agent's.
"""

from mlxlab.errors import ConfigError
from mlxlab.extras import needs

with needs("plots"):
    try:
        import matplotlib as mpl  # looks for its settings

        mpl.get_cachedir()
    except RuntimeError as error:  # a link that leads to itself
        raise ConfigError(f"plots: {error}; set HOME or XDG_CACHE_HOME") from None
    from mlxlab.analysis.plots.audit import plot_audit
    from mlxlab.analysis.plots.capacity import (
        plot_carried,
        plot_carried_by_memory,
        plot_users,
        save_capacity_plots,
    )
    from mlxlab.analysis.plots.diagnosis import plot_gain
    from mlxlab.analysis.plots.eviction import plot_evictions, save_eviction_plots
    from mlxlab.analysis.plots.fidelity import (
        plot_pareto,
        plot_shift,
        save_fidelity_plots,
    )
    from mlxlab.analysis.plots.layouts import plot_layouts
    from mlxlab.analysis.plots.misses import plot_causes, plot_strip, save_misses_plots
    from mlxlab.analysis.plots.planning import plot_capacity, plot_costs, plot_trials
    from mlxlab.analysis.plots.reuse import (
        plot_hit_rate,
        plot_memory,
        plot_segments,
        plot_ttft,
        save_plots,
    )
    from mlxlab.analysis.plots.served import plot_served

__all__ = [
    "plot_audit",
    "plot_capacity",
    "plot_carried",
    "plot_carried_by_memory",
    "plot_causes",
    "plot_costs",
    "plot_evictions",
    "plot_gain",
    "plot_hit_rate",
    "plot_layouts",
    "plot_memory",
    "plot_pareto",
    "plot_segments",
    "plot_served",
    "plot_shift",
    "plot_strip",
    "plot_trials",
    "plot_ttft",
    "plot_users",
    "save_capacity_plots",
    "save_eviction_plots",
    "save_fidelity_plots",
    "save_misses_plots",
    "save_plots",
]
