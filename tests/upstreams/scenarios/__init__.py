"""All scenarios by name, in their order."""

from . import bodies, certificates, cookies, faults, grpc_calls, moving, overload, process, real, restarts, shares, sick, streams

ALL = {
    function.__name__.replace("_", "-"): function
    for module in (
        real,
        shares,
        cookies,
        bodies,
        streams,
        grpc_calls,
        faults,
        sick,
        restarts,
        moving,
        certificates,
        overload,
        process,
    )
    for function in module.SCENARIOS
}
