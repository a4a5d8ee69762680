//! What holds of plans of any objects.

mod claims;
mod planner;
mod plans;
mod random;
