//! The test program: `cargo test -p kilo-e2e --test e2e -- [-j N] [--list] [WORD…]`.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "tests are no library")]

mod api;
mod netns;
mod vm;

use std::process::ExitCode;

fn main() -> ExitCode {
    let files = [netns::TESTS, api::TESTS, vm::TESTS];
    let tests: Vec<kilo_e2e::Test> = files.into_iter().flatten().copied().flatten().copied().collect();
    kilo_e2e::main(&tests)
}
