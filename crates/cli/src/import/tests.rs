use expect_test::expect;

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
    expect![[r#"
    "#]]
    .assert_eq(&written);
    if let Err(errors) = appfile::parse("rung.toml", &written) {
        panic!("what was written is refused:\n{errors}");
    }
}

#[test]
fn every_field_that_is_not_honoured_is_named_with_its_line() {
    let notes = imported(&[]).notes;
    let told = notes.iter().map(|note| note.line_in("compose.yaml")).collect::<Vec<_>>().join("\n");
    assert!(!told.contains("hunter2"), "a secret is in the output: {told}");
    expect![[r#"
    "#]]
    .assert_eq(&told);
}

#[test]
fn another_service_becomes_an_app_of_its_own() {
    let db = imported(&["db"]).draft;
    assert_eq!(db.build, draft::Build::Image("postgres:16".into()));
    assert_eq!((db.services.len(), db.services[0].name.as_str()), (1, "db"));
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
    expect![[r#"
    "#]]
    .assert_eq(&written.toml);
    let told = written.notes.iter().map(|note| note.line_in("app.json")).collect::<Vec<_>>().join("\n");
    expect![[r#"
    "#]]
    .assert_eq(&told);
    let file = appfile::parse("rung.toml", &written.toml).unwrap();
    assert_eq!(file.deploy.release.as_deref(), Some("bin/migrate"));
    for wrong in ["[]", "{", "{\"env\": }"] {
        let refused = app_json::write(&app, b"web: x\n", wrong.as_bytes(), "app.json").unwrap_err();
        assert!(refused.to_string().contains("app.json"), "{refused}");
    }
}
