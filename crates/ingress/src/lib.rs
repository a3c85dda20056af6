//! The data plane: routes requests to healthy instances.
