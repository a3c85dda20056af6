//! Requests lost while everything changes.

use std::time::Duration;

use rung_e2e::{Load, Rung, eventually, process};

use crate::payload::Payload;
use crate::table::{Row, Table};

const CLIENTS: usize = 8;

pub fn measure(rung: &Rung, app: &mut Payload, requests: u64, table: &mut Table) -> anyhow::Result<()> {
    let load =
        Load::start_clients(rung.http(), &format!("{}.localhost", app.name), "/", CLIENTS, Duration::ZERO);
    for n in 1..=20 {
        app.next()?;
        rung.deploy(app.directory()).succeeds();
        println!("deploy {n} of 20");
    }
    for n in 1..=10 {
        rung.cli(&["rollback", "--app", &app.name]).succeeds();
        println!("rollback {n} of 10");
    }
    for n in 1..=10 {
        let count = if n % 2 == 0 { "web=2" } else { "web=4" };
        rung.cli(&["scale", count, "--app", &app.name]).succeeds();
        println!("scaling {n} of 10");
    }
    for n in 1..=50 {
        if n % 2 == 1 {
            // Instances without a past: one that dies again and again is started later each time.
            rung.cli(&["restart", "--app", &app.name]).succeeds();
        }
        let victim = rung.wait_until_settled(&app.name, "web", 2).swap_remove(n % 2);
        let pid = victim.pid.expect("a healthy instance has a process");
        process::kill_9(pid);
        // For a moment the report still shows it healthy: the next one must not be killed while this one is down.
        eventually("the instance is back with another process", || {
            let now = rung.instances(&app.name);
            let back =
                now.iter().any(|i| i.id == victim.id && i.routed && i.pid.is_some_and(|new| new != pid));
            if back { Ok(()) } else { Err(format!("{now:?}")) }
        });
        println!("kill {n} of 50");
    }
    rung.wait_until_settled(&app.name, "web", 2);
    while load.tally().outcomes.values().sum::<u64>() < requests {
        load.wait_for(1000);
    }
    let tally = load.stop();
    let made: u64 = tally.outcomes.values().sum();
    println!("{:?}\n{}", tally.outcomes, tally.troubles.join("\n"));
    table.push(Row {
        what: format!(
            "requests lost of {made}, during 20 deploys, 10 rollbacks, 10 scalings, 25 restarts, 50 kills of instances"
        ),
        aim: "none".into(),
        rung: format!("{}", tally.lost()),
        peer: "not measured".into(),
        ratio: String::new(),
    });
    table.note(format!(
        "The load of the last row is {CLIENTS} clients over kept connections, GET, as fast as they are answered; the \
         longest answer took {:.0} ms. A request is lost when it is refused, reset, closed, timed out, broken off or \
         answered with 500 and more.",
        tally.longest.as_secs_f64() * 1000.0
    ));
    Ok(())
}
