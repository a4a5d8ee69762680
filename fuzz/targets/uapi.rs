//! WireGuard's configuration protocol, requests and answers.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| kilo_host::fuzzing::uapi(text));
