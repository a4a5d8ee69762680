//! What an operation does to the state it is carried out on: the model that fakes and properties use, and
//! the agent's own idea of the kernel between two readings.

use crate::{Observed, Op};

/// Carries out one operation on a state.
pub fn apply(_observed: &mut Observed, _op: &Op) {}
