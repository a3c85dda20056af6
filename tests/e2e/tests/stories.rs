//! User stories: the real binary, real processes, real components. One module a chapter.

#[path = "stories/access.rs"]
mod access;
#[path = "stories/app_files.rs"]
mod app_files;
#[path = "stories/artifacts.rs"]
mod artifacts;
#[path = "stories/at_once.rs"]
mod at_once;
#[path = "stories/audit_trails.rs"]
mod audit_trails;
#[path = "stories/bad_weather.rs"]
mod bad_weather;
#[path = "stories/canaries_over_servers.rs"]
mod canaries_over_servers;
#[path = "stories/certificates.rs"]
mod certificates;
#[path = "stories/clocks.rs"]
mod clocks;
#[path = "stories/clusters.rs"]
mod clusters;
#[path = "stories/containers.rs"]
mod containers;
#[path = "stories/deploys.rs"]
mod deploys;
#[path = "stories/documentation.rs"]
mod documentation;
#[path = "stories/environments.rs"]
mod environments;
#[path = "stories/exclusive.rs"]
mod exclusive;
#[path = "stories/failed_deploys.rs"]
mod failed_deploys;
#[path = "stories/faults_of_machines.rs"]
mod faults_of_machines;
#[path = "stories/first_minutes.rs"]
mod first_minutes;
#[path = "stories/floating.rs"]
mod floating;
#[path = "stories/gateway.rs"]
mod gateway;
#[path = "stories/images.rs"]
mod images;
#[path = "stories/images_in_bad_weather.rs"]
mod images_in_bad_weather;
#[path = "stories/ingresses.rs"]
mod ingresses;
#[path = "stories/instances.rs"]
mod instances;
#[path = "stories/jobs.rs"]
mod jobs;
#[path = "stories/kill_nine.rs"]
mod kill_nine;
#[path = "stories/leases.rs"]
mod leases;
#[path = "stories/logs.rs"]
mod logs;
#[path = "stories/nodes.rs"]
mod nodes;
#[path = "stories/other_peoples_applications.rs"]
mod other_peoples_applications;
#[path = "stories/placing.rs"]
mod placing;
#[path = "stories/ports.rs"]
mod ports;
#[path = "stories/releases.rs"]
mod releases;
#[path = "stories/secrets.rs"]
mod secrets;
#[path = "stories/servers.rs"]
mod servers;
#[path = "stories/services.rs"]
mod services;
#[path = "stories/stores.rs"]
mod stores;
#[path = "stories/strategies.rs"]
mod strategies;
#[path = "stories/survival.rs"]
mod survival;
#[path = "stories/top.rs"]
mod top;
#[path = "stories/unheard.rs"]
mod unheard;
#[path = "stories/walls.rs"]
mod walls;
#[path = "stories/ways_in.rs"]
mod ways_in;
#[path = "stories/without_root.rs"]
mod without_root;
