//! The built program, judged from outside.

mod common;
mod plan;
mod show;
mod usage;
