#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| rung_ingress::fuzz::request_head(input));
