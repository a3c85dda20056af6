//! The keys of the app file, once: what is read, what is suggested, and what the documentation must name.

/// One table of the app file.
#[derive(Debug)]
pub struct Section {
    /// As the documentation's headings write it: `[services.<name>]`.
    pub title: &'static str,
    pub keys: &'static [&'static str],
    /// Keys of capabilities that come later, and keys that people look for here: each with the way out.
    pub refused: &'static [Refused],
}

#[derive(Debug)]
pub struct Refused {
    pub key: &'static str,
    pub why: Why,
    pub way_out: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Part of the design, not of this version.
    NotYet,
    /// It has its place somewhere else.
    Elsewhere,
}

const fn later(key: &'static str, way_out: &'static str) -> Refused {
    Refused { key, why: Why::NotYet, way_out }
}

const fn elsewhere(key: &'static str, way_out: &'static str) -> Refused {
    Refused { key, why: Why::Elsewhere, way_out }
}

pub const TOP: Section = Section {
    title: "The whole file",
    keys: &[
        "app",
        "domains",
        "build",
        "env",
        "secrets",
        "volumes",
        "deploy",
        "git",
        "services",
        "jobs",
        "routes",
        "pages",
        "notify",
        "environments",
    ],
    refused: &[
        later("databases", "run one beside Rung and give its address with `rung secret set DATABASE_URL`"),
        later("cache", "set caching headers in the application"),
        elsewhere("environment", "environments are written `[environments.<name>]`"),
        elsewhere("command", "commands belong to a service: write it below `[services.web]`"),
        elsewhere("name", "the app's name is `app = \"...\"`"),
        elsewhere("release", "write it below `[deploy]`"),
        elsewhere("service", "services are written `[services.web]`"),
        elsewhere("health", "write it below the service: `[services.web]`"),
    ],
};

/// `[environments.<name>]`, and the whole of a `rung.<name>.toml`.
pub const ENVIRONMENT: Section = Section {
    title: "[environments.<name>]",
    keys: &[
        "domains", "build", "env", "secrets", "volumes", "deploy", "services", "jobs", "routes", "pages",
        "notify",
    ],
    refused: &[
        elsewhere("app", "an app has the same name in every environment; take it out"),
        elsewhere("environments", "environments have none of their own"),
        elsewhere("command", "commands belong to a service: write it below `services.web`"),
        elsewhere("release", "write it below `deploy`"),
        elsewhere("instances", "write it below the service: `services.web`"),
    ],
};

pub const BUILD: Section = Section {
    title: "[build]",
    keys: &["command", "test", "timeout", "image", "dockerfile"],
    refused: &[
        later("cache", "the build starts in a clean directory"),
        elsewhere("env", "`[env]` holds for the build, too"),
    ],
};

pub const SECRETS: Section = Section { title: "[secrets]", keys: &["required"], refused: &[] };

pub const VOLUME: Section = Section {
    title: "[volumes.<name>]",
    keys: &["size"],
    refused: &[elsewhere(
        "path",
        "a service says where it sees the volume: `mounts = { <volume> = \"/data\" }`",
    )],
};

pub const DEPLOY: Section = Section {
    title: "[deploy]",
    keys: &[
        "release",
        "before_release",
        "release_timeout",
        "deadline",
        "strategy",
        "batch",
        "steps",
        "split",
        "testers",
        "abort_if",
        "without_traffic",
        "wait_at_most",
        "keep",
        "watch",
        "settle",
    ],
    refused: &[elsewhere("drain", "write it below the service: `[services.web]`")],
};

pub const NOTIFY: Section = Section {
    title: "[notify]",
    keys: &["webhook", "secret"],
    refused: &[elsewhere("url", "write `webhook = \"https://...\"`")],
};

pub const GIT: Section = Section {
    title: "[git]",
    keys: &["branch"],
    refused: &[elsewhere("remote", "`rung git remote` adds the remote to a repository")],
};

pub const ABORT_IF: Section =
    Section { title: "abort_if", keys: &["error_rate", "p95", "requests"], refused: &[] };

pub const SPLIT: Section = Section { title: "split", keys: &["header", "cookie"], refused: &[] };

pub const TESTERS: Section = Section { title: "testers", keys: &["header", "cookie", "is"], refused: &[] };

pub const SERVICE: Section = Section {
    title: "[services.<name>]",
    keys: &[
        "command",
        "port",
        "instances",
        "exclusive",
        "memory",
        "cpu",
        "health",
        "drain",
        "stop_grace",
        "response_timeout",
        "protocol",
        "hold",
        "mounts",
        "place",
        "priority",
        "allow",
    ],
    refused: &[
        elsewhere("image", "one image holds for the whole app: write it below `[build]`"),
        elsewhere("schedule", "what ends is a job: write it `[jobs.<name>]`"),
        elsewhere("env", "the environment holds for the whole app: write it below `[env]`"),
        elsewhere("release", "write it below `[deploy]`"),
        elsewhere("build", "write it below `[build]`"),
        elsewhere("domains", "write `domains` at the top of the file, and what goes where in `[[routes]]`"),
        elsewhere("routes", "write `[[routes]]` with `path` and `service`"),
        elsewhere("volumes", "write `mounts = { <volume> = \"/data\" }`"),
    ],
};

pub const PLACE: Section = Section {
    title: "place",
    keys: &["spread", "pack", "require", "prefer"],
    refused: &[
        elsewhere("priority", "write it below the service: `priority = \"high\"`"),
        elsewhere("count", "write `instances = 2`, or `instances = \"per-node\"`"),
        elsewhere("node", "give the node a label, and ask for it: `require = { ... }`"),
    ],
};

pub const JOB: Section = Section {
    title: "[jobs.<name>]",
    keys: &[
        "command",
        "schedule",
        "timezone",
        "overlap",
        "catch_up",
        "start_deadline",
        "timeout",
        "retries",
        "retry_after",
        "memory",
        "cpu",
        "mounts",
    ],
    refused: &[
        elsewhere("port", "what listens is a service: write it `[services.<name>]`"),
        elsewhere("cron", "write `schedule = \"0 3 * * *\"`"),
        elsewhere("env", "the environment holds for the whole app: write it below `[env]`"),
    ],
};

pub const HEALTH: Section = Section {
    title: "health",
    keys: &["path", "command", "tcp", "interval", "timeout", "grace", "unhealthy_after", "restart_after"],
    refused: &[],
};

pub const HOLD: Section = Section { title: "hold", keys: &["max_requests", "max_time"], refused: &[] };

pub const ROUTE: Section = Section {
    title: "[[routes]]",
    keys: &[
        "path",
        "service",
        "redirect",
        "status",
        "host",
        "methods",
        "headers",
        "strip",
        "rewrite",
        "request_headers",
        "response_headers",
        "response_timeout",
        "max_body",
        "max_head",
        "sticky",
        "compress",
        "allow",
        "deny",
        "auth",
        "cors",
        "limit",
        "overload",
    ],
    refused: &[
        later("cache", "set caching headers in the application"),
        elsewhere("compression", "write `compress = true`"),
        elsewhere("gzip", "write `compress = true`"),
        elsewhere("method", "write a list: methods = [\"GET\"]"),
        elsewhere("timeout", "write `response_timeout = \"5m\"`"),
        elsewhere("api_key", "write auth = { api_key = \"API_KEYS\" }"),
        elsewhere("basic", "write auth = { basic = \"STAFF\" }"),
    ],
};

pub const AUTH: Section = Section {
    title: "auth",
    keys: &["api_key", "header", "basic", "realm", "jwt", "issuer", "audience"],
    refused: &[],
};

pub const CORS: Section = Section {
    title: "cors",
    keys: &["origins", "methods", "headers", "expose", "credentials", "max_age"],
    refused: &[],
};

pub const LIMIT: Section =
    Section { title: "limit", keys: &["per_address", "per_key", "total", "burst"], refused: &[] };

pub const OVERLOAD: Section = Section { title: "overload", keys: &["max", "queue", "wait"], refused: &[] };

/// Beside these, statuses.
pub const PAGES: Section = Section { title: "[pages]", keys: &["maintenance", "error"], refused: &[] };

/// Every section, for the documentation's test.
pub const ALL: &[&Section] = &[
    &TOP,
    &ENVIRONMENT,
    &BUILD,
    &SECRETS,
    &VOLUME,
    &DEPLOY,
    &NOTIFY,
    &GIT,
    &ABORT_IF,
    &SPLIT,
    &TESTERS,
    &SERVICE,
    &JOB,
    &HEALTH,
    &HOLD,
    &PLACE,
    &ROUTE,
    &AUTH,
    &CORS,
    &LIMIT,
    &OVERLOAD,
    &PAGES,
];
