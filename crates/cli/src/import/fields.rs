//! Fields of a Compose file that have no counterpart: why, and the way out.

/// Fields of a service.
pub const SERVICE: &[(&str, &str)] = &[
    ("annotations", "there is nothing that would read them"),
    ("attach", "`rung logs` shows every service"),
    ("blkio_config", "disk bandwidth is not limited"),
    ("cap_add", "instances get no capabilities"),
    ("cap_drop", "instances get no capabilities anyway"),
    ("cgroup", "each instance has a cgroup of its own"),
    ("cgroup_parent", "each instance has a cgroup of its own"),
    ("configs", "put the file into the application's directory, or its content into `[env]`"),
    ("container_name", "instances are named by Rung; `rung ps` shows them"),
    ("cpu_count", "write deploy.resources.limits.cpus"),
    ("cpu_percent", "write deploy.resources.limits.cpus"),
    ("cpu_period", "write deploy.resources.limits.cpus"),
    ("cpu_quota", "write deploy.resources.limits.cpus"),
    ("cpu_shares", "a cpu limit is a ceiling: write deploy.resources.limits.cpus"),
    ("cpuset", "instances are not bound to cores"),
    ("credential_spec", "it is for Windows"),
    (
        "depends_on",
        "nothing waits for another service: what fails for lack of it is restarted until it is there",
    ),
    ("develop", "deploy what has changed with `rung deploy`"),
    ("device_cgroup_rules", "instances see no devices"),
    ("devices", "instances see no devices"),
    ("dns", "instances use the machine's own"),
    ("dns_opt", "instances use the machine's own"),
    ("dns_search", "instances use the machine's own"),
    ("domainname", "instances have no host name of their own"),
    ("env_file", "set what is in it with `rung config set`, or `rung secret set` where it is secret"),
    ("extends", "`docker compose config` writes the whole of it out: import that"),
    ("external_links", "give the other's address with `rung config set`"),
    ("extra_hosts", "write the addresses into the application's settings"),
    ("group_add", "instances have a group of their own"),
    ("gpus", "instances see no devices"),
    ("hostname", "instances have no host name of their own"),
    ("init", "every instance has an init that reaps"),
    ("ipc", "instances share no memory"),
    ("isolation", "it is for Windows"),
    (
        "label_file",
        "there is nothing that would read them; `domains` and `[[routes]]` say who gets which requests",
    ),
    (
        "labels",
        "there is nothing that would read them; `domains` and `[[routes]]` say who gets which requests",
    ),
    ("links", "services of an app share the machine's loopback"),
    ("logging", "output is kept, rotated, and shown by `rung logs`"),
    ("mac_address", "instances have no network of their own"),
    ("mem_swappiness", "memory limits are without swap"),
    ("memswap_limit", "memory limits are without swap"),
    ("models", "run the model as an app of its own, and give its address with `rung config set`"),
    ("network_mode", "instances listen on the machine's loopback, and the ingress on its network"),
    (
        "networks",
        "services of an app share the machine's loopback, and only the ingress is seen from outside",
    ),
    ("oom_kill_disable", "what goes over its limit is restarted"),
    ("oom_score_adj", "what goes over its limit is restarted"),
    ("pid", "instances do not see each other's processes"),
    ("pids_limit", "processes are bounded for every instance"),
    ("platform", "images run on the architecture of the machine"),
    ("post_start", "let the command do it, or write a release command: [deploy] release"),
    ("pre_stop", "handle SIGTERM: it comes after the last request has ended"),
    ("privileged", "instances get no capabilities"),
    ("provider", "run it as an app of its own"),
    ("pull_policy", "an image is looked up at each deploy, and pinned by its digest"),
    ("read_only", "the application's tree is read-only anyway, but volumes and /tmp"),
    ("runtime", "the engine's own runtime is used"),
    ("secrets", "set them with `rung secret set`: they come as environment variables, not as files"),
    ("security_opt", "instances get no new privileges anyway"),
    ("shm_size", "/dev/shm is as the engine gives it"),
    ("stdin_open", "instances have no input; `rung run` has"),
    ("storage_opt", "disk space is not limited"),
    ("sysctls", "the machine's own settings hold"),
    ("tmpfs", "every instance has a /tmp of its own"),
    ("tty", "instances have no terminal; `rung run` has"),
    ("ulimits", "the machine's own limits hold"),
    ("use_api_socket", "instances do not see the engine"),
    ("user", "the image's USER counts"),
    ("userns_mode", "the engine's own setting holds"),
    ("uts", "instances have no host name of their own"),
    ("volumes_from", "name the volume in both services"),
    ("working_dir", "begin the command with `cd DIR &&`"),
];

/// Fields of `build`.
pub const BUILD: &[(&str, &str)] = &[
    ("additional_contexts", "the build sees the deployed directory only"),
    ("args", "write them into the Dockerfile: ARG NAME=value"),
    ("cache_from", "the engine's own cache is used"),
    ("cache_to", "the engine's own cache is used"),
    ("dockerfile_inline", "write it into a file and name that as `dockerfile`"),
    ("extra_hosts", "builds use the machine's own names"),
    ("labels", "write them into the Dockerfile"),
    ("network", "the engine's own network is used"),
    ("no_cache", "the engine's own cache is used"),
    ("platforms", "images are built for the machine that runs them"),
    ("privileged", "builds get no privileges"),
    ("pull", "the engine's own cache is used"),
    ("secrets", "builds get no secrets"),
    ("shm_size", "builds have the engine's own limits"),
    ("ssh", "builds get no keys"),
    ("tags", "what is built is named by Rung"),
    ("target", "name the stage last in the Dockerfile, or give it a Dockerfile of its own"),
];

/// Fields of `deploy`.
pub const DEPLOY: &[(&str, &str)] = &[
    ("endpoint_mode", "the ingress balances"),
    ("labels", "there is nothing that would read them"),
    ("mode", "there are as many instances as `instances` says"),
    ("placement", "there is one machine, or any that has room"),
    ("restart_policy", "what ends is started again, with growing pauses"),
    ("rollback_config", "a release that does not become healthy is reverted by itself"),
    ("update_config", "new instances start first, and old ones end when they have no requests left"),
];

/// Fields of the whole file.
pub const TOP: &[(&str, &str)] = &[
    ("configs", "put the files into the application's directory"),
    ("include", "`docker compose config` writes the whole of it out: import that"),
    ("models", "run the model as an app of its own"),
    (
        "networks",
        "services of an app share the machine's loopback, and only the ingress is seen from outside",
    ),
    ("secrets", "set them with `rung secret set`: they come as environment variables, not as files"),
];

/// Why a field is not honoured, when that is known.
pub fn why(table: &[(&str, &'static str)], field: &str) -> Option<&'static str> {
    table.iter().find(|(known, _)| *known == field).map(|(_, why)| *why)
}
