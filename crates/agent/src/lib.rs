//! The node role: keeps the instances of its assignment running.
