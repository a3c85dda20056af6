mod documentation;
mod rollouts;
mod routes;

use std::time::Duration;

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

/// What a person sees of a `rung.toml` that is wrong.
fn shows(text: &str, expected: Expect) {
    let errors = parse("rung.toml", text).expect_err("the file was accepted");
    expected.assert_eq(&errors.to_string());
}

/// The smallest file with `more` below its only service.
fn web(more: &str) -> String {
    format!("app = \"shop\"\n[services.web]\ncommand = \"bin/server\"\n{more}\n")
}

fn accepted(text: &str) -> AppFile {
    parse("rung.toml", text).unwrap_or_else(|errors| panic!("the file was refused:\n{errors}"))
}

fn messages(text: &str) -> Vec<String> {
    let errors = parse("rung.toml", text).expect_err("the file was accepted");
    errors.errors().iter().map(|error| error.message.clone()).collect()
}

#[test]
fn the_smallest_file_gets_every_default() {
    let file = accepted(&web(""));
    let service = &file.services[&ServiceName::new("web").unwrap()];
    assert_eq!(file.app.as_str(), "shop");
    assert!(service.port && !service.exclusive);
    assert_eq!(service.instances, 1);
    assert_eq!(service.health.check, Check::Tcp);
    assert_eq!(service.drain, Duration::from_secs(30));
    assert_eq!(file.deploy.deadline, Duration::from_secs(300));
    assert_eq!(file.effective_routes(), [Route::to_service("/*", ServiceName::new("web").unwrap())]);
}

#[test]
fn a_file_with_nearly_everything_means_what_it_says() {
    let file = accepted(
        r#"
        app = "shop"
        domains = ["Shop.example.com", "*.shop.example.com"]
        build = { command = "make", test = "make test", timeout = "20m" }
        env = { LOG_LEVEL = "info", WORKERS = 4, RATIO = 0.5, DEBUG = false }
        secrets.required = ["SECRET_KEY_BASE"]
        volumes.uploads.size = "10GB"
        deploy = { release = "bin/migrate", release_timeout = "1h30m", deadline = "15m", strategy = "rolling" }

        [services.web]
        command = "bin/server"
        instances = 3
        memory = "512MB"
        cpu = 0.5
        health = { path = "/up", interval = "500ms", timeout = "1s", grace = "1m", unhealthy_after = 7 }
        mounts = { uploads = "/data/" }

        [services.ledger]
        command = "bin/ledger"
        exclusive = true
        hold = { max_requests = 10, max_time = "5s" }

        [services.worker]
        command = "bin/jobs"
        port = false
        health.command = "bin/check"

        [[routes]]
        path = "/*"
        service = "web"
        [[routes]]
        path = "/ledger/*"
        service = "ledger"
        "#,
    );
    let service = |name: &str| &file.services[&ServiceName::new(name).unwrap()];
    assert_eq!(file.domains, ["shop.example.com", "*.shop.example.com"]);
    assert_eq!(file.env["WORKERS"], "4");
    assert_eq!(file.env["RATIO"], "0.5");
    assert_eq!(file.env["DEBUG"], "false");
    assert_eq!(file.deploy.release_timeout, Duration::from_secs(5400));
    assert_eq!(service("web").memory_bytes, Some(512_000_000));
    assert_eq!(service("web").cpu_millis, Some(500));
    assert_eq!(service("web").health.restart_after, 7, "restarting never comes before un-routing");
    assert_eq!(service("web").mounts.values().collect::<Vec<_>>(), ["/data"]);
    assert_eq!(service("ledger").hold.max_requests, 10);
    assert_eq!(service("worker").health.check, Check::Command { command: "bin/check".into() });
    assert_eq!(file.effective_routes().len(), 2);
    let again: AppFile = serde_json::from_str(&serde_json::to_string(&file).unwrap()).unwrap();
    assert_eq!(again, file, "the file survives the store");
}

#[test]
fn all_errors_are_shown_at_once_each_with_its_place_and_a_way_out() {
    shows(
        r#"app = "My Shop"
domain = ["shop.example.com"]

[services.web]
comand = "bin/server"
instances = "two"
drain = 30

[services.worker]
command = "bin/jobs"
port = false
exclusive = true
instances = 2
mounts = { upload = "/data" }

[volumes.uploads]
size = "10 apples"
"#,
        expect![[r#"
            `app = "My Shop"` is not an app's name: names use a to z, 0 to 9 and -
             --> rung.toml:1:7
              |
            1 | app = "My Shop"
              |       ^^^^^^^^^
              = write it like `my-shop`

            unknown key `domain`
             --> rung.toml:2:1
              |
            2 | domain = ["shop.example.com"]
              | ^^^^^^
              = did you mean `domains`?

            `services.web` has no command
             --> rung.toml:4:11
              |
            4 | [services.web]
              |           ^^^
              = write command = "bin/server"

            unknown key `comand` in `services.web`
             --> rung.toml:5:1
              |
            5 | comand = "bin/server"
              | ^^^^^^
              = did you mean `command`?

            `services.web.instances` must be a whole number, not a text
             --> rung.toml:6:13
              |
            6 | instances = "two"
              |             ^^^^^
              = write instances = 2, or instances = "per-node" for one on each node

            `services.web.drain` has no unit
             --> rung.toml:7:9
              |
            7 | drain = 30
              |         ^^
              = write "30s" for seconds, "30ms" for milliseconds

            `services.worker` is exclusive and has 2 instances
              --> rung.toml:13:13
               |
            13 | instances = 2
               |             ^
               = an exclusive service has one instance: take `exclusive` or `instances` out

            volume `upload` is not known
              --> rung.toml:14:12
               |
            14 | mounts = { upload = "/data" }
               |            ^^^^^^
               = did you mean `uploads`?

            `volumes.uploads.size`: "10 apples" is not a size
              --> rung.toml:17:8
               |
            17 | size = "10 apples"
               |        ^^^^^^^^^^^
               = write it like "512MB", "10GB" or "1GiB"

            rung.toml has 9 errors"#]],
    );
}

#[test]
fn a_file_that_is_not_toml_shows_every_broken_line_and_guesses_nothing() {
    shows(
        "app = shop\n[services.web\ncommand = \"bin/server\"\ninstances = = 2\n",
        expect![[r#"
            not TOML: string values must be quoted, expected literal string
             --> rung.toml:1:7
              |
            1 | app = shop
              |       ^^^^
              = texts stand in quotes: key = "value"

            not TOML: unclosed table, expected `]`
             --> rung.toml:2:14
              |
            2 | [services.web
              |              ^
              = a line is key = value, or begins a table: [services.web]

            not TOML: extra `=`, expected nothing
             --> rung.toml:4:13
              |
            4 | instances = = 2
              |             ^
              = a line is key = value, or begins a table: [services.web]

            rung.toml has 3 errors"#]],
    );
}

#[test]
fn a_file_that_is_not_utf_8_names_the_line() {
    let mut text = web("").into_bytes();
    text.extend(b"# caf\xe9\n");
    let errors = parse("rung.toml", &text).unwrap_err();
    expect![[r#"
        the file is not UTF-8 text here
         --> rung.toml:5:6
          |
        5 | # caf�
          |      ^
          = save it as UTF-8

        rung.toml has 1 error"#]]
    .assert_eq(&errors.to_string());
}

#[test]
fn an_empty_file_says_what_to_write() {
    shows(
        "",
        expect![[r#"
            the app has no name
             --> rung.toml:1:1
              |
            1 | 
              | ^
              = write app = "shop" at the top

            the app has no services
             --> rung.toml:1:1
              |
            1 | 
              | ^
              = write [services.web] with command = "bin/server" below it

            rung.toml has 2 errors"#]],
    );
}

#[test]
fn capabilities_of_later_are_refused_with_a_word() {
    let text =
        format!("{}\n[databases.main]\nengine = \"postgres\"\n", web("instances = { min = 2, max = 8 }"));
    shows(
        &text,
        expect![[r#"
            `instances` with `min` and `max` does not work yet
             --> rung.toml:4:13
              |
            4 | instances = { min = 2, max = 8 }
              |             ^^^^^^^^^^^^^^^^^^^^
              = write a number, and change it with `rung scale`

            `databases` does not work yet
             --> rung.toml:6:2
              |
            6 | [databases.main]
              |  ^^^^^^^^^
              = run one beside Rung and give its address with `rung secret set DATABASE_URL`

            rung.toml has 2 errors"#]],
    );
}

#[test]
fn a_service_says_which_apps_may_call_it() {
    let file = accepted(&web("allow = [\"shop\", \"reports\", \"shop\"]"));
    let allowed = &file.services[&ServiceName::new("web").unwrap()].allow;
    assert_eq!(allowed.iter().map(AppName::as_str).collect::<Vec<_>>(), ["reports", "shop"]);
}

#[test]
fn a_service_may_speak_http2_to_the_ingress() {
    let file = accepted(&web("protocol = \"h2c\""));
    assert_eq!(file.services[&ServiceName::new("web").unwrap()].protocol, Protocol::H2c);
    let file = accepted(&web("protocol = \"http1\"\nhealth = { path = \"/up\" }"));
    assert_eq!(file.services[&ServiceName::new("web").unwrap()].protocol, Protocol::Http1);
}

#[test]
fn keys_that_contradict_each_other_are_refused() {
    let cases = [
        (
            web("protocol = \"h2c\"\nhealth = { path = \"/up\" }"),
            "its page is asked for by HTTP/1.1, and the service speaks h2c",
        ),
        (web("allow = [\"shop/web\"]"), "`shop/web` is not an app's name: names use a to z, 0 to 9 and -"),
        (web("allow = [\"shop@staging\"]"), "`shop@staging` names an environment"),
        (web("allow = [\"Shop\"]"), "`Shop` is not an app's name: names use a to z, 0 to 9 and -"),
        (
            web("port = false\nallow = [\"shop\"]"),
            "`allow` is about requests, and `services.web` has no port",
        ),
        (web("protocol = \"spdy\""), "`spdy` is not a protocol"),
        (web("health = { path = \"/up\", tcp = true }"), "`path` and `tcp` are two health checks"),
        (
            web("port = false\nhealth = { path = \"/up\" }"),
            "`path` needs a port, and `services.web` has none",
        ),
        (web("port = false\ndrain = \"3s\""), "`drain` is about requests, and `services.web` has no port"),
        (
            web("hold = { max_requests = 1 }"),
            "requests are held for exclusive services only, and `services.web` is not one",
        ),
        (web("health = { restart_after = 1 }"), "restarted after 1 failures, but unhealthy only after 2"),
        (web("[deploy]\nrelease_timeout = \"1m\""), "`release_timeout` without a release command"),
        (web("[build]\ntimeout = \"1m\""), "`timeout` without anything to build"),
        (web("[env]\nKEY = 1\n[secrets]\nrequired = [\"KEY\"]"), "`KEY` is a required secret, too"),
        (
            web("mounts = { a = \"/data\", b = \"/data/b\" }\n[volumes.a]\n[volumes.b]"),
            "volumes `a` at \"/data\" and `b` at \"/data/b\" hide each other",
        ),
        (web("[[routes]]\npath = \"/*\"\nservice = \"wep\""), "service `wep` is not known"),
        (
            web("[[routes]]\npath = \"/*\"\nservice = \"web\"\n[[routes]]\npath = \"/*\"\nservice = \"web\""),
            "\"/*\" has a route already",
        ),
        (
            web("[services.w]\ncommand = \"x\"\nport = false\n[[routes]]\npath = \"/\"\nservice = \"w\""),
            "service `w` has no port, so it gets no requests",
        ),
    ];
    for (text, message) in cases {
        assert_eq!(messages(&text), [message], "for the file\n{text}");
    }
}

#[test]
fn numbers_out_of_bounds_are_refused_however_long_they_are() {
    for (more, key) in [
        ("instances = 1001", "instances"),
        ("instances = -1", "instances"),
        ("instances = 99999999999999999999999999999999", "instances"),
        ("cpu = 0.001", "cpu"),
        ("cpu = nan", "cpu"),
        ("cpu = 1e300", "cpu"),
        ("memory = \"1B\"", "memory"),
        ("memory = \"999TB\"", "memory"),
        ("drain = \"25h\"", "drain"),
        ("health = { interval = \"1ms\" }", "health.interval"),
    ] {
        let found = messages(&web(more));
        assert_eq!(found.len(), 1, "{more}: {found:?}");
        assert!(found[0].contains(key) && found[0].contains("out of bounds"), "{more}: {found:?}");
    }
}

#[test]
fn variables_that_rung_sets_itself_are_refused() {
    for name in ["PORT", "RUNG_RELEASE"] {
        assert_eq!(
            messages(&web(&format!("[env]\n{name} = 1"))),
            [format!("`{name}` is set by Rung itself")]
        );
        let required = format!("[secrets]\nrequired = [\"{name}\"]");
        assert_eq!(messages(&web(&required)), [format!("`{name}` is set by Rung itself")]);
    }
    assert!(messages(&web("[env]\nA-B = 1"))[0].contains("not a name of an environment variable"));
    assert!(messages(&web("[env]\nLIST = [1]"))[0].contains("must be a text, a number, true or false"));
    assert!(messages(&web("[env]\nNUL = \"a\\u0000b\""))[0].contains("NUL"));
}

#[test]
fn a_secret_in_the_file_is_pointed_out_as_such() {
    let found = messages(&web("[secrets]\nAPI_KEY = \"hunter2\""));
    assert!(found.contains(&"values of secrets do not belong into the app file".to_owned()), "{found:?}");
    let shown = parse("rung.toml", web("[secrets]\nAPI_KEY = \"hunter2\"")).unwrap_err().to_string();
    assert!(shown.contains("rung secret set API_KEY"), "{shown}");
}

#[test]
fn several_services_with_a_port_need_a_main_one() {
    let two = "app = \"shop\"\n[services.api]\ncommand = \"a\"\n[services.site]\ncommand = \"b\"\n";
    shows(
        two,
        expect![[r#"
            `api`, `site` have a port, and nothing says which of them gets the requests
             --> rung.toml:4:11
              |
            4 | [services.site]
              |           ^^^^
              = name one of them `web`, write port = false where no requests go, or write [[routes]]

            rung.toml has 1 error"#]],
    );
    let worker_only = accepted("app = \"shop\"\n[services.worker]\ncommand = \"a\"\nport = false\n");
    assert_eq!(worker_only.effective_routes(), []);
    let one = accepted(
        "app = \"shop\"\n[services.api]\ncommand = \"a\"\n[services.w]\ncommand = \"b\"\nport = false",
    );
    assert_eq!(one.effective_routes()[0].service().unwrap().as_str(), "api");
}

#[test]
fn an_error_in_an_endless_line_shows_the_part_that_matters() {
    let text = web(&format!("env = {{ A = \"{}\", B = [] }}", "x".repeat(50_000)));
    let errors = parse("rung.toml", &text).unwrap_err();
    let shown = errors.to_string();
    assert!(shown.len() < 1000, "{} bytes are shown", shown.len());
    let many: String = (0..5000).map(|n| format!("key{n} = 1\n")).collect();
    let errors = parse("rung.toml", &many).unwrap_err();
    assert_eq!(errors.errors().len(), defaults::ERRORS_MAX);
    assert!(errors.to_string().ends_with("rung.toml has 5002 errors (the first 50 are shown)"));
    let endless = vec![b' '; defaults::FILE_BYTES_MAX + 1];
    assert!(parse("rung.toml", &endless).unwrap_err().to_string().contains("larger than"));
}

#[test]
fn what_a_terminal_would_obey_is_not_shown() {
    let shown =
        parse("rung.toml", "app = \"a\u{1b}[2Jb\"\n\"\\u001b[31mkey\" = 1\n").unwrap_err().to_string();
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
}

#[test]
fn a_procfile_is_an_app_file_too() {
    let app = AppName::new("shop").unwrap();
    let text = "# processes\nweb: bin/server -p $PORT\nworker: bin/jobs\r\n\nrelease: bin/migrate --all\n";
    let file = parse_procfile(app.clone(), text).unwrap();
    assert_eq!(file.deploy.release.as_deref(), Some("bin/migrate --all"));
    let ports: Vec<(&str, bool, &str)> = file
        .services
        .iter()
        .map(|(name, s)| (name.as_str(), s.port, s.command.as_deref().unwrap_or_default()))
        .collect();
    assert_eq!(ports, [("web", true, "bin/server -p $PORT"), ("worker", false, "bin/jobs")]);
    let text = AppText { name: "Procfile".into(), text: text.to_owned(), overlays: Default::default() };
    assert_eq!(text.parse(&app).unwrap(), file);

    let errors =
        parse_procfile(app.clone(), "web bin/server\nMy_Worker: x\nweb:\nclock: a\nclock: b\n").unwrap_err();
    expect![[r#"
        the line has no `:`
         --> Procfile:1:1
          |
        1 | web bin/server
          | ^^^^^^^^^^^^^^
          = write it like web: bin/server

        `My_Worker` is not a service's name: names use a to z, 0 to 9 and -
         --> Procfile:2:1
          |
        2 | My_Worker: x
          | ^^^^^^^^^
          = write it like `my-worker`

        `web` has no command
         --> Procfile:3:1
          |
        3 | web:
          | ^^^
          = write it like web: bin/server

        `clock` is there twice
         --> Procfile:5:1
          |
        5 | clock: b
          | ^^^^^
          = take one of them out

        Procfile has 4 errors"#]]
    .assert_eq(&errors.to_string());
    assert!(parse_procfile(app, "").unwrap_err().to_string().contains("no services"));
}

#[test]
fn jobs_are_read_with_their_schedules() {
    let file = accepted(&format!(
        "{}\n[jobs.report]\ncommand = \"bin/report\"\nschedule = \"30 2 * * mon\"\ntimezone = \"Europe/Vienna\"\n\
         overlap = \"replace\"\ncatch_up = \"none\"\nretries = 2\n[jobs.reindex]\ncommand = \"bin/reindex\"\n",
        web("")
    ));
    let report = &file.jobs[&JobName::new("report").unwrap()];
    assert_eq!(report.schedule.as_ref().unwrap().as_str(), "30 2 * * mon");
    assert_eq!((report.overlap, report.catch_up, report.retries), (Overlap::Replace, CatchUp::None, 2));
    let reindex = &file.jobs[&JobName::new("reindex").unwrap()];
    assert_eq!((reindex.schedule.as_ref(), reindex.timezone.as_str()), (None, "UTC"));
}

#[test]
fn catching_up_with_all_needs_runs_that_may_overlap() {
    let with = |overlap: &str| {
        let job = "[jobs.a]\ncommand = \"a\"\nschedule = \"@daily\"\ncatch_up = \"all\"\noverlap = ";
        parse("rung.toml", format!("{}\n{job}\"{overlap}\"\n", web("")))
    };
    assert!(with("allow").is_ok());
    for overlap in ["forbid", "replace"] {
        let refused = with(overlap).unwrap_err().to_string();
        assert!(refused.contains("`overlap` does not allow"), "{refused}");
    }
}

#[test]
fn a_schedule_that_is_wrong_or_never_comes_is_refused_with_the_way_to_write_it() {
    let text = format!(
        "{}\n[jobs.a]\ncommand = \"a\"\nschedule = \"0 0 30 2 *\"\noverlap = \"forbit\"\n\
         [jobs.b]\ncommand = \"b\"\ntimezone = \"Vienna\"\n",
        web("")
    );
    shows(
        &text,
        expect![[r#"
            `jobs.a.schedule`: schedule "0 0 30 2 *" never comes: no date matches it
             --> rung.toml:8:12
              |
            8 | schedule = "0 0 30 2 *"
              |            ^^^^^^^^^^^^
              = minute, hour, day, month, weekday like "0 3 * * *", or "@daily"

            "forbit" is not a way to handle it
             --> rung.toml:9:11
              |
            9 | overlap = "forbit"
              |           ^^^^^^^^
              = did you mean "forbid"?

            `timezone` is about a schedule, and `jobs.b` has none
              --> rung.toml:12:1
               |
            12 | timezone = "Vienna"
               | ^^^^^^^^
               = add schedule = "0 3 * * *", or take it out

            `jobs.b.timezone`: "Vienna" is not a time zone
              --> rung.toml:12:12
               |
            12 | timezone = "Vienna"
               |            ^^^^^^^^
               = write it like "Europe/Vienna"

            rung.toml has 4 errors"#]],
    );
}

#[test]
fn a_directory_s_name_becomes_an_app_s_name() {
    assert_eq!(slug("My Shop!"), "my-shop");
    assert_eq!(slug("2nd_try.d"), "nd-try-d");
    assert_eq!(slug("Ärger"), "rger");
    assert_eq!(slug("---"), "");
    assert!(AppName::new(slug(&"x-".repeat(50))).is_ok());
}

#[test]
fn the_app_s_name_is_found_in_a_file_that_is_broken_elsewhere() {
    assert_eq!(name_of("app = \"shop\"\n[services").unwrap().as_str(), "shop");
    assert_eq!(name_of("app = 1"), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Neither a panic nor an error that points outside of the file, whatever is written.
    #[test]
    fn any_text_is_accepted_or_refused_with_valid_places(text in any_file()) {
        if let Err(errors) = parse("rung.toml", &text) {
            check_places(&errors, &text)?;
        }
        if let Err(errors) = parse_procfile(AppName::new("shop").unwrap(), &text) {
            check_places(&errors, &text)?;
        }
    }

    #[test]
    fn any_bytes_are_accepted_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Err(errors) = parse("rung.toml", &bytes) {
            check_places(&errors, &String::from_utf8_lossy(&bytes))?;
        }
    }
}

fn check_places(errors: &AppFileErrors, text: &str) -> Result<(), TestCaseError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    prop_assert!(!errors.errors().is_empty());
    prop_assert!(!errors.to_string().is_empty());
    for error in errors.errors() {
        let line = text.split('\n').nth(error.line - 1);
        prop_assert!(line.is_some(), "line {} of {:?}", error.line, text);
        let length = line.unwrap_or_default().chars().count();
        prop_assert!((1..=length + 1).contains(&error.column), "column {} of {:?}", error.column, line);
    }
    Ok(())
}

/// Arbitrary text, and lines that look like an app file in a wrong order.
fn any_file() -> impl Strategy<Value = String> {
    let key = proptest::sample::select(
        schema::ALL.iter().flat_map(|section| section.keys.iter().copied()).collect::<Vec<_>>(),
    );
    let value = proptest::sample::select(vec![
        "\"x\"",
        "1",
        "true",
        "[]",
        "{}",
        "\"/a\"",
        "\"1s\"",
        "-1",
        "1e9",
        "nan",
        "[\"a\", 1]",
        "{ path = 1 }",
        "=",
        "\"ä",
        "1979-05-27",
        "{ web = {} }",
        "[[1]]",
        "'''\n'''",
        "0x99999999999999999999",
    ]);
    let table = proptest::sample::select(vec![
        "[services.web]",
        "[services]",
        "[[routes]]",
        "[routes.auth]",
        "[routes.cors]",
        "[routes.limit]",
        "[pages]",
        "[env]",
        "[volumes.a]",
        "[secrets]",
        "[deploy",
        "[a.b.c.d]",
        "[services.web.health]",
        "[[services]]",
        "[build]",
        "ä = 1",
    ]);
    let line = prop_oneof![
        4 => (key, value).prop_map(|(key, value)| format!("{key} = {value}")),
        2 => table.prop_map(str::to_owned),
        1 => ".{0,20}",
    ];
    prop_oneof![
        1 => "\\PC*",
        1 => ".{0,100}",
        4 => proptest::collection::vec(line, 0..25).prop_map(|lines| lines.join("\n")),
    ]
}

#[test]
fn an_image_needs_no_command_and_says_its_own_port() {
    let file = accepted(
        r#"
        app = "shop"
        build.image = "ghcr.io/acme/shop:2.1"

        [services.web]
        port = 8080

        [services.worker]
        command = "bin/jobs"
        port = false
        "#,
    );
    let service = |name: &str| &file.services[&ServiceName::new(name).unwrap()];
    assert_eq!((service("web").port, service("web").image_port), (true, Some(8080)));
    assert_eq!(service("web").health.check, Check::Image, "the image's HEALTHCHECK counts");
    assert_eq!(service("worker").command.as_deref(), Some("bin/jobs"));
    let build = file.image_build().expect("the file names an image");
    assert_eq!(build.commandless, [ServiceName::new("web").unwrap()]);
    assert!(build.source.may_move(), "a tag is not a digest");
    assert!(!file.build.is_empty(), "an image has to be looked up");
}

#[test]
fn an_image_that_contradicts_the_file_is_refused() {
    for (build, message) in [
        ("image = \"Shop\"", "lower case"),
        ("image = \"shop:1\"\ncommand = \"make\"", "two ways to build"),
        ("image = \"shop:1\"\ndockerfile = \"Dockerfile\"", "two ways to build"),
        ("dockerfile = \"../Dockerfile\"", "not a file of the directory"),
    ] {
        let messages = messages(&format!("app = \"shop\"\n[build]\n{build}\n[services.web]\n"));
        assert!(messages.iter().any(|found| found.contains(message)), "{build}: {messages:?}");
    }
    let messages = messages(&web("port = 8080\n"));
    assert!(messages.iter().any(|found| found.contains("$PORT")), "{messages:?}");
}
