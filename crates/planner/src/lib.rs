//! What shall run where, and what is routed: pure functions from the world to a plan.
