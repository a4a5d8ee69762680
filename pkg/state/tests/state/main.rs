//! What holds of any two states, and operations as text for states small enough to read.
#![allow(clippy::unwrap_used)]

mod golden;
mod properties;
mod random;
mod scale;
