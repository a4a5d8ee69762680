//! WireGuard devices on real kernels: processes with network and mount namespaces of their own, judged by
//! `wg show` and `ping`.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod node;
mod world;

mod builtin;
mod foreign;
mod kernel;
mod own;
mod restart;
mod scale;
