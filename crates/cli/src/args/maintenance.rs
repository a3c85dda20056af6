//! A page instead of the app.

use clap::{Args, ValueEnum};
use rung_model::route::Maintenance;

#[derive(Debug, Clone, Args)]
pub struct MaintenanceArgs {
    /// Whether requests are answered with the maintenance page; instances go on running
    #[arg(value_name = "on|off")]
    pub switch: Switch,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

impl From<Switch> for Maintenance {
    fn from(switch: Switch) -> Self {
        match switch {
            Switch::On => Self::On,
            Switch::Off => Self::Off,
        }
    }
}
