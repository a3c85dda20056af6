//! The shim as the tests start it; `rung` does the same when its first argument is `shim`.

fn main() {
    rung_agent::shim_main();
}
