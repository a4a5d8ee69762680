//! Tables against what `nft` and the kernel say, and what holds of any two tables.
#![allow(clippy::unwrap_used)]

mod kernel;
mod policy;
mod properties;
mod random;
mod table;
mod trace;
mod vectors;
