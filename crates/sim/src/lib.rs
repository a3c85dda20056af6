//! The real planner and loops over a simulated clock, network, store and drivers.
