//! The server role: HTTP API, leader loop, artifacts, secrets.
