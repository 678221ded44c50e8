"""All scenarios by name, in their order."""

from . import bad_upgrades, clock, disk, kill, million, restarts, upgrades

ALL = {
    function.__name__.replace("_", "-"): function
    for module in (restarts, upgrades, bad_upgrades, kill, clock, disk, million)
    for function in module.SCENARIOS
}
