//! The `kgctl` program; all of it stands in the library, so that the reference pages are made from the same
//! command line.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    kilo_kgctl::main()
}
