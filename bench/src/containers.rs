//! What the `docker` driver adds to the engine: deploys of an image, beside `docker run` of the same one.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rung_e2e::engine::Dockerd;
use rung_e2e::{Rung, Start};

use crate::milliseconds;
use crate::table::Table;

const SERVE: &str = r#"CMD ["httpd","-f","-p","8080","-h","/www"]"#;
const EXPOSE: &str = "EXPOSE 8080";
/// Between two looks at whether a container answers.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// What takes longer is no result but a fault.
const PATIENCE: Duration = Duration::from_secs(60);

/// Each round is a new image, deployed and run: by Rung from the command to its end, by the engine from the command to
/// the first answer. The image is on the machine already for both.
pub fn deploys(binary: &Path, rounds: usize, table: &mut Table) -> anyhow::Result<()> {
    if !Path::new("/usr/sbin/dockerd").exists() {
        table.note("The `docker` driver was not measured: docker.io is not installed.".to_owned());
        return Ok(());
    }
    let engine = Dockerd::start();
    let environment = vec![("DOCKER_HOST".to_owned(), engine.host())];
    let rung = Rung::start_with(Start { binary: Some(binary.to_owned()), environment, ..Start::default() });
    let directory = tempfile::Builder::new().prefix("rung-bench-").tempdir()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        println!("image {round} of {rounds}");
        let image = format!("bench:{round}");
        engine.import_with(&image, &[SERVE, EXPOSE], &[("www/index.html", &image)]);
        let file = format!(
            "app = \"image\"\n[build]\nimage = \"{image}\"\n[services.web]\nstop_grace = \"1s\"\ndrain = \"1s\"\n"
        );
        std::fs::write(directory.path().join("rung.toml"), file)?;
        let deployed = rung.deploy(directory.path()).succeeds().took;
        rung.wait_until_settled("image", "web", 1);
        let run = run_by_hand(&engine, &image)?;
        // The first deploy has nothing to replace.
        if round > 0 {
            ours.push(deployed);
            theirs.push(run);
        }
    }
    theirs.sort();
    let usual = theirs[theirs.len() / 2];
    let beyond: Vec<Duration> = ours.iter().map(|took| took.saturating_sub(usual)).collect();
    let what = "deploy of an image that is on the machine, beyond the engine's own `docker run`";
    table.push(milliseconds(what, "200 ms", &beyond, &[]));
    table.note(format!(
        "`docker run` of the same images takes {:.0} ms to the first answer (median); it is taken off. A deploy \
         also keeps the image with the release, checks its health, and moves the traffic.",
        usual.as_secs_f64() * 1000.0
    ));
    Ok(())
}

/// `docker run` to the first answer.
fn run_by_hand(engine: &Dockerd, image: &str) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let id = engine.docker(&["run", "-d", "-p", "127.0.0.1::8080", image]);
    let published = engine.docker(&["port", &id, "8080"]);
    let address = published.lines().next().context("the container's port is not published")?.to_owned();
    while !answers(&address) {
        anyhow::ensure!(began.elapsed() < PATIENCE, "the container of {image} does not answer at {address}");
        std::thread::sleep(LOOK_EVERY);
    }
    let took = began.elapsed();
    engine.docker(&["rm", "-f", &id]);
    Ok(took)
}

/// The engine's own proxy accepts connections before the application does.
fn answers(address: &str) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut head = [0; 4];
        stream.read_exact(&mut head)?;
        Ok(head == *b"HTTP")
    };
    ask().unwrap_or(false)
}
