//! The operations that lead from what is to what should be.

use crate::{Desired, Observed, Op};

/// The ordered operations that make `observed` what `desired` says. None where nothing is to be done.
pub fn diff(_desired: &Desired, _observed: &Observed) -> Vec<Op> {
    Vec::new()
}
