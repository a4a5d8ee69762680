//! What holds of plans of any objects.

mod planner;
mod plans;
mod random;
