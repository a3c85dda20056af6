use expect_test::expect;
use rung_model::ImageSource;

use super::*;

const COMPOSE: &str = r#"name: Book Shop
services:
  web:
    build: .
    ports: ["8080:5000", "9229:9229"]
    environment:
      LOG_LEVEL: ${LOG_LEVEL:-info}
      SECRET_KEY_BASE: hunter2
      API_URL:
      PORT: 5000
    depends_on: [db]
    volumes:
      - uploads:/data
      - ./conf:/etc/shop:ro
    healthcheck:
      test: ["CMD", "curl", "-f", "http://localhost:5000/up"]
      interval: 1m30s
      retries: 3
    deploy:
      replicas: 2
      resources:
        limits: { memory: 512m, cpus: "0.50" }
    stop_grace_period: 30s
    restart: unless-stopped
    privileged: true
    colour: blue
  worker_one:
    build: .
    command: ["bin/jobs", "--queue", "a b"]
    environment: [LOG_LEVEL=debug]
  db:
    image: postgres:16
    volumes: [pg:/var/lib/postgresql/data]
  debug:
    image: busybox
    profiles: [tools]
volumes:
  uploads:
  pg:
    driver: local
networks: {front: {}}
x-anything: ignored
"#;

fn imported(only: &[&str]) -> compose::Drafted {
    let only: Vec<String> = only.iter().map(ToString::to_string).collect();
    compose::import(COMPOSE, Some(AppName::new("elsewhere").unwrap()), &only).unwrap()
}

#[test]
fn what_a_compose_file_says_is_written_as_an_app_file() {
    let written = imported(&[]).draft.write("compose.yaml");
    expect![[r##"
        # Made of compose.yaml by `rung import`.
        app = "book-shop"

        [build]
        dockerfile = "Dockerfile"

        [env]
        LOG_LEVEL = "info"

        [secrets]
        required = ["SECRET_KEY_BASE"]

        [volumes.uploads]

        [services.web]
        port = 5000
        instances = 2
        memory = "512MiB"
        cpu = 0.5
        health = { path = "/up", interval = "90s", unhealthy_after = 3, restart_after = 5 }
        stop_grace = "30s"
        mounts = { uploads = "/data" }

        [services.worker-one]
        command = "bin/jobs --queue 'a b'"
        port = false
    "##]]
    .assert_eq(&written);
    let file = appfile::parse("rung.toml", &written).expect("an app file that can be deployed");
    assert_eq!(file.build.image, Some(ImageSource::Dockerfile { path: "Dockerfile".into() }));
    assert_eq!(file.services.len(), 2);
}

#[test]
fn every_field_that_is_not_honoured_is_named_with_its_line() {
    let notes = imported(&[]).notes;
    let told = notes.iter().map(|note| note.line_in("compose.yaml")).collect::<Vec<_>>().join("\n");
    assert!(!told.contains("hunter2"), "a secret is in the output: {told}");
    expect![[r#"
        compose.yaml:5: services.web.ports: it is served by the ingress, at http://book-shop.localhost:8080, not at 8080
        compose.yaml:5: services.web.ports: a service has one port: 9229 is not served
        compose.yaml:7: services.web.environment.LOG_LEVEL: ${LOG_LEVEL} became its default
        compose.yaml:8: services.web.environment.SECRET_KEY_BASE: secrets do not stand in the app file: rung secret set SECRET_KEY_BASE
        compose.yaml:9: services.web.environment.API_URL: its value is known to whoever runs Compose: rung config set API_URL=VALUE
        compose.yaml:10: services.web.environment.PORT: Rung sets it
        compose.yaml:11: services.web.depends_on: nothing waits for another service: what fails for lack of it is restarted until it is there
        compose.yaml:14: services.web.volumes: ./conf is a path of one machine: put its files into the image, or copy them into a volume
        compose.yaml:25: services.web.privileged: instances get no capabilities
        compose.yaml:26: services.web.colour: it is not known here
        compose.yaml:27: services.worker_one: names use a to z, 0 to 9 and -: it is called worker-one
        compose.yaml:29: services.worker_one.command: it stands for the image's ENTRYPOINT, too: put that in front of it, where there is one
        compose.yaml:30: services.worker_one.environment.LOG_LEVEL: the environment holds for the whole app, and another service says otherwise
        compose.yaml:31: services.db: it runs another image (postgres:16), and an app has one: make it an app of its own (rung import --service db --app NAME --output DIR/rung.toml), and give its address with `rung config set`
        compose.yaml:34: services.debug: services with a profile are left out; import it with --service, or run it as a job: [jobs.NAME]
        compose.yaml:39: volumes.pg: no service of this app mounts it
        compose.yaml:40: volumes.pg.driver: volumes are directories of the machine that runs the service
        compose.yaml:41: networks: services of an app share the machine's loopback, and only the ingress is seen from outside"#]]
    .assert_eq(&told);
}

#[test]
fn another_service_becomes_an_app_of_its_own() {
    let db = imported(&["db"]).draft;
    assert_eq!(db.build, draft::Build::Image("postgres:16".into()));
    assert_eq!((db.services.len(), db.services[0].name.as_str()), (1, "db"));
    appfile::parse("rung.toml", db.write("compose.yaml")).expect("an app file that can be deployed");
    let unknown = compose::import(COMPOSE, None, &["cache".into()]).unwrap_err();
    assert_eq!(unknown.message, "there is no service cache");
}

#[test]
fn what_is_no_compose_file_is_told_so() {
    let refused = |text: &str| compose::import(text, None, &[]).unwrap_err();
    assert_eq!(refused("a: 1").message, "the file has no `services`");
    assert_eq!(
        refused("name: x\nservices: {web: {ports: []}}").message,
        "service web does not say what it runs"
    );
    assert_eq!(refused("services: {web: {image: x}}").hint, "name it with --app");
    assert_eq!(refused("services:\n\t- x").line, 2);
}

#[test]
fn an_existing_app_file_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("rung.toml");
    write_new(&target, "first", false).unwrap();
    let refused = write_new(&target, "second", false).unwrap_err();
    assert!(refused.to_string().contains("is there already"), "{refused}");
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "first");
    write_new(&target, "second", true).unwrap();
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "second");
}

const APP_JSON: &str = r#"{
  "name": "A Shop",
  "env": {
    "SECRET_KEY_BASE": { "generator": "secret" },
    "LOG_LEVEL": { "value": "info" },
    "REGION": "eu",
    "API_KEY": { "description": "of the bank" },
    "OPTIONAL": { "required": false },
    "PORT": "80"
  },
  "scripts": { "postdeploy": "bin/migrate" },
  "formation": { "web": { "quantity": 2, "size": "standard-2x" }, "clock": { "quantity": 1 } },
  "environments": { "test": { "scripts": { "test": "bin/test" } } },
  "addons": ["heroku-postgresql"]
}
"#;

#[test]
fn an_app_json_counts_with_the_procfile_beside_it() {
    let app = AppName::new("shop").unwrap();
    let written =
        app_json::write(&app, b"web: bin/server\nworker: bin/jobs\n", APP_JSON.as_bytes(), "app.json")
            .unwrap();
    expect![[r##"
        # Of Procfile and app.json.
        app = "shop"

        [build]
        test = "bin/test"

        [env]
        LOG_LEVEL = "info"
        REGION = "eu"

        [secrets]
        required = ["API_KEY", "SECRET_KEY_BASE"]

        [deploy]
        release = "bin/migrate"

        [services.web]
        command = "bin/server"
        port = true
        instances = 2
        memory = "1GB"

        [services.worker]
        command = "bin/jobs"
        port = false
    "##]]
    .assert_eq(&written.toml);
    let told = written.notes.iter().map(|note| note.line_in("app.json")).collect::<Vec<_>>().join("\n");
    expect![[r#"
        app.json:4: env.SECRET_KEY_BASE: it is generated once: rung secret generate SECRET_KEY_BASE
        app.json:7: env.API_KEY: it must be set: rung secret set API_KEY
        app.json:9: env.PORT: Rung sets it, or no variable can be called so
        app.json:11: scripts.postdeploy: it runs as the release command: before each new release, not once after the first
        app.json:12: formation.web.size: it is a size of another platform: memory = "1GB"
        app.json:12: formation.clock: the Procfile has no such line
        app.json:14: addons: run databases and the like beside Rung, and give their addresses with `rung secret set`"#]]
    .assert_eq(&told);
    let file = appfile::parse("rung.toml", &written.toml).unwrap();
    assert_eq!(file.deploy.release.as_deref(), Some("bin/migrate"));
    for wrong in ["[]", "{", "{\"env\": }"] {
        let refused = app_json::write(&app, b"web: x\n", wrong.as_bytes(), "app.json").unwrap_err();
        assert!(refused.to_string().contains("app.json"), "{refused}");
    }
}
